"""What many runs in one process share: settings, ledger, clock, backends, watchers, and one guard thread."""

import copy
import json
import logging
import os
import random
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from gpujobs import backends
from gpujobs.backends import Backend
from gpujobs.clock import Clock, StopToken, SystemClock
from gpujobs.errors import BadInput, Busy, Cancelled, GpujobsError, Unavailable
from gpujobs.ledger import Ledger, open_ledger
from gpujobs.ledger_rows import Run
from gpujobs.models import Event, Machine
from gpujobs.settings import Account, Settings
from gpujobs.watch import Watch, Watcher

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a run bears what; all in seconds."""

    settle_s: float = 20.0  # an ambiguous create is looked for so long
    queued_s: float = 600.0  # accepted, and no host found
    boot_s: float = 900.0  # from a host to a login
    lost_s: float = 1200.0  # no SSH, while the provider still says running
    stop_grace_s: float = 5.0  # TERM to KILL
    stop_pull_s: float = 15.0  # for bringing results home once stopped
    snapshot_s: float = 1800.0
    release_s: float = 120.0  # confirming that a machine is gone, before it is left to the reaper
    overrun_s: float = 60.0  # how far past its time the work may be before we stop it ourselves
    stock_s: float = 30.0  # between two looks for a free card
    lease_s: float = 60.0
    guard_s: float = 1.0
    reach_s: float = 0.2  # between the first two looks for a login


class Host:
    """Runs recipes: opened once a process, shared by its runs. Use as a context manager."""

    def __init__(
        self, settings: Settings, ledger: Ledger, *, clock: Clock, dice: random.Random, timing: Timing
    ) -> None:
        """Take the parts; `open` is the usual way."""
        self.settings, self.ledger, self.clock, self.dice, self.timing = settings, ledger, clock, dice, timing
        self.driver = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lock = threading.Lock()
        self.reaping = threading.Lock()  # one pass of the reaper at a time
        self._credentials: Mapping[str, str] = {}
        self._backends: dict[tuple[str, Account], Backend] = {}
        self._watchers: dict[Backend, Watcher] = {}
        self._names: dict[str, str] = {}  # our names of the machines that were watched, by the provider's ids
        self._guard = Guard(ledger, self.driver, clock=clock, timing=timing)

    @classmethod
    def open(
        cls,
        settings: Settings,
        *,
        clock: Clock | None = None,
        dice: random.Random | None = None,
        timing: Timing | None = None,
    ) -> Self:
        """Open the ledger of `settings`; sends nothing to any provider yet."""
        clock, dice = clock or SystemClock(), dice or random.Random()  # noqa: S311 - for jitter, not for secrets
        return cls(settings, open_ledger(settings.database_url), clock=clock, dice=dice, timing=timing or Timing())

    def under(self, credentials: Mapping[str, str]) -> Self:
        """Give this host as a run sees it whose recipe names these blocks, by backend; all else is shared."""
        view = copy.copy(self)
        view._credentials = credentials  # noqa: SLF001 - it is one of us
        return view

    def of_run(self, run: Run) -> Self:
        """Give this host under the credentials that a run's recipe names."""
        return self.under(json.loads(run.recipe_json).get("credentials") or {})

    def account(self, name: str) -> Account:
        """Give the account with backend `name` that counts here; raises as `Settings.account` does."""
        return self.settings.account(name, self._credentials.get(name, ""))

    def usable(self) -> Sequence[str]:
        """Name the backends that there is an account with; raises where there is none because we cannot ask."""
        found: list[str] = []
        trouble: GpujobsError | None = None
        for name in backends.names():
            try:
                found += [name] if self.account(name).token else []
            except Unavailable as error:
                _log.warning("whether there is an account with %s is not known: %s", name, error)
                trouble = error
        if trouble is not None and not found:
            raise trouble
        return found

    def backend(self, name: str) -> Backend:
        """Open the backend `name`, or give the one that is open; raises BadInput, and as `account` does."""
        if name not in backends.names():
            raise BadInput(f"there is no backend {name}; {backends.nearest(name)}")
        return self.backend_of(name, self.account(name))

    def backend_of(self, name: str, account: Account) -> Backend:
        """Open the backend `name` for one account, or give the one that is open; raises BadInput."""
        with self._lock:
            if (name, account) not in self._backends:
                self._backends[name, account] = backends.open_with(name, account, clock=self.clock)
            return self._backends[name, account]

    @contextmanager
    def watching(self, machine: Machine) -> Iterator[Watch]:
        """Have the one watcher of the machine's backend watch it too; what it hears goes into the ledger."""
        self._names[machine.id] = machine.name
        with self._watcher(machine.backend).watch(machine) as watch:
            yield watch

    def _watcher(self, name: str) -> Watcher:
        backend = self.backend(name)
        with self._lock:
            if backend not in self._watchers:
                self._watchers[backend] = Watcher(backend, clock=self.clock, dice=self.dice, on_event=self._heard)
            return self._watchers[backend]

    @contextmanager
    def guarded(self, run_id: str, stop: StopToken) -> Iterator[None]:
        """Hold the lease on a run, and listen for its cancel, for as long as the block runs; raises Busy."""
        if not self.ledger.claim_run(run_id, self.driver, lease_s=self.timing.lease_s, now=self.clock.now()):
            raise Busy(f"run {run_id} is driven by another process; follow it with: gpujobs logs -f {run_id}")
        self._guard.add(run_id, stop)
        try:
            yield
        finally:
            self._guard.remove(run_id)
            self.ledger.release_claim(run_id, self.driver)

    def close(self) -> None:
        """End the threads and close the ledger."""
        for watcher in self._watchers.values():
            watcher.close()
        self._guard.close()
        self.ledger.close()

    def __enter__(self) -> Self:
        """Be the block's host."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _heard(self, event: Event) -> None:
        name = self._names.get(event.machine_id)
        if name is not None:
            self.ledger.add_event(name, event, seen_at=self.clock.now())


class Guard:
    """One thread for all runs of a process: renews their leases and hears requests to cancel them."""

    def __init__(self, ledger: Ledger, driver: str, *, clock: Clock, timing: Timing) -> None:
        """Start no thread yet."""
        self._ledger, self._driver, self._clock, self._timing = ledger, driver, clock, timing
        self._lock = threading.Lock()
        self._runs: dict[str, StopToken] = {}
        self._renewed: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def add(self, run_id: str, stop: StopToken) -> None:
        """Guard one run more."""
        with self._lock:
            self._runs[run_id] = stop
            self._renewed[run_id] = self._clock.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="gpujobs-guard", daemon=True)
                self._thread.start()

    def remove(self, run_id: str) -> None:
        """Guard it no longer."""
        with self._lock:
            self._runs.pop(run_id, None)
            self._renewed.pop(run_id, None)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._clock.wait(self._over, self._timing.guard_s):
            with self._lock:
                runs = list(self._runs.items())
            for run_id, stop in runs:
                try:
                    self._look(run_id, stop)
                except Exception:  # noqa: BLE001 - whatever the database says, the other runs keep their guard
                    _log.exception("guarding run %s", run_id)

    def _look(self, run_id: str, stop: StopToken) -> None:
        if not stop.stopped and self._ledger.cancel_requested(run_id):
            stop.stop(Cancelled(f"run {run_id} was cancelled"))
        now = self._clock.monotonic()
        if now - self._renewed.get(run_id, now) < self._timing.lease_s / 4:
            return
        if self._ledger.renew(run_id, self._driver, lease_s=self._timing.lease_s, now=self._clock.now()):
            self._renewed[run_id] = now
        else:
            stop.stop(Busy(f"run {run_id} was taken over by another process; this one lets go of it"))


def describe_bug(error: Exception) -> GpujobsError:
    """Turn an exception that nobody foresaw into one that a run can end with; the cause stays attached."""
    told = GpujobsError(f"{type(error).__name__} inside gpujobs: {error}; this is a bug of ours, please report it")
    told.__cause__ = error
    return told
