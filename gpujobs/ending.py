"""How a run ends, whatever it was: what was left is released, it is written down, and those to be told are told."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpujobs import notify
from gpujobs.clock import StopToken
from gpujobs.errors import Cancelled, GpujobsError
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED
from gpujobs.models import Reporter
from gpujobs.recipe import Recipe
from gpujobs.renting import Job
from gpujobs.run_folder import RunFolder, attempt_log, names_of_outputs
from gpujobs.teardown import named, release

NOTIFY = "notify"  # the phase of a run that is over, while those to be told have not been told


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended here: `state` is succeeded, failed or cancelled, or running when this process let go of it."""

    run_id: str
    state: str
    exit_code: int
    error: str
    log: Path
    outputs: Mapping[str, Path]
    cost_cny: float | None
    machines_alive: int


def sweep(job: Job) -> None:
    """Release what an unclear create made after we had stopped looking for it."""
    ledger = job.host.ledger
    for record in ledger.machines(job.run.id):
        if record.id is None:
            backend = job.host.backend(record.backend)
            for late in named(backend, record.name):
                job.reporter.note(f"{record.name} was made after all; releasing it")
                ledger.record_created(record.name, late.id, region=late.region, created_at=late.created_at)
                release(job.host, backend, late, within_s=job.host.timing.release_s)


def keep_in_store(job: Job) -> None:
    """Put logs and outputs where every host finds them, unless they are on the disk of a host that died."""
    store = job.host.store
    last = job.host.ledger.attempts(job.run.id)[-1]
    several = job.run.kind != "job"  # whose machines have a log each, beside the one of the run
    log = RunFolder(job.folder.path, attempt_log(last.number)) if several else job.folder
    if last.log_sha256 and last.log_sha256 != log.log_sha256():
        job.reporter.note("logs and outputs are on the host that pulled them, and not in the store")
    elif store is not None:
        store.put_run(job.run.id, job.folder.path)


def finish(job: Job, failed: GpujobsError | None) -> Outcome:
    """Write down how the run ended; a cancel that came too late for the work still counts."""
    cancelled = job.stop.error
    if failed is None and isinstance(cancelled, Cancelled):
        failed = Cancelled(f"{cancelled}, when its work had succeeded and its outputs were here")
    state = "succeeded" if failed is None else "cancelled" if isinstance(failed, Cancelled) else "failed"
    outcome = outcome_now(job, state, failed.exit_code if failed else 0, str(failed or ""))
    if not outcome.machines_alive:
        job.host.slots.give_back(job.run.id)
    job.host.ledger.update_run(
        job.run.id,
        state=state,
        phase=NOTIFY if job.recipe.notify else "",
        detail="",
        ended_at=job.host.clock.now(),
        exit_code=outcome.exit_code,
        error=outcome.error,
        cost_cny=outcome.cost_cny,
    )
    return outcome


def outcome_now(job: Job, state: str, exit_code: int, error: str) -> Outcome:
    """Say how the run stands."""
    ledger = job.host.ledger
    return Outcome(
        run_id=job.run.id,
        state=state,
        exit_code=exit_code,
        error=error,
        log=job.folder.log,
        outputs=job.folder.pulled(names_of_outputs(job.recipe)),
        cost_cny=ledger.cost_cny(job.run.id),
        machines_alive=sum(record.alive for record in ledger.machines(job.run.id)),
    )


def tell(job: Job, outcome: Outcome) -> None:
    """Tell those whom the recipe names; whatever comes of it, the run has ended as it has."""
    names = job.recipe.notify
    job.reporter.phase(NOTIFY, ", ".join(names))
    try:
        run, alive = job.host.ledger.get_run(job.run.id), outcome.machines_alive
        told = notify.end_message(run, outputs=outcome.outputs, log=outcome.log, machines_alive=alive)
        troubles = notify.send(job.host.settings, names, told)
    except GpujobsError as error:
        troubles = [f"{', '.join(names)} not told: {error}"]
    for trouble in troubles:
        job.reporter.note(trouble)
    with suppress(GpujobsError):  # whoever finds it untold tells it once more
        job.host.ledger.update_run(job.run.id, phase="")


def tell_late(host: Host, run_id: str, reporter: Reporter) -> None:
    """Tell of the end of a run whose process died before it had; leaves it to others where its URLs are not known here.

    Raises Busy where somebody drives the run, GpujobsError for a name without a URL.
    """
    with host.guarded(run_id, StopToken()) as held:
        run = held.ledger.get_run(run_id)
        recipe = Recipe.model_validate_json(run.recipe_json)
        for name in recipe.notify:
            host.settings.notice_url(name)
        if run.state in ENDED and run.phase == NOTIFY:
            reporter.note(f"run {run_id} was over, and its process dead, before anybody was told")
            job = Job(host=held, run=run, recipe=recipe, stop=StopToken(), reporter=reporter)
            tell(job, outcome_now(job, run.state, run.exit_code or 0, run.error))
