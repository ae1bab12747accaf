"""What many runs in one process share: settings, ledger, clock, backends, watchers, and one guard thread."""

import logging
import os
import random
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from gpujobs import backends
from gpujobs.backends import Backend
from gpujobs.clock import Clock, StopToken, SystemClock
from gpujobs.errors import Busy, Cancelled, GpujobsError
from gpujobs.ledger import Ledger, open_ledger
from gpujobs.models import Event, Machine
from gpujobs.settings import Settings
from gpujobs.slots import Slots, Unlimited
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
        self.slots: Slots = Unlimited()  # whoever opens it for a team puts the team's limits here
        self.driver = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._lock = threading.Lock()
        self._backends: dict[str, Backend] = {}
        self._watchers: dict[str, Watcher] = {}
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

    def backend(self, name: str) -> Backend:
        """Open the backend `name`, or give the one that is open; raises BadInput."""
        with self._lock:
            if name not in self._backends:
                self._backends[name] = backends.load(name, self.settings, clock=self.clock)
            return self._backends[name]

    @contextmanager
    def watching(self, machine: Machine) -> Iterator[Watch]:
        """Have the one watcher of the machine's backend watch it too; what it hears goes into the ledger."""
        self._names[machine.id] = machine.name
        with self._watcher(machine.backend).watch(machine) as watch:
            yield watch

    def _watcher(self, name: str) -> Watcher:
        backend = self.backend(name)
        with self._lock:
            if name not in self._watchers:
                self._watchers[name] = Watcher(backend, clock=self.clock, dice=self.dice, on_event=self._heard)
            return self._watchers[name]

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
