"""The flow behind a recipe's form: the form's groups as parameters, made a recipe of, and run as any recipe."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed

from gpujobs.errors import BadInput
from gpujobs.flow import run_recipe
from gpujobs.form import Form
from gpujobs.prefect_api import run_id_of

Group = dict[str, Any]


def _flow_run_name() -> str:
    job = (flow_run.parameters or {}).get("job")
    name = job.get("name", "run") if isinstance(job, dict) else "run"
    return f"{name}-{run_id_of(str(flow_run.id))}"


@flow(
    name=run_recipe.name,
    flow_run_name=_flow_run_name,
    retries=0,
    persist_result=False,
    validate_parameters=False,  # the form says what is wrong in words of its own
)
async def run_form(
    *,
    job: Group,
    machine: Group,
    limits: Group,
    envs: Group | None = None,
    images: Group | None = None,
    snapshot: Group | None = None,
    autodl: Group | None = None,
    matrixdc: Group | None = None,
    rest: Group | None = None,
) -> State[Any]:
    """Rent a GPU machine, run what the form says on it, bring the results home, switch it off."""
    groups = {
        "job": job,
        "machine": machine,
        "limits": limits,
        "envs": envs,
        "images": images,
        "snapshot": snapshot,
        "autodl": autodl,
        "matrixdc": matrixdc,
        "rest": rest,
    }
    try:
        recipe = Form.read({name: group for name, group in groups.items() if group is not None}).recipe()
    except BadInput as error:
        return Failed(message=f"the form cannot be used: {error}; nothing was rented")
    ended: State[Any] = await run_recipe.fn(recipe)
    return ended
