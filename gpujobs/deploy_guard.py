"""What is decided in the first moment of a flow run, before it is in the ledger: skip it, refuse it, or let it begin.

Only runs that a schedule made are skipped. A run that the ledger knows has begun before: it is resumed or retried.
"""

from datetime import timedelta
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import AsyncClientContext, FlowRunContext
from prefect.states import Cancelled, Failed

from gpujobs.errors import BadInput
from gpujobs.flow_work import in_thread
from gpujobs.form import duration
from gpujobs.host import Host
from gpujobs.plan import check_local
from gpujobs.prefect_api import run_id_of
from gpujobs.recipe import Recipe
from gpujobs.recipe_schedule import MAX_LATENESS_S

_THREAD = "gpujobs-guard"
_LIVING = [StateType.RUNNING, StateType.CANCELLING]


async def refusal(host: Host, recipe: Recipe, run_id: str) -> State[Any] | None:
    """Give the state in which this flow run ends before it begins; None where it may begin. Rents nothing.

    Skipped (of type Cancelled) for a scheduled run that is late or would overlap; Failed for what this host lacks.
    """
    if await in_thread(lambda: _begun(host, run_id), name=_THREAD):
        return None
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None and context.flow_run.auto_scheduled:
        async with AsyncClientContext.get_or_create() as found:
            why = await _why_skip(host, recipe, found.client, context.flow_run)
        if why:
            return Cancelled(name="Skipped", message=f"{why}; nothing was rented")
    try:
        await in_thread(lambda: check_local(host, recipe), name=_THREAD)
    except BadInput as error:
        return Failed(message=f"{error}; nothing was rented")
    return None


async def _why_skip(host: Host, recipe: Recipe, client: PrefectClient, flow_run: FlowRun) -> str | None:
    allowed = timedelta(seconds=recipe.schedule.max_lateness if recipe.schedule else MAX_LATENESS_S)
    known = await client.read_flow_run(flow_run.id)
    due = known.expected_start_time or host.clock.now()
    late = host.clock.now() - due > allowed
    other = await _living_before(host, client, known, allowed)
    if not late and other is None:
        return None
    if any(state.is_final() for state in await client.read_flow_run_states(flow_run.id)):
        return None  # it ended, and somebody sent it on its way again
    if late:
        lateness = duration(round((host.clock.now() - due).total_seconds()))
        return f"skipped: it was due at {due:%Y-%m-%d %H:%M} UTC and came {lateness} late, max_lateness is " + duration(
            round(allowed.total_seconds())
        )
    return f"skipped: {other.name if other else 'another run'} of this deployment is still running"


async def _living_before(host: Host, client: PrefectClient, mine: FlowRun, allowed: timedelta) -> FlowRun | None:
    """Give a run of the same deployment that began before this one and lives.

    Of two that begin together the earlier goes on: each is Running before it looks, so that it sees the other.
    """
    if mine.deployment_id is None:
        return None
    living = await client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[mine.deployment_id])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_LIVING))),
    )
    for other in living:
        if other.id != mine.id and _order(other) < _order(mine) and not await _will_be_skipped(host, other, allowed):
            return other
    return None


async def _will_be_skipped(host: Host, other: FlowRun, allowed: timedelta) -> bool:
    """Say whether `other` is late itself and about to see it: hosts that come back find many late runs at once."""
    if not (other.auto_scheduled and other.start_time and other.expected_start_time):
        return False
    run_id = run_id_of(str(other.id))
    late = other.start_time - other.expected_start_time > allowed
    return late and not await in_thread(lambda: _begun(host, run_id), name=_THREAD)


def _order(flow_run: FlowRun) -> tuple[float, str]:
    return (flow_run.start_time.timestamp() if flow_run.start_time else 0.0, str(flow_run.id))


def _begun(host: Host, run_id: str) -> bool:
    try:
        return host.ledger.get_run(run_id).id == run_id
    except BadInput:
        return False
