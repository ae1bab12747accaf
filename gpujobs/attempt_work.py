"""What the work of an attempt is, in the machine's words, and how long it may take."""

import json

from gpujobs import teardown
from gpujobs.errors import BadInput, OverLimit
from gpujobs.plan import price_bound
from gpujobs.renting import Job
from gpujobs.runner import RunSpec

KIND = "kind"  # of the run, beside its recipe in what the machine keeps of it


def spec_of(job: Job, name: str) -> RunSpec:
    """Give what the runner on the machine `name` is told; raises BadInput or OverLimit where the budget allows none."""
    recipe, settings = job.recipe, job.host.settings
    ours = {"GPUJOBS_RUN": job.run.id, "GPUJOBS_MACHINE": name}
    return RunSpec(
        setup=recipe.setup or "",
        run=recipe.run,
        envs={**recipe.envs, **ours},
        secrets={name: settings.secret(name) for name in recipe.secrets},
        max_duration_s=_allowed_s(job, name),
        idle_s=recipe.idle_duration,
        about=json.dumps({**recipe.model_dump(mode="json"), KIND: job.run.kind}),
    )


def _allowed_s(job: Job, name: str) -> int:
    allowed_s = left_s(job, name)
    if allowed_s is None:
        raise BadInput("the price of this machine is unknown, so a budget cannot be kept; set resources.max_price")
    if allowed_s <= 0:
        raise OverLimit(f"the budget of {job.recipe.budget:.2f} CNY is used up before the work could start")
    return allowed_s


def left_s(job: Job, name: str) -> int | None:
    """Give `max_duration`, or the seconds that are left of the budget if that is less; None: nobody knows these."""
    if job.recipe.budget is None:
        return most_s(job)
    record = job.host.ledger.machine(name)
    price = price_bound(job.recipe, record.price_cny_per_h if record else None)
    if record is None or price is None:
        return None
    left = job.recipe.budget - teardown.spent_cny(job.host, job.recipe, job.run.id)
    return min(most_s(job), int(left / (price * job.machines) * 3600))


def most_s(job: Job) -> int:
    """Give the seconds that are left of `max_duration`."""
    return max(1, job.recipe.max_duration - round(job.worked_s))
