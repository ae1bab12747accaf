"""A run, from the ledger's point of view: opened, and driven step by step by one process at a time.

The life of a run is a generator of steps, so that whoever drives it may run each step where he likes: the command
line in its own thread, the flow as a Prefect task in a pool. Called again with the same run id, it goes on from what
the ledger, the provider and the machine say: resume, retry, and recovery after a kill are this one path.
"""

import uuid
from contextlib import closing

from gpujobs.clock import StopToken
from gpujobs.ending import Outcome
from gpujobs.errors import Busy
from gpujobs.host import Host
from gpujobs.ledger_rows import Kind, Run
from gpujobs.lifecycle_attempts import Life, Step, Steps
from gpujobs.models import Reporter
from gpujobs.news import NewsWriter
from gpujobs.recipe import Recipe
from gpujobs.renting import Job
from gpujobs.run_folder import RunFolder

__all__ = ["Outcome", "Step", "Steps", "execute", "new_run_id", "open_run", "steps"]


def new_run_id() -> str:
    """Make an id for a run that no flow run stands for: 10 hexadecimal digits."""
    return uuid.uuid4().hex[-10:]


def open_run(
    host: Host, recipe: Recipe, *, run_id: str, flow_run_id: str | None = None, kind: Kind | None = None
) -> None:
    """Write the run into the ledger and make its folder; the same id again is fine.

    `kind` left out: the recipe says whether it has tasks.
    """
    RunFolder(host.settings.runs / run_id).make(recipe)
    try:
        host.ledger.add_run(
            Run(
                id=run_id,
                name=recipe.name,
                owner=host.settings.owner,
                recipe_json=recipe.model_dump_json(),
                state="submitted",
                created_at=host.clock.now(),
                flow_run_id=flow_run_id,
                workdir=recipe.workdir,
                kind=kind or ("tasks" if recipe.wanted_tasks else "job"),
            )
        )
    except Busy:
        return


def execute(host: Host, run_id: str, *, stop: StopToken, reporter: Reporter, unended: bool = False) -> Outcome:
    """Drive a run to its end in this thread; raises Busy as `steps` does."""
    life = steps(host, run_id, stop=stop, reporter=reporter, unended=unended)
    error: Exception | None = None
    with closing(life):  # whatever else ends us gives the lease back now, not when the garbage is collected
        while True:
            try:
                step = life.throw(error) if error else next(life)
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome
            error = None
            try:
                step.call()
            except Exception as raised:  # noqa: BLE001 - it belongs to the run, which decides what follows
                error = raised


def steps(host: Host, run_id: str, *, stop: StopToken, reporter: Reporter, unended: bool = False) -> Steps:
    """Give the run's steps one by one; throw into it what a step raised. Exhaust it: its value is the outcome.

    Raises Busy when another living process drives the run, and with `unended` also when it is over.
    """
    with host.guarded(run_id, stop, unended=unended) as held:
        run = held.ledger.get_run(run_id)
        recipe = Recipe.model_validate_json(run.recipe_json)
        folder = RunFolder(host.settings.runs / run_id)
        folder.make(recipe)  # another host may have opened the run
        news = NewsWriter(folder.news, reporter)
        job = Job(host=held.under(recipe.credentials), run=run, recipe=recipe, stop=stop, reporter=news)
        return (yield from Life(job).steps())
