"""The flow behind a deployed function: a form's values become a call, run as any recipe is, and its result is shown.

No code of the user's runs here: the function's folder goes up, and the machine imports it.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from gpujobs.call_deploy import FROM_FORM
from gpujobs.call_files import write_named
from gpujobs.call_outcome import Wanted, ending_of, result_of
from gpujobs.call_page import RESULT_CHARS, fenced
from gpujobs.call_recipe import OUTCOME, for_call
from gpujobs.call_shown import shown
from gpujobs.errors import BadInput
from gpujobs.flow import SEAT, Seat, run_recipe, seated
from gpujobs.flow_facts import artifact_key
from gpujobs.flow_work import in_thread
from gpujobs.ledger_rows import ENDED
from gpujobs.prefect_api import run_id_of
from gpujobs.recipe import Recipe
from gpujobs.run_folder import CALL_FOLDER

_MESSAGE_CHARS = 300
_READ_BYTES = 2**20  # what is larger is not read only to be shown
Group = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What came of a call: what it returned, in short and for the page, or why there is nothing."""

    returned: str = ""
    page: str = ""
    error: str = ""


def _flow_run_name() -> str:
    call = (flow_run.parameters or {}).get("call") or {}
    return f"{call.get('recipe', {}).get('name', 'run')}-{run_id_of(str(flow_run.id))}"


@flow(
    name=run_recipe.name,
    flow_run_name=_flow_run_name,
    retries=0,
    persist_result=False,
    validate_parameters=False,  # that they fit the function's signature, the server has seen to
)
async def run_call(*, arguments: Group, call: Group) -> State[Any]:
    """Rent a GPU machine, call the function on it, show what it returns, switch it off."""
    run_id = run_id_of(str(flow_run.id))
    async with seated() as seat:
        before = SEAT.set(seat)
        try:
            return await _in_seat(seat, run_id, call, arguments)
        finally:
            SEAT.reset(before)


async def _in_seat(seat: Seat, run_id: str, call: Group, arguments: Group) -> State[Any]:
    folder, thread = seat.host.settings.runs / run_id, f"gpujobs-{run_id}-call"
    try:
        recipe: Recipe = await in_thread(lambda: _prepared(folder / CALL_FOLDER, call, arguments), name=thread)
    except BadInput as error:
        return Failed(message=f"{error}; nothing was rented")
    state: State[Any] = await run_recipe.fn(recipe)
    told: _Told | None = await in_thread(lambda: _told(seat, run_id, pickled=bool(call["trust_remote"])), name=thread)
    if told is None or not (state.is_completed() or state.is_failed()):
        return state
    if told.error:
        return Failed(message=told.error)
    if told.page:
        await _show(recipe.name, told.page)
    return Completed(message=f"returned {told.returned}; {state.message}")


def _prepared(files: Path, call: Mapping[str, Any], arguments: Mapping[str, Any]) -> Recipe:
    """Write the call's files, again where the run is gone on with, and give its recipe."""
    try:
        common = Recipe.model_validate(call["recipe"])
        workdir, python, trust_remote = str(call["workdir"]), str(call["python"]), call["trust_remote"] is True
        kinds: Mapping[str, str] = call["kinds"]
        values = {name: FROM_FORM[kinds[name]](one) if name in kinds else one for name, one in arguments.items()}
        write_named(files, call["named"], values, trust_remote=trust_remote)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"the function cannot be called so: {error!r}; if the form is right, deploy it again") from error
    return for_call(common, workdir=workdir, files=files, python=python)


def _told(seat: Seat, run_id: str, *, pickled: bool) -> _Told | None:
    """Tell what came of the call; None where it never began, or goes on."""
    folder = seat.host.settings.runs / run_id
    try:
        run = seat.host.ledger.get_run(run_id)
    except BadInput:  # it was skipped or refused
        shutil.rmtree(folder, ignore_errors=True)
        return None
    if run.state not in ENDED:
        return None
    shutil.rmtree(folder / CALL_FOLDER, ignore_errors=True)
    codes = [row.exit_code for row in seat.host.ledger.attempts(run_id)]
    outcome = folder / "outputs" / OUTCOME
    size = sum(path.stat().st_size for path in outcome.glob("outcome"))
    if run.state == "succeeded" and (pickled or size > _READ_BYTES):
        kind = "a pickle of " if pickled else ""
        return _Told(returned=f"{kind}{size} bytes, for gpujobs.Job.from_id({run_id!r}, …)")
    try:
        value = result_of(outcome, ending_of(run, codes), Wanted(hint=Any, trust_remote=False, as_fields=True))
    except Exception as error:  # noqa: BLE001 - the function's own, or how the run ended
        return _Told(error=f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS])
    return _Told(returned=shown(value, _MESSAGE_CHARS), page=shown(value, RESULT_CHARS))


async def _show(name: str, text: str) -> None:
    try:
        markdown = f"**Returned**\n\n{fenced(text)}\n"
        await acreate_markdown_artifact(markdown, key=artifact_key(name, "result"), description=text[:200])
    except Exception as error:  # noqa: BLE001 - the call is made, whether Prefect shows it or not
        _log.warning("a deployed function's result is not shown: %s", error)
