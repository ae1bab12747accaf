"""The tasks of a recipe: dealt out to a few machines, brought home, and written into the ledger's table of them."""

import json
import shutil
from collections.abc import Sequence
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
from gpujobs.settings import private_folder, private_opener
from gpujobs.sweep_clerk import Cell, Clerk

_FILES = "call"  # in a run's folder while it runs: what goes up
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
    machines, files = job.recipe.machines_at_once, job.folder.path / _FILES
    _write_files(files, job.recipe)
    inner = replace(
        job,
        recipe=of_machines(job.recipe, files),
        machines=machines,
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
    ledger.put_tasks([replace(row, state=states[row.state], error=str(failed), ended_at=now) for row in left])


def of_machines(recipe: Recipe, files: Path | None = None) -> Recipe:
    """Give the recipe of each machine: it takes tasks, and they bring home what they leave."""
    mounts = {**recipe.file_mounts, IN_WORKDIR: str(files)} if files else recipe.file_mounts
    ours = {"file_mounts": mounts, "run": foreman_script(""), "outputs": {}}
    return recipe.model_copy(update={**ours, "matrix": {}, "tasks": [], "only_tasks": [], "concurrency": 1})


def _write_files(folder: Path, recipe: Recipe) -> None:
    private_folder(folder)
    private_folder(folder / "out")
    for name, text in {**cell_files(), "run.sh": recipe.run}.items():
        with open(folder / name, "w", encoding="utf-8", newline="", opener=private_opener) as file:
            file.write(text)


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
