"""Renting: the intent first, then one create, and where its reply is unclear, looking before anything else."""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

from gpujobs import teardown
from gpujobs.backends import Backend
from gpujobs.clock import StopToken
from gpujobs.errors import Ambiguous, GpujobsError, NoCapacity, Unavailable
from gpujobs.host import Host
from gpujobs.ledger import Ledger
from gpujobs.ledger_rows import Attempt as AttemptRow
from gpujobs.ledger_rows import MachineRecord, Run
from gpujobs.models import Machine, Reporter, machine_name
from gpujobs.plan import Choice, check_local, make_plan, price_bound
from gpujobs.recipe import Recipe
from gpujobs.run_folder import LOG, RunFolder

SLOT_S = 5.0  # between two looks for a place under the team's own limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What stays the same over a run's attempts."""

    host: Host
    run: Run
    recipe: Recipe
    stop: StopToken
    reporter: Reporter
    machines: int = 1  # so many at a time: what is left of the budget is for all of them
    worked_s: float = 0.0  # of max_duration, by machines of the run that another process drove
    log_name: str = LOG  # where the attempt's log is kept in the run's folder
    numbering: threading.Lock = field(default_factory=threading.Lock)  # one attempt gets its number at a time

    @property
    def folder(self) -> RunFolder:
        """The run's folder here."""
        return RunFolder(self.host.settings.runs / self.run.id, self.log_name)


def await_choices(job: Job) -> Sequence[Choice]:
    """Find what may be rented; where the recipe allows to wait for a free card, wait.

    Raises NoCapacity that says why nothing is free, BadInput, Cancelled.
    """
    clock = job.host.clock
    started = clock.monotonic()
    check_local(job.host, job.recipe)
    while True:
        try:
            job.stop.raise_if_stopped()
            plan = make_plan(job.host, job.recipe)
            trouble = plan.nothing_free
        except Unavailable as error:
            plan, trouble = None, str(error)
        if plan and plan.choices:
            job.host.ledger.update_run(job.run.id, estimate_cny=plan.estimate_cny)
            return plan.choices
        waited_s = clock.monotonic() - started
        if waited_s >= job.recipe.retry.wait:
            raise NoCapacity(trouble)
        job.reporter.progress("waiting for a free card", round(waited_s), job.recipe.retry.wait)
        job.stop.sleep(clock, job.host.timing.stock_s * job.host.dice.uniform(0.8, 1.2))


def rent_first(job: Job, choices: Sequence[Choice]) -> Machine:
    """Rent the first of `choices` that is to be had.

    Raises NoCapacity when all of them were taken meanwhile; what `rent` raises otherwise.
    """
    gone: list[str] = []
    try:
        for choice in choices:
            if full := job.host.slots.take(job.run.id, choice.offer.gpu, choice.offer.gpu_count):
                gone.append(full)
                continue
            try:
                return rent(job, choice)
            except NoCapacity as error:
                gone.append(str(error))
    except BaseException:
        job.host.slots.give_back(job.run.id)
        raise
    job.host.slots.give_back(job.run.id)
    raise NoCapacity("; ".join(dict.fromkeys(gone)) or "nothing that fits is free now")


def await_slot(job: Job, choices: Sequence[Choice]) -> bool:
    """Wait until the team's own limits leave room for one of `choices`; False where nothing had to be waited for."""
    told = ""
    while full := _no_slot(job, choices):
        if full != told:
            job.reporter.phase("provision", f"waiting: {full}")
            told = full
        job.stop.sleep(job.host.clock, SLOT_S * job.host.dice.uniform(0.8, 1.2))
    return bool(told)


def _no_slot(job: Job, choices: Sequence[Choice]) -> str:
    """Take places for the first of `choices` that has room, and give "", else why there is none."""
    full: list[str] = []
    for gpu, count in dict.fromkeys((choice.offer.gpu, choice.offer.gpu_count) for choice in choices):
        why = job.host.slots.take(job.run.id, gpu, count)
        if not why:
            return ""
        full.append(why)
    return "; ".join(full)


def rent(job: Job, choice: Choice) -> Machine:
    """Rent what `choice` offers, under a name that no other attempt ever had.

    Raises NoCapacity, Refused, BadCredentials or Unavailable: then nothing was made, as far as the provider shows;
    what it makes later all the same is released at the run's end, or by the reaper, which both know the name.
    """
    host, offer = job.host, choice.offer
    backend = host.backend(offer.backend)
    with job.numbering:
        number = 1 + max((row.number for row in host.ledger.attempts(job.run.id)), default=0)
        name = machine_name(owner=job.run.owner, run=job.run.id, attempt=number)
        host.ledger.check_hold()  # the log may be another's by now
        if job.run.kind == "job":  # the machines of others have a log each
            job.folder.set_log_aside(number - 1)
        job.stop.raise_if_stopped()
        _write_intent(job, choice, name, number)
    try:
        machine = _create(job, backend, choice, name)
    except GpujobsError as error:
        host.ledger.update_attempt(name, ended_at=host.clock.now(), error=str(error), state="failed")
        raise
    return _created(job, machine)


def resume(job: Job, row: AttemptRow) -> Machine | None:
    """Find the machine of an attempt whose driver is dead; None where it was never made."""
    host = job.host
    record = host.ledger.machine(row.name)
    if record is None:
        return None
    offer = json.loads(row.offer_json)
    host.slots.hold(job.run.id, offer["gpu"], offer["gpu_count"])
    if record.id is not None:
        return record.machine
    backend = host.backend(row.backend)
    found = teardown.settle(host, backend, row.name, window_s=host.timing.settle_s, stop=StopToken())
    if found is None:
        host.ledger.settle_never_made(row.name)
        return None
    return _created(job, found)


def write_intent(
    ledger: Ledger, attempt: AttemptRow, *, price_cny_per_h: float | None, at: datetime, host_key: str = ""
) -> None:
    """Write an attempt down, and that its machine is asked for; raises Busy where either is known already."""
    ledger.add_attempt(attempt)
    ledger.intend(
        MachineRecord(
            name=attempt.name,
            run_id=attempt.run_id,
            attempt=attempt.number,
            backend=attempt.backend,
            region=attempt.region,
            host_key=host_key,
            price_cny_per_h=price_cny_per_h,
            intent_at=at,
        )
    )


def _write_intent(job: Job, choice: Choice, name: str, number: int) -> None:
    offer, now = choice.offer, job.host.clock.now()
    attempt = AttemptRow(
        run_id=job.run.id,
        number=number,
        name=name,
        backend=offer.backend,
        region=offer.region,
        offer_json=json.dumps(asdict(offer), ensure_ascii=False),
        state="running",
        started_at=now,
    )
    bound = price_bound(job.recipe, offer.price_cny_per_h)
    write_intent(job.host.ledger, attempt, price_cny_per_h=bound, at=now)


def _create(job: Job, backend: Backend, choice: Choice, name: str) -> Machine:
    try:
        return backend.create(job.recipe, choice.offer, name=name, image=choice.image)
    except Ambiguous as error:
        job.reporter.note(f"{error}; looking for {name} at {backend.name} before anything else is tried")
        timing = job.host.timing
        found = teardown.settle(job.host, backend, name, window_s=timing.settle_s, stop=StopToken())
        if found is None:
            job.host.ledger.settle_never_made(name)
            raise Unavailable(f"{backend.name} did not make {name}: {error}") from error
        return replace(found, name=name)
    except GpujobsError:
        job.host.ledger.settle_never_made(name)  # the provider said plainly that it was not made
        raise


def _created(job: Job, machine: Machine) -> Machine:
    now = machine.created_at or job.host.clock.now()
    job.host.ledger.record_created(machine.name, machine.id, region=machine.region, created_at=now)
    return machine
