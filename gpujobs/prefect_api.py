"""What we say to a Prefect server, over its REST API; imports no Prefect, so that a command stays quick."""

import base64
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import requests

from gpujobs import controller
from gpujobs.errors import BadCredentials, BadInput, GpujobsError, NotFound, Unavailable
from gpujobs.prefect_login import login
from gpujobs.recipe import Recipe
from gpujobs.settings import Settings

DEPLOYMENT = "run-recipe/run-recipe"
POOL = "gpujobs"  # and the type of the pool
_TIMEOUT_S = (5.0, 30.0)
_BUSY = {429, 503}  # SQLite under many writers
_BUSY_S = 30.0
_TOLD_CHARS = 300


def api_url(settings: Settings) -> str | None:
    """Find the Prefect API: the environment's, the active profile's, our own controller's; None where there is none."""
    if url := login().get("PREFECT_API_URL"):
        return url
    found = controller.status(settings)
    return found.url if found and found.server_alive and found.worker_alive else None


def run_id_of(flow_run_id: str) -> str:
    """Give the id of the run that a flow run stands for: its last 10 hexadecimal digits."""
    return uuid.UUID(flow_run_id).hex[-10:]


def submit(settings: Settings, api: str, recipe: Recipe, wait_s: float = 60.0) -> tuple[str, str]:
    """Create a flow run of `recipe`; give its run id and its flow run id. Sent again, it would be the same run.

    Waits up to `wait_s` for the deployment, which the host makes when it starts. Raises BadInput where the server
    refuses the recipe, or where our host was started in another environment than this one.
    """
    mine = controller.status(settings)
    if mine and mine.url == api:
        controller.check_environment(settings, recipe.secrets)
    deployment_id = _deployment_id(api, time.monotonic() + wait_s)
    made = _ask(
        api,
        "POST",
        f"/deployments/{deployment_id}/create_flow_run",
        {
            "parameters": {"recipe": recipe.model_dump(mode="json", exclude_unset=True)},
            "tags": ["gpujobs", f"recipe:{recipe.name}"],
            "idempotency_key": uuid.uuid4().hex,
        },
    )
    flow_run_id = str(made["id"])
    return run_id_of(flow_run_id), flow_run_id


def flow_run_state(api: str, flow_run_id: str) -> tuple[str, str, str]:
    """Give a flow run's state: its type ("RUNNING"), its name, and its message; raises NotFound."""
    state = _ask(api, "GET", f"/flow_runs/{flow_run_id}")["state"] or {}
    return str(state.get("type", "")), str(state.get("name", "")), str(state.get("message") or "")


def cancel(api: str, flow_run_id: str) -> None:
    """Ask for a flow run's cancelling; one that is over stays as it is. Raises NotFound."""
    _ask(api, "POST", f"/flow_runs/{flow_run_id}/set_state", {"state": {"type": "CANCELLING"}})


def ask(api: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Ask the API for what may be asked twice, and give its answer; raises NotFound, BadInput, Unavailable."""
    return _ask(api, method, path, body)


def logs(api: str, flow_run_id: str, offset: int = 0) -> Sequence[str]:
    """Give up to 200 lines of a flow run's log, in order, from the line `offset` on."""
    found = _ask(
        api,
        "POST",
        "/logs/filter",
        {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_ASC", "offset": offset, "limit": 200},
    )
    return [str(line["message"]) for line in found]


def _deployment_id(api: str, deadline: float) -> str:
    while True:
        try:
            return str(_ask(api, "GET", f"/deployments/name/{DEPLOYMENT}")["id"])
        except (NotFound, Unavailable) as error:
            if time.monotonic() >= deadline:
                remedy = "start a host there with: gpujobs serve"
                raise GpujobsError(f"{api} has no deployment {DEPLOYMENT}; {remedy}") from error
        time.sleep(0.1)


def _ask(api: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Ask once, and again while the server is only too busy: all that is asked here may be asked twice."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        reply = _send(api, method, path, body)
        if reply.status_code not in _BUSY or time.monotonic() >= deadline:
            return _read(api, path, reply)
        time.sleep(0.5)


def _send(api: str, method: str, path: str, body: Mapping[str, Any] | None) -> requests.Response:
    try:
        return requests.request(
            method, api + path, json=body, headers=_headers(), timeout=_TIMEOUT_S, allow_redirects=False
        )
    except requests.RequestException as error:
        raise Unavailable(f"the Prefect API at {api} does not answer: {type(error).__name__}") from error


def _read(api: str, path: str, reply: requests.Response) -> Any:
    if reply.status_code in {401, 403}:
        raise BadCredentials(f"the Prefect API at {api} refuses us; set PREFECT_API_KEY or PREFECT_API_AUTH_STRING")
    if reply.status_code == requests.codes.not_found:
        raise NotFound(f"the Prefect API at {api} knows no {path}")
    if reply.status_code in {409, 422}:
        raise BadInput(f"the Prefect API refuses it: {_detail(reply)}")
    if not reply.ok:
        raise Unavailable(f"the Prefect API at {api} answers {reply.status_code}: {_detail(reply)}")
    return reply.json() if reply.content else None


def _headers() -> Mapping[str, str]:
    found = login()
    if key := found.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if basic := found.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": "Basic " + base64.b64encode(basic.encode()).decode()}
    return {}


def _detail(reply: requests.Response) -> str:
    try:
        value = reply.json()
    except ValueError:
        return reply.text[:_TOLD_CHARS]
    detail = value.get("detail", value) if isinstance(value, dict) else value
    return str(detail)[:_TOLD_CHARS]
