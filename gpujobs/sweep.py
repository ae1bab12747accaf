"""The tasks of a recipe: dealt out to a few machines, brought home, and written into the ledger's table of them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from gpujobs.errors import GpujobsError, JobFailed, MachineLost
from gpujobs.fleet_run import Crew, Log
from gpujobs.fleet_script import foreman_script
from gpujobs.ledger_rows import ENDED, TaskRecord
from gpujobs.recipe import Recipe
from gpujobs.remote import IN_WORKDIR, cell_files
from gpujobs.renting import Job
from gpujobs.run_folder import CALL_FOLDER, write_code
from gpujobs.sweep_clerk import Cell, Clerk
from gpujobs.sweep_home import left_there, read_metrics

_OPEN = frozenset({"waiting", "running"})
_SHOWN = 10


def add_tasks(job: Job) -> None:
    """Write the run's tasks down; those that are there stay as they are."""
    job.host.ledger.add_tasks(
        [
            TaskRecord(run_id=job.run.id, number=number, parameters=json.dumps(values, ensure_ascii=False))
            for number, values in job.recipe.wanted_tasks.items()
        ]
    )


def run_tasks(job: Job) -> None:
    """Do the tasks that are not over; where the run had ended before, all that had not succeeded.

    Raises JobFailed or MachineLost that says how many did not succeed; OverLimit, Cancelled and what else ended it.
    """
    machines, files = job.recipe.machines_at_once, job.folder.path / CALL_FOLDER
    write_code(files, {**cell_files(), "run.sh": job.recipe.run})
    inner = replace(
        job,
        recipe=of_machines(job.recipe, files),
        machines=machines,
        worked_s=_worked_s(job),
        reporter=Log(job.folder, job.reporter, phases=True),
    )
    clerk, crew = Clerk(job), Crew(machines=machines)
    crew.dealer.add(_cells(job, clerk))
    crew.dealer.start(f"gpujobs-{job.run.id}-tasks")
    clerk.start()
    crew.close()
    try:
        failed = crew.work(inner)
    finally:
        crew.dealer.close()
        clerk.close()
        shutil.rmtree(files, ignore_errors=True)
    if failed or clerk.error:
        raise failed or clerk.error or MachineLost("the tasks ended early")
    _check_all(job)


def end_tasks(job: Job, failed: GpujobsError) -> None:
    """Write down that the tasks which are not over will not be done."""
    ledger, lost, now = job.host.ledger, isinstance(failed, MachineLost), job.host.clock.now()
    left = [row for row in ledger.tasks(job.run.id) if row.state in _OPEN]
    states = {"running": "lost" if lost else "cancelled", "waiting": "cancelled"}
    ended = [replace(row, state=states[row.state], error=str(failed), ended_at=now) for row in left]
    ledger.put_tasks([replace(row, metrics=read_metrics(job.folder.task(row.number))) for row in ended])


def of_machines(recipe: Recipe, files: Path | None = None) -> Recipe:
    """Give the recipe of each machine: it takes tasks, and they bring home what they leave."""
    mounts = {**recipe.file_mounts, IN_WORKDIR: str(files)} if files else recipe.file_mounts
    ours = {"file_mounts": mounts, "run": foreman_script(""), "outputs": {}}
    return recipe.model_copy(update={**ours, "matrix": {}, "tasks": [], "only_tasks": [], "concurrency": 1})


def left_on(job: Job, machine: str) -> Mapping[Path, Mapping[str, str]]:
    """Say what the tasks that were at a machine may have left there: by a folder here, names and paths there."""
    if job.run.kind != "tasks":
        return {}
    outputs = Recipe.model_validate_json(job.run.recipe_json).outputs
    rows = [row for row in job.host.ledger.tasks(job.run.id) if row.state == "running" and row.machine == machine]
    return {job.folder.task(row.number): left_there(row.number, outputs) for row in rows}


def _worked_s(job: Job) -> float:
    """Give the seconds since the run's first machine was up; 0 where it ended since, and is begun anew."""
    since = [one.running_at for one in job.host.ledger.machines(job.run.id) if one.running_at]
    if not since or job.run.state in ENDED:
        return 0.0
    return max(0.0, (job.host.clock.now() - min(since)).total_seconds())


def _cells(job: Job, clerk: Clerk) -> Sequence[Cell]:
    begins = set(_OPEN)
    if job.run.state in ENDED:
        begins |= {"failed", "lost", "cancelled"}
    count, found = len(job.recipe.all_tasks), []
    for row in job.host.ledger.tasks(job.run.id):
        if row.state in begins:
            ours = {"GPUJOBS_TASK_INDEX": str(row.number), "GPUJOBS_TASK_COUNT": str(count)}
            envs = {**json.loads(row.parameters), **ours}
            content = json.dumps({"envs": envs, "outputs": job.recipe.outputs}).encode()
            found.append(Cell(number=row.number, future=Future(), content=content, size=len(content), clerk=clerk))
            clerk.waits(row.number)
    return found


def _check_all(job: Job) -> None:
    rows = job.host.ledger.tasks(job.run.id)
    bad = [row for row in rows if row.state != "succeeded"]
    if not bad:
        return
    shown = ", ".join(str(row.number) for row in bad[:_SHOWN]) + (", …" if len(bad) > _SHOWN else "")
    kind = MachineLost if all(row.state == "lost" for row in bad) else JobFailed
    raise kind(
        f"{len(bad)} of {len(rows)} tasks did not succeed ({shown}); why: gpujobs status {job.run.id}; "
        f"to run these again: gpujobs submit --retry-failed {job.run.id}"
    )
