"""The SQL record of runs, attempts, machines, events, bills and snapshots: what survives when a process does not.

Safe to use from many threads and many processes. Every write is one short transaction that is on the disk when the
method returns. Times are the caller's, aware. No secret and no access to a machine is ever written here.
"""

import difflib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Self, Unpack

from sqlalchemy import func, insert, literal, select, update

from gpujobs.clock import Clock, SystemClock
from gpujobs.errors import BadInput
from gpujobs.ledger_database import Database, Hold, printable
from gpujobs.ledger_engine import open_engine
from gpujobs.ledger_rows import (
    ENDED,
    Attempt,
    AttemptChanges,
    Bill,
    EventRecord,
    MachineChanges,
    MachineRecord,
    Run,
    RunChanges,
    SnapshotRecord,
    TaskChanges,
    TaskRecord,
)
from gpujobs.ledger_tables import UtcTime, attempts, bills, events, machines, runs, snapshots, tasks
from gpujobs.models import Event

_ROWS_AT_ONCE = 100  # a statement takes a limited number of values


def open_ledger(url: str, *, clock: Clock | None = None) -> "Ledger":
    """Open the ledger at `url`, made or migrated where needed; raises BadInput where it cannot be one."""
    return Ledger(Database(open_engine(url), clock=clock or SystemClock()))


class Ledger:
    """An open ledger; close it, or use it in a `with`.

    A server that is away is waited for, five minutes at most: then LetGo is raised.
    """

    def __init__(self, database: Database) -> None:
        """Keep everything in `database`."""
        self._database = database

    def held(self, run_id: str, token: int) -> "Ledger":
        """Give this ledger to the holder of a claim: each write raises Busy once another has claimed the run.

        It is checked in the write's own transaction, so that a process which was frozen past its lease writes nothing.
        """
        return Ledger(self._database.held(Hold(run_id, token)))

    def check_hold(self) -> None:
        """Raise Busy where another process has claimed the run that this ledger is held for."""
        self._database.check_hold()

    def __enter__(self) -> Self:
        """Give the ledger itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close every connection; idempotent."""
        self._database.close()

    # Runs

    def add_run(self, run: Run) -> None:
        """Write a new run down; raises Busy where its id is taken."""
        self._database.write(insert(runs).values(**printable(asdict(run))), f"run {run.id}")

    def get_run(self, ref: str) -> Run:
        """Find a run by its id, by its name (the latest of that name), or by a prefix that one id alone has.

        Raises BadInput that names the nearest ones.
        """
        by_id = self._database.rows(Run, select(runs).where(runs.c.id == ref))
        latest = select(runs).order_by(runs.c.created_at.desc(), runs.c.id.desc())
        if found := by_id or self._database.rows(Run, latest.where(runs.c.name == ref).limit(1)):
            return found[0]
        started = (
            self._database.rows(Run, latest.where(runs.c.id.startswith(ref, autoescape=True)).limit(4)) if ref else []
        )
        if len(started) == 1:
            return started[0]
        raise BadInput(self._no_such_run(ref, started))

    def list_runs(
        self,
        *,
        limit: int | None = None,
        states: Collection[str] = (),
        owner: str | None = None,
        phase: str | None = None,
    ) -> Sequence[Run]:
        """Give runs, newest first; `states` empty means all, as None does."""
        query = select(runs).order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(limit)
        if states:
            query = query.where(runs.c.state.in_(states))
        query = query if phase is None else query.where(runs.c.phase == phase)
        return self._database.rows(Run, query if owner is None else query.where(runs.c.owner == owner))

    def update_run(self, run_id: str, **changes: Unpack[RunChanges]) -> None:
        """Change fields of a run; raises BadInput where there is none."""
        self._database.change(update(runs).where(runs.c.id == run_id), changes, f"run {run_id}")

    def claim_run(
        self, run_id: str, driver: str, *, lease_s: float, now: datetime, unended: bool = False
    ) -> int | None:
        """Take the run for `driver` until `now + lease_s`; None while another's lease runs. Atomic.

        Gives the claim's token, larger than that of any claim before; `unended`: only a run that is not over.
        """
        free = (runs.c.driver.in_(["", driver])) | (runs.c.lease_until < now) | runs.c.lease_until.is_(None)
        claim = update(runs).where(runs.c.id == run_id, free).returning(runs.c.fence)
        claim = claim.where(runs.c.state.not_in(ENDED)) if unended else claim
        values = {"driver": driver, "lease_until": now + timedelta(seconds=lease_s), "fence": runs.c.fence + 1}
        token: int | None = self._database.write_and_read(claim.values(**values), f"run {run_id}", "driver")
        return token

    def renew(self, run_id: str, token: int, *, lease_s: float, now: datetime) -> bool:
        """Lengthen the claim of that token; False when another has taken the run: stop driving it."""
        held = update(runs).where(runs.c.id == run_id, runs.c.fence == token, runs.c.driver != "")
        lease = held.values(lease_until=now + timedelta(seconds=lease_s))
        return self._database.write(lease, f"run {run_id}", "lease_until") == 1

    def release_claim(self, run_id: str, driver: str, *, token: int | None = None) -> None:
        """Let go of the run, if `driver` holds it (by the claim of that `token`). Idempotent."""
        held = update(runs).where(runs.c.id == run_id, runs.c.driver == driver)
        held = held if token is None else held.where(runs.c.fence == token)
        self._database.write(held.values(driver="", lease_until=None), f"run {run_id}", "driver")

    def request_cancel(self, run_id: str, at: datetime) -> None:
        """Ask whoever drives the run to stop; the first time stays. Raises BadInput where there is no such run."""
        changes = {"cancel_requested_at": func.coalesce(runs.c.cancel_requested_at, literal(at, UtcTime))}
        self._database.change(update(runs).where(runs.c.id == run_id), changes, f"run {run_id}")

    def cancel_requested(self, run_id: str) -> bool:
        """Say whether somebody has asked the run to stop."""
        return self._database.value(select(runs.c.cancel_requested_at).where(runs.c.id == run_id)) is not None

    # Attempts

    def add_attempt(self, attempt: Attempt) -> None:
        """Write a new attempt down; raises Busy where its number or name is taken."""
        self._database.write(insert(attempts).values(**printable(asdict(attempt))), f"attempt {attempt.name}")

    def update_attempt(self, name: str, **changes: Unpack[AttemptChanges]) -> None:
        """Change fields of the attempt called `name`; raises BadInput where there is none."""
        self._database.change(update(attempts).where(attempts.c.name == name), changes, f"attempt {name}")

    def attempts(self, run_id: str) -> Sequence[Attempt]:
        """Give a run's attempts, first to last."""
        return self._database.rows(
            Attempt, select(attempts).where(attempts.c.run_id == run_id).order_by(attempts.c.number)
        )

    # Tasks

    def add_tasks(self, found: Sequence[TaskRecord]) -> None:
        """Write a run's tasks down; those that are there already stay as they are."""
        if found:
            rows = [printable(asdict(task)) for task in found]
            new = self._database.insert(tasks).on_conflict_do_nothing(index_elements=["run_id", "number"])
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                self._database.write(new.values(rows[start : start + _ROWS_AT_ONCE]), f"tasks of {found[0].run_id}")

    def put_tasks(self, found: Sequence[TaskRecord]) -> None:
        """Write tasks of one run, over those of the same numbers; in one transaction, however many there are."""
        if found:
            new = self._database.insert(tasks)
            changed = {column.name: column for column in new.excluded if not column.primary_key}
            new = new.on_conflict_do_update(index_elements=["run_id", "number"], set_=changed)
            rows = [printable(asdict(task)) for task in found]
            self._database.write(new, f"tasks of {found[0].run_id}", "all", rows=rows)

    def update_task(self, run_id: str, number: int, **changes: Unpack[TaskChanges]) -> None:
        """Change fields of a task; raises BadInput where there is none."""
        where = update(tasks).where(tasks.c.run_id == run_id, tasks.c.number == number)
        self._database.change(where, changes, f"task {number} of {run_id}")

    def tasks(self, run_id: str) -> Sequence[TaskRecord]:
        """Give a run's tasks by index; none where it has no table of them."""
        return self._database.rows(TaskRecord, select(tasks).where(tasks.c.run_id == run_id).order_by(tasks.c.number))

    # Machines

    def intend(self, machine: MachineRecord) -> None:
        """Write down, before every create, that a machine is about to be asked for; Busy where the name is taken."""
        self._database.write(insert(machines).values(**printable(asdict(machine))), f"machine {machine.name}")

    def record_created(self, name: str, machine_id: str, **changes: Unpack[MachineChanges]) -> None:
        """Settle an intent: the provider made it, as `machine_id`."""
        self.update_machine(name, **(changes | MachineChanges(id=machine_id, settled=True)))

    def settle_never_made(self, name: str) -> None:
        """Settle an intent: the provider surely never made it, so it costs nothing."""
        self.update_machine(name, id=None, settled=True)

    def update_machine(self, name: str, **changes: Unpack[MachineChanges]) -> None:
        """Change fields of a machine; raises BadInput where there is none."""
        self._database.change(update(machines).where(machines.c.name == name), changes, f"machine {name}")

    def mark_gone(self, name: str, at: datetime) -> None:
        """Note that the provider no longer lists it; the first time stays. Idempotent."""
        changes = {
            "gone_at": func.coalesce(machines.c.gone_at, literal(at, UtcTime)),
            "settled": True,
            "status": "gone",
        }
        self._database.change(update(machines).where(machines.c.name == name), changes, f"machine {name}")

    def machine(self, name: str) -> MachineRecord | None:
        """Give the machine of that name, None where the ledger knows none."""
        found = self._database.rows(MachineRecord, select(machines).where(machines.c.name == name))
        return found[0] if found else None

    def machines(self, run_id: str) -> Sequence[MachineRecord]:
        """Give a run's machines, in the order of their attempts."""
        return self._database.rows(
            MachineRecord, select(machines).where(machines.c.run_id == run_id).order_by(machines.c.attempt)
        )

    def machines_alive(self, owner: str | None = None) -> Sequence[MachineRecord]:
        """Give every machine that may cost money, open intents included, oldest first."""
        maybe = machines.c.id.is_not(None) | machines.c.settled.is_(False)
        query = select(machines).where(machines.c.gone_at.is_(None), maybe).order_by(machines.c.intent_at)
        if owner is not None:
            query = query.join(runs, runs.c.id == machines.c.run_id).where(runs.c.owner == owner)
        return self._database.rows(MachineRecord, query)

    # Events

    def add_event(self, machine: str, event: Event, *, seen_at: datetime) -> bool:
        """Keep an event of the machine called `machine`; False when it is known already."""
        values = {
            "machine": machine,
            "key": json.dumps(event.key, ensure_ascii=False),
            "status": event.status.value,
            "raw": event.raw_status,
            "at": event.at,
            "seen_at": seen_at,
        }
        new = self._database.insert(events).values(**printable(values))
        new = new.on_conflict_do_nothing(index_elements=["machine", "key"])
        # not by the number of rows: PostgreSQL's driver does not tell it of an insert that numbers them
        return self._database.write_and_read(new.returning(events.c.number), f"event of {machine}") is not None

    def events(self, run_id: str) -> Sequence[EventRecord]:
        """Give what was reported of a run's machines, in the order in which we heard of it."""
        columns = [column for column in events.c if column is not events.c.number]
        query = select(*columns).join(machines).where(machines.c.run_id == run_id).order_by(events.c.number)
        return self._database.rows(EventRecord, query)

    # Bills

    def put_bill(self, bill: Bill) -> None:
        """Write an attempt's bill, over the one before."""
        self._database.write(
            self._database.upsert(bills, asdict(bill), ["run_id", "attempt"]),
            f"bill of {bill.run_id}, attempt {bill.attempt}",
        )

    def bills(self, run_id: str) -> Sequence[Bill]:
        """Give a run's bills, by attempt."""
        return self._database.rows(Bill, select(bills).where(bills.c.run_id == run_id).order_by(bills.c.attempt))

    def cost_cny(self, run_id: str) -> float | None:
        """Sum a run's bills; None while any part is unknown: a bill without a cost, or a machine without a bill."""
        costs = {bill.attempt: bill.cost_cny for bill in self.bills(run_id)}
        for machine in self.machines(run_id):
            if machine.id or machine.alive:
                costs.setdefault(machine.attempt, None)
        known = [cost for cost in costs.values() if cost is not None]
        return sum(known) if len(known) == len(costs) else None

    # Snapshots

    def add_snapshot(self, snapshot: SnapshotRecord) -> None:
        """Write a snapshot down, over one of the same name, tag, backend and region."""
        self._database.write(
            self._database.upsert(snapshots, asdict(snapshot), ["name", "tag", "backend", "region"]),
            f"snapshot {snapshot.name}",
        )

    def find_snapshot(self, name: str, tag: str | None = None, *, backend: str | None = None) -> SnapshotRecord | None:
        """Give the snapshot of that name and tag, or the latest made of that name; None where there is none."""
        query = select(snapshots).where(snapshots.c.name == name).order_by(snapshots.c.made_at.desc()).limit(1)
        query = query if tag is None else query.where(snapshots.c.tag == tag)
        found = self._database.rows(
            SnapshotRecord, query if backend is None else query.where(snapshots.c.backend == backend)
        )
        return found[0] if found else None

    def snapshots(self) -> Sequence[SnapshotRecord]:
        """Give every snapshot, latest first."""
        return self._database.rows(
            SnapshotRecord, select(snapshots).order_by(snapshots.c.made_at.desc(), snapshots.c.name)
        )

    def _no_such_run(self, ref: str, started: Sequence[Run]) -> str:
        if started:
            return f"{ref} is the beginning of several runs: {', '.join(run.id for run in started)}; write more of it"
        known = [name for run in self.list_runs(limit=1000) for name in (run.id, run.name)]
        near = difflib.get_close_matches(ref, dict.fromkeys(known), n=3)
        return f"no run {ref!r}; {'the nearest: ' + ', '.join(near) if near else 'gpujobs ls shows all'}"
