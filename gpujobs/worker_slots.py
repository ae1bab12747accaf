"""Limits by GPU type: Prefect's global concurrency limits named `gpujobs:RTX 4090`, held by leases beside the runs.

A lease is taken before a machine is rented, given back once it is gone, and renewed by one thread's turn for all runs.
One that is lost (the server was away for too long, or forgot it) is taken again: the machine is there, and works on.
"""

import json
import logging
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from gpujobs import prefect_api
from gpujobs.clock import Clock
from gpujobs.crash import Point
from gpujobs.errors import BadInput, GpujobsError
from gpujobs.ledger import Ledger
from gpujobs.ledger_rows import ENDED
from gpujobs.settings import private_opener

PREFIX = "gpujobs:"
LEASE_S = 120.0  # so long after a host has died its places are free, unless another host of its home goes on with them
TEND_S = 20.0
_FULL_S = 3.0  # for so long nobody asks again after a limit that is used up, or that there is none

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Places that a run has, or (where `lease` is None) ought to have; `lease` is "" where there is no such limit."""

    limit: str
    count: int
    lease: str | None = None


class LeasedSlots:
    """The limits of a Prefect server; safe for many threads."""

    def __init__(self, api: str, ledger: Ledger, path: Path, *, driver: str, clock: Clock) -> None:
        """Ask the API at `api`; `ledger` tells when a machine is gone, and which runs `driver` drives.

        The leases are written down at `path`, so that the next host of this home goes on with them.
        """
        self._api, self._ledger, self._path, self._driver, self._clock = api, ledger, path, driver, clock
        self._lock = threading.Lock()
        self._holds = _read(path)
        self._returned: list[str] = []  # leases that the server has not heard of yet
        self._full: dict[tuple[str, int], float] = {}  # until when nobody asks again
        self._absent: dict[str, float] = {}  # limits that do not exist: until when nobody asks again
        self._told: set[str] = set()

    def take(self, run_id: str, gpu: str, count: int) -> str:
        """Take the places for a machine that is to be rented; give why not, or ""."""
        limit = PREFIX + gpu
        with self._lock:
            held = self._holds.get(run_id)
        if held and held.lease is not None and (held.limit, held.count) == (limit, count):
            return ""
        why, lease = self._ask(limit, count)
        if not why:
            self.give_back(run_id)
            self._keep(run_id, Hold(limit=limit, count=count, lease=lease))
        return why

    def hold(self, run_id: str, gpu: str, count: int) -> None:
        """Have `tend` take the places, unless they are held."""
        with self._lock:
            self._holds.setdefault(run_id, Hold(limit=PREFIX + gpu, count=count))

    def give_back(self, run_id: str) -> None:
        """Give back what the run holds; what the server does not hear now is said again by `tend`."""
        with self._lock:
            held = self._holds.pop(run_id, None)
            self._told.discard(run_id)
            self._full.clear()
            self._write()
        if held and held.lease:
            self._return(held.lease)

    def tend(self) -> None:
        """Renew the leases, take lost ones again, give back those of machines that are gone; called now and then."""
        with self._lock:
            holds, returned = dict(self._holds), list(self._returned)
            self._returned.clear()
        for lease in returned:
            self._return(lease)
        for run_id, held in holds.items():
            if self._is_over(run_id):
                self.give_back(run_id)
            elif held.lease is None:
                self._take_again(run_id, held)
            elif held.lease and not prefect_api.renew_lease(self._api, held.lease, lease_s=LEASE_S):
                _log.warning("run %s has lost its places of %s; they are taken again", run_id, held.limit)
                self._take_again(run_id, held)

    def _ask(self, limit: str, count: int) -> tuple[str, str]:
        """Ask for places: why not, or the lease, which is "" where there is no such limit."""
        taken = f"all places of the team's limit {limit} are taken"
        with self._lock:
            now = self._clock.monotonic()
            if now < self._full.get((limit, count), 0.0):
                return taken, ""
            if now < self._absent.get(limit, 0.0):
                return "", ""
        try:
            lease = prefect_api.take_lease(self._api, limit, count, lease_s=LEASE_S)
        except BadInput:
            return f"the team's limit {limit} is smaller than the {count} GPUs of one machine", ""
        except GpujobsError as error:
            known_to_be_none = limit in self._absent
            return "" if known_to_be_none else f"{limit} could not be asked for: {error}", ""
        with self._lock:
            if lease is None:
                self._full[limit, count] = self._clock.monotonic() + _FULL_S
            self._absent.pop(limit, None)
            if lease == "":
                self._absent[limit] = self._clock.monotonic() + _FULL_S
        return (taken, "") if lease is None else ("", lease)

    def _take_again(self, run_id: str, held: Hold) -> None:
        why, lease = self._ask(held.limit, held.count)
        with self._lock:
            still = self._holds.get(run_id) is held
            if still:
                self._holds[run_id] = Hold(limit=held.limit, count=held.count, lease=None if why else lease)
                self._write()
            news = bool(why) and run_id not in self._told
            self._told.add(run_id) if why else self._told.discard(run_id)
        if not still and lease:
            self._return(lease)
        if news:
            _log.warning("run %s works on without its places of %s: %s", run_id, held.limit, why)

    def _keep(self, run_id: str, hold: Hold) -> None:
        with self._lock:
            self._holds[run_id] = hold
            self._write()

    def _write(self) -> None:
        """Write the leases down at one blow; called with the lock held. What is not written runs out by itself."""
        draft = self._path.with_suffix(".new")
        try:
            with open(draft, "w", encoding="utf-8", opener=private_opener) as file:
                json.dump({run_id: asdict(hold) for run_id, hold in self._holds.items() if hold.lease}, file)
            with Point("file", "put in place", self._path.name):
                draft.replace(self._path)
        except OSError as error:
            _log.warning("%s could not be written: %s", self._path, error)

    def _return(self, lease: str) -> None:
        try:
            prefect_api.end_lease(self._api, lease)
        except GpujobsError:
            with self._lock:
                self._returned.append(lease)

    def _is_over(self, run_id: str) -> bool:
        """Whether the run's machine is gone, or another host drives the run, and holds places of its own."""
        try:
            run = self._ledger.get_run(run_id)
        except BadInput:  # another ledger than that of the host before us
            return True
        alive = any(machine.alive for machine in self._ledger.machines(run_id))
        return (run.state in ENDED and not alive) or (bool(run.driver) and run.driver != self._driver)


def _read(path: Path) -> dict[str, Hold]:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        return {run_id: Hold(**hold) for run_id, hold in written.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        _log.warning("%s is not readable (%s): the leases in it run out by themselves", path, error)
        return {}
