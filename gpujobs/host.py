"""What many runs in one process share: settings, ledger, clock, backends, watchers, and one guard thread."""

import json
import logging
import os
import random
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from gpujobs import backends
from gpujobs.backends import Backend
from gpujobs.clock import Clock, StopToken, SystemClock
from gpujobs.errors import BadInput, Busy, Cancelled, GpujobsError, LetGo, Unavailable
from gpujobs.ledger import Ledger, open_ledger
from gpujobs.ledger_rows import Run
from gpujobs.models import Event, Machine
from gpujobs.settings import Account, Settings
from gpujobs.slots import Slots, Unlimited
from gpujobs.store import Store
from gpujobs.watch import Watch, Watcher

_JOIN_S = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long a run bears what; all in seconds."""

    settle_s: float = 20.0  # an ambiguous create is looked for so long
    queued_s: float = 600.0  # accepted, and no host found
    boot_s: float = 900.0  # from a host to a login
    lost_s: float = 1200.0  # no SSH, while the provider still says running
    silent_s: float = 30.0  # no sign of life on a connection that stands: it is taken for lost, and another opened
    stop_grace_s: float = 5.0  # TERM to KILL
    stop_pull_s: float = 15.0  # for bringing results home once stopped
    snapshot_s: float = 1800.0
    release_s: float = 120.0  # confirming that a machine is gone, before it is left to the reaper
    overrun_s: float = 60.0  # how far past its time the work may be before we stop it ourselves
    stock_s: float = 30.0  # between two looks for a free card
    lease_s: float = 60.0
    guard_s: float = 1.0
    reach_s: float = 0.2  # between the first two looks for a login
    poll_s: float = 0.5  # between two looks at machines that change


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
        self.reaping = threading.Lock()  # one pass of the reaper at a time
        self._credentials: Mapping[str, str] = {}
        self._backends: dict[tuple[str, Account], Backend] = {}
        self._watchers: dict[Backend, Watcher] = {}
        self._heard_by: dict[
            str, tuple[Ledger, str]
        ] = {}  # by the provider's id of a machine: for whom, our name of it
        self._guard = Guard(ledger, clock=clock, timing=timing)
        self.store = Store(settings.store) if settings.store else None  # one that cannot be is refused before any rent
        self._lease: Lease | None = None  # of the run that this host was given for

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
        ledger = open_ledger(settings.database_url, clock=clock)
        return cls(settings, ledger, clock=clock, dice=dice, timing=timing or Timing())

    def under(self, credentials: Mapping[str, str]) -> Self:
        """Give this host as a run sees it whose recipe names these blocks, by backend; all else is shared."""
        view = copy(self)
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
        self._heard_by[machine.id] = (self.ledger, machine.name)
        with self._watcher(machine.backend).watch(machine) as watch:
            yield watch

    def _watcher(self, name: str) -> Watcher:
        backend = self.backend(name)
        with self._lock:
            if backend not in self._watchers:
                self._watchers[backend] = Watcher(
                    backend, clock=self.clock, dice=self.dice, on_event=self._heard, first_s=self.timing.poll_s
                )
            return self._watchers[backend]

    @contextmanager
    def guarded(self, run_id: str, stop: StopToken, *, unended: bool = False) -> Iterator[Self]:
        """Hold the lease on a run, and listen for its cancel, for as long as the block runs.

        Gives this host for that run: each write to its ledger raises Busy once another process has taken the run.
        Raises Busy where another drives it, or with `unended` where it is over.
        """
        now, lease_s = self.clock.now(), self.timing.lease_s
        token = self.ledger.claim_run(run_id, self.driver, lease_s=lease_s, now=now, unended=unended)
        if token is None:
            raise Busy(f"run {run_id} is driven by another process; follow it with: gpujobs logs -f {run_id}")
        lease = Lease(run_id=run_id, token=token, stop=stop, until=now + timedelta(seconds=lease_s))
        self._guard.add(lease)
        try:
            yield self._held(lease)
        finally:
            self._guard.remove(lease)
            with suppress(LetGo):  # the ledger is away: the lease runs out by itself
                self.ledger.release_claim(run_id, self.driver, token=token)

    def _held(self, lease: "Lease") -> Self:
        held = copy(self)
        held.ledger, held._lease = self.ledger.held(lease.run_id, lease.token), lease  # noqa: SLF001 - of ourselves
        return held

    def check_hold(self) -> None:
        """Raise Busy where this host's run was taken by another; asks the ledger only once the lease has run out.

        That is for what a process which was frozen might do, in the moment in which it goes on.
        """
        if self._lease is not None and self.clock.now() >= self._lease.until:
            self.ledger.check_hold()

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
        if event.machine_id in self._heard_by:
            ledger, name = self._heard_by[event.machine_id]
            with suppress(LetGo):  # another hears of it
                ledger.add_event(name, event, seen_at=self.clock.now())


@dataclass(slots=True, kw_only=True)
class Lease:
    """Our claim on a run, and until when nobody else can have taken it."""

    run_id: str
    token: int
    stop: StopToken
    until: datetime


class Guard:
    """One thread for all runs of a process: renews their leases and hears requests to cancel them."""

    def __init__(self, ledger: Ledger, *, clock: Clock, timing: Timing) -> None:
        """Start no thread yet."""
        self._ledger, self._clock, self._timing = ledger, clock, timing
        self._lock = threading.Lock()
        self._leases: list[Lease] = []
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def add(self, lease: Lease) -> None:
        """Guard one run more."""
        with self._lock:
            self._leases.append(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="gpujobs-guard", daemon=True)
                self._thread.start()

    def remove(self, lease: Lease) -> None:
        """Guard it no longer."""
        with self._lock:
            self._leases.remove(lease)

    def close(self) -> None:
        """End the thread, unless it waits for the ledger: it is a daemon."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def _watch(self) -> None:
        while not self._clock.wait(self._over, self._timing.guard_s):
            with self._lock:
                leases = list(self._leases)
            for lease in leases:
                try:
                    self._look(lease)
                except Exception:  # noqa: BLE001 - whatever the database says, the other runs keep their guard
                    _log.exception("guarding run %s", lease.run_id)

    def _look(self, lease: Lease) -> None:
        if not lease.stop.stopped and self._ledger.cancel_requested(lease.run_id):
            lease.stop.stop(Cancelled(f"run {lease.run_id} was cancelled"))
        now, lease_s = self._clock.now(), self._timing.lease_s
        if (lease.until - now).total_seconds() > lease_s * 3 / 4:
            return
        if self._ledger.renew(lease.run_id, lease.token, lease_s=lease_s, now=now):
            lease.until = now + timedelta(seconds=lease_s)
        else:
            lease.stop.stop(Busy(f"run {lease.run_id} was taken over by another process; this one lets go of it"))


def describe_bug(error: Exception) -> GpujobsError:
    """Turn an exception that nobody foresaw into one that a run can end with; the cause stays attached."""
    told = GpujobsError(f"{type(error).__name__} inside gpujobs: {error}; this is a bug of ours, please report it")
    told.__cause__ = error
    return told
