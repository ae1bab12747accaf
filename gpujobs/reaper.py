"""Finds and releases machines that no living run owns. It believes the provider's list first, then the ledger."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from gpujobs import backends, notify
from gpujobs.backends import Backend
from gpujobs.clock import StopToken
from gpujobs.ending import NOTIFY, tell_late
from gpujobs.errors import Busy, Cancelled, GpujobsError, LetGo, NotFound
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED, MachineRecord, Run
from gpujobs.lifecycle import execute
from gpujobs.models import NAME_PATTERN, Machine, Reporter
from gpujobs.recipe import Recipe
from gpujobs.settings import Account
from gpujobs.teardown import COSTS_NOTHING, mark_gone, release, spent_cny

GRACE = timedelta(minutes=2)  # a machine this young may be in nobody's ledger yet, though its run lives
OUTSET = timedelta(minutes=30)  # from a machine's boot to the beginning of its work
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A machine under our name, and what is to become of it."""

    machine: Machine
    run_id: str | None
    why: str
    action: Literal["release", "end", "ask", "leave"]
    """release it; end its run first, bringing home what there is; release it only when told to; leave it alone"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapResult:
    """What one pass of the reaper did; `failed` pairs a machine, or a backend's name, with what went wrong."""

    released: Sequence[Machine]
    left: Sequence[Found]
    failed: Sequence[tuple[str, str]]


def survey(host: Host, backend: Backend) -> Sequence[Found]:
    """List every machine of ours on one backend, and what is to become of it; raises Unavailable, BadCredentials."""
    prefix = f"gj-{host.settings.owner}-"
    listed = [machine for machine in backend.find(prefix) if machine.status not in COSTS_NOTHING]
    return [_judge(host, machine) for machine in listed if _is_ours(host, machine)]


def reap(host: Host, *, yes: bool, reporter: Reporter) -> ReapResult:
    """Release the machines of runs that are over or whose driver is long dead; with `yes`, also unknown ones.

    A provider that cannot be asked is named in `failed`, and the others are reaped all the same. A machine that the
    ledger holds, that no living run is at, and that the provider neither lists nor knows by its id is marked gone.
    Those whom a dead process did not tell of its run's end are told.
    """
    with host.reaping:
        passed = _Pass(host, yes=yes, reporter=reporter)
        for name in backends.names():
            for account in passed.accounts(name):
                passed.over(name, account)
        passed.tell_unreachable()
        _tell_untold(host, reporter)
    return ReapResult(released=passed.released, left=passed.left, failed=passed.failed)


class _Pass:
    """One pass over every account with every backend."""

    def __init__(self, host: Host, *, yes: bool, reporter: Reporter) -> None:
        self._host, self._yes, self._reporter = host, yes, reporter
        self.released: list[Machine] = []
        self.left: list[Found] = []
        self.failed: list[tuple[str, str]] = []

    def accounts(self, name: str) -> Sequence[Account]:
        """Give the accounts with a backend; where not all can be known, the host's own, and that is told."""
        try:
            return self._host.settings.accounts(name)
        except GpujobsError as error:
            self.failed.append((name, f"accounts that Prefect blocks keep are left out: {error}"))
            return replace(self._host.settings, blocks=None).accounts(name)

    def over(self, name: str, account: Account) -> None:
        """Release what is to be released of one account."""
        try:
            backend = self._host.backend_of(name, account)
            found = survey(self._host, backend)
            _mark_gone(self._host, backend, account, found)
        except GpujobsError as error:
            self.failed.append((name, str(error)))
            self._tell_of_unreleased(name, account, error)
            return
        for one in found:
            if one.action == "leave" or (one.action == "ask" and not self._yes):
                self.left.append(one)
            else:
                self._end(backend, one)

    def _tell_of_unreleased(self, name: str, account: Account, error: GpujobsError) -> None:
        """Count a pass that could release nothing of an account for each of its machines that nobody wants."""
        now = self._host.clock.now()
        for record in _alive(self._host, name, account):
            run = self._host.ledger.get_run(record.run_id)
            if run.state in ENDED or (run.driver and not _driven(run, now)):
                notify.release_failed(self._host.settings, run, record.name, str(error))

    def tell_unreachable(self) -> None:
        """Name the machines that may cost money under credentials which are not to be had here."""
        for record in self._host.ledger.machines_alive(self._host.settings.owner):
            try:
                _account_of(self._host, record)
            except GpujobsError as error:
                self._failed(record.name, record.run_id, error)

    def _failed(self, machine: str, run_id: str | None, error: GpujobsError) -> None:
        self.failed.append((machine, str(error)))
        if run_id is not None and not isinstance(error, LetGo):  # else somebody drives it again, and ends it himself
            notify.release_failed(self._host.settings, self._host.ledger.get_run(run_id), machine, str(error))

    def _end(self, backend: Backend, one: Found) -> None:
        self._reporter.note(f"releasing {one.machine.name} on {backend.name}: {one.why}")
        try:
            if one.action != "release" and one.run_id:
                _end_run(self._host, one.run_id, self._reporter)
            release(self._host, backend, one.machine, within_s=self._host.timing.release_s)
        except GpujobsError as error:
            self._failed(one.machine.name, one.run_id, error)
        else:
            notify.released(self._host.settings, one.machine.name)
            self.released.append(one.machine)


def _tell_untold(host: Host, reporter: Reporter) -> None:
    now = host.clock.now()
    for run in host.ledger.list_runs(states=ENDED, owner=host.settings.owner, phase=NOTIFY):
        if not _driven(run, now):
            try:
                tell_late(host, run.id, reporter)
            except GpujobsError as error:
                _log.info("the end of run %s is not told from here: %s", run.id, error)


def recover(host: Host) -> Sequence[str]:
    """Name the runs that nobody drives and that are not over: `lifecycle.steps` goes on with each."""
    now = host.clock.now()
    return [run.id for run in host.ledger.list_runs(states=("running",)) if not _driven(run, now)]


def _end_run(host: Host, run_id: str, reporter: Reporter) -> None:
    """Take the run up only to end it: its work is stopped, what there is comes home, its machine is released.

    Raises Busy where somebody drives it by now.
    """
    stop = StopToken()
    stop.stop(Cancelled("nobody drove this run any more; the reaper ended it"))
    try:
        outcome = execute(host, run_id, stop=stop, reporter=reporter, unended=True)
    except Busy:
        if host.ledger.get_run(run_id).state not in ENDED:  # else it came to its end meanwhile
            raise
        return
    if outcome.state == "running":
        raise LetGo(outcome.error)


def _is_ours(host: Host, machine: Machine) -> bool:
    match = NAME_PATTERN.fullmatch(machine.name)
    return match is not None and match["owner"] == host.settings.owner


def _judge(host: Host, machine: Machine) -> Found:
    now, record = host.clock.now(), host.ledger.machine(machine.name)
    if record is None:
        young = machine.created_at is not None and now - machine.created_at < GRACE
        why = "younger than the grace, and unknown to this ledger" if young else "unknown to this ledger"
        return Found(machine=machine, run_id=None, why=why, action="leave" if young else "ask")
    run = host.ledger.get_run(record.run_id)
    if run.state in ENDED:
        return Found(machine=machine, run_id=run.id, why=f"its run {run.id} is over ({run.state})", action="release")
    if not run.driver:
        return _judge_left(host, machine, run, record)
    if not _driven(run, now):
        young = run.lease_until is not None and now - run.lease_until < GRACE
        why = f"the process that drove its run {run.id} is dead"
        return Found(machine=machine, run_id=run.id, why=why, action="leave" if young else "end")
    if _is_at_work(host, record):
        return Found(machine=machine, run_id=run.id, why=f"run {run.id} is at work on it", action="leave")
    young = now - record.intent_at < GRACE
    why = f"an earlier attempt of run {run.id}"
    return Found(machine=machine, run_id=run.id, why=why, action="leave" if young else "release")


def _judge_left(host: Host, machine: Machine, run: Run, record: MachineRecord) -> Found:
    """Judge a machine whose run was left to itself, or adopted: it may work on within its time and its budget."""
    if _is_time_up(host, run, record):
        why = f"its run {run.id} was left to itself, and is past its time or its budget"
        return Found(machine=machine, run_id=run.id, why=why, action="end")
    why = f"its run {run.id} was left to itself, and works on: gpujobs resume {run.id}, or gpujobs up, goes on with it"
    return Found(machine=machine, run_id=run.id, why=why, action="ask")


def _is_at_work(host: Host, record: MachineRecord) -> bool:
    """Say whether it is of the run's newest attempt, or of one of a fleet's that has not ended."""
    attempts = host.ledger.attempts(record.run_id)
    going_on = [row.number for row in attempts if row.ended_at is None]
    return record.attempt in going_on or record.attempt == max(row.number for row in attempts)


def _driven(run: Run, now: datetime) -> bool:
    return run.lease_until is not None and run.lease_until > now


def _is_time_up(host: Host, run: Run, record: MachineRecord) -> bool:
    """Say whether a machine has cost more than its run may, or stood for longer than it needs, outset included."""
    recipe = Recipe.model_validate_json(run.recipe_json)
    used = host.clock.now() - (record.running_at or record.created_at or record.intent_at)
    if used > timedelta(seconds=recipe.max_duration + recipe.linger) + OUTSET:
        return True
    return recipe.budget is not None and spent_cny(host, recipe, run.id) >= recipe.budget


def _account_of(host: Host, record: MachineRecord) -> Account:
    """Give the account under which a machine of ours was rented, as it stands now."""
    return host.of_run(host.ledger.get_run(record.run_id)).account(record.backend)


def _mark_gone(host: Host, backend: Backend, account: Account, found: Sequence[Found]) -> None:
    """Believe that a machine is gone only of its account's list, one that is younger than the machine by the grace.

    A list may be stale, so the provider is asked for the machine itself too; that of a living run is its driver's.
    """
    listed = {one.machine.name for one in found}
    now = host.clock.now()
    for record in _alive(host, backend.name, account):
        if record.name in listed or now - record.intent_at < GRACE or _driven(host.ledger.get_run(record.run_id), now):
            continue
        if record.id is None:
            host.ledger.settle_never_made(record.name)
        elif _is_gone(backend, record):
            mark_gone(host, record.name)


def _is_gone(backend: Backend, record: MachineRecord) -> bool:
    try:
        return backend.refresh(record.machine).status in COSTS_NOTHING
    except NotFound:
        return True


def _alive(host: Host, name: str, account: Account) -> Sequence[MachineRecord]:
    """Give what may cost money of one account with backend `name`, as the ledger has it."""
    found = host.ledger.machines_alive(host.settings.owner)
    return [record for record in found if record.backend == name and _is_of(host, record, account)]


def _is_of(host: Host, record: MachineRecord, account: Account) -> bool:
    try:
        return _account_of(host, record) == account
    except GpujobsError:  # nobody knows whose it is now, so no list tells that it is gone
        return False
