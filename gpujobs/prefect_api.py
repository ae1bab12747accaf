"""What we say to a Prefect server, over its REST API; imports no Prefect, so that a command stays quick."""

import base64
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import requests

from gpujobs import controller, controller_record
from gpujobs.clock import backoff
from gpujobs.crash import Point
from gpujobs.errors import BadCredentials, BadInput, GpujobsError, NotFound, Unavailable
from gpujobs.prefect_login import login
from gpujobs.recipe import Recipe
from gpujobs.settings import Settings, notice_variable

DEPLOYMENT = "run-recipe/run-recipe"
REAPER = "reap/reap"
POOL = "gpujobs"  # and the type of the pool
_TIMEOUT_S = (5.0, 30.0)
_BUSY = {429, 503}  # SQLite under many writers
BUSY_S = 60.0
_AHEAD = timedelta(seconds=60)  # by as much another machine's clock may be ahead
_QUIET = timedelta(seconds=90)  # a host gives a sign of life every 30 s
PAGE = 200  # what Prefect gives at most
_TOLD_CHARS = 300
_DICE = random.Random()  # noqa: S311 - for jitter, not for secrets


def api_url(settings: Settings) -> str | None:
    """Find the Prefect API: the environment's, the active profile's, our own controller's; None where there is none."""
    if url := login().get("PREFECT_API_URL"):
        return url
    found = controller_record.status(settings)
    return found.url if found and found.server_alive and found.worker_alive else None


def run_id_of(flow_run_id: str) -> str:
    """Give the id of the run that a flow run stands for: its last 10 hexadecimal digits."""
    return uuid.UUID(flow_run_id).hex[-10:]


def submit(settings: Settings, api: str, recipe: Recipe, wait_s: float = 60.0) -> tuple[str, str]:
    """Create a flow run of `recipe`; give its run id and its flow run id. Sent again, it would be the same run.

    Waits up to `wait_s` for the deployment, which the host makes when it starts. Raises BadInput where our host was
    started in another environment than this one.
    """
    mine = controller_record.status(settings)
    if mine and mine.url == api:
        controller.check_environment(settings, [*recipe.secrets, *map(notice_variable, recipe.notify)])
    deployment = deployment_id(api, DEPLOYMENT, time.monotonic() + wait_s)
    made = ask(
        api,
        "POST",
        f"/deployments/{deployment}/create_flow_run",
        {
            "parameters": {"recipe": recipe.model_dump(mode="json", exclude_unset=True)},
            "tags": ["gpujobs", f"recipe:{recipe.name}"],
            "idempotency_key": uuid.uuid4().hex,
            "enforce_parameter_schema": False,  # it is a whole Recipe already; checking costs the server 40 ms of CPU
        },
    )
    flow_run_id = str(made["id"])
    return run_id_of(flow_run_id), flow_run_id


def waiting(api: str, within_s: float = BUSY_S) -> Sequence[Mapping[str, Any]]:
    """Give the flow runs of recipes in our pool that are due and that no host has begun: their id, name, state, tags.

    Those that a schedule will bring some day are not among them. A server that does not answer gets `within_s`.
    """
    wanted = {
        "flow_runs": {
            "state": {"type": {"any_": ["SCHEDULED", "PENDING"]}},
            "expected_start_time": {"before_": (datetime.now(UTC) + _AHEAD).isoformat()},
        },
        "flows": {"name": {"any_": [DEPLOYMENT.partition("/")[0]]}},
        "work_pools": {"name": {"any_": [POOL]}},
        "limit": PAGE,
    }
    found: list[Mapping[str, Any]] = []
    while True:
        page = ask(api, "POST", "/flow_runs/filter", {**wanted, "offset": len(found)}, within_s)
        found += page
        if len(page) < PAGE:
            return found


def host_heard_at(api: str) -> datetime | None:
    """Give the time of the last sign of life of any host of our pool; None where there never was one."""
    try:
        found = ask(api, "POST", f"/work_pools/{POOL}/workers/filter", {})
    except NotFound:
        return None
    times = [datetime.fromisoformat(one["last_heartbeat_time"]) for one in found if one["last_heartbeat_time"]]
    return max(times, default=None)


def host_is_there(api: str) -> bool:
    """Say whether a host of our pool gives signs of life."""
    heard_at = host_heard_at(api)
    return heard_at is not None and datetime.now(UTC) - heard_at < _QUIET


def flow_run_state(api: str, flow_run_id: str) -> tuple[str, str, str]:
    """Give a flow run's state: its type ("RUNNING"), its name, and its message; raises NotFound."""
    state = ask(api, "GET", f"/flow_runs/{flow_run_id}")["state"] or {}
    return str(state.get("type", "")), str(state.get("name", "")), str(state.get("message") or "")


def cancel(api: str, flow_run_id: str) -> None:
    """Ask for a flow run's cancelling; one that is over stays as it is. Raises NotFound."""
    ask(api, "POST", f"/flow_runs/{flow_run_id}/set_state", {"state": {"type": "CANCELLING"}})


def logs(api: str, flow_run_id: str, offset: int = 0) -> Sequence[str]:
    """Give up to 200 lines of a flow run's log, in order, from the line `offset` on."""
    found = ask(
        api,
        "POST",
        "/logs/filter",
        {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_ASC", "offset": offset, "limit": PAGE},
    )
    return [str(line["message"]) for line in found]


def limit_runs(api: str, limit: int, wait_s: float = 60.0) -> None:
    """Let our pool run so many at a time; waits up to `wait_s` for the pool, which a host makes when it starts."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            ask(api, "PATCH", f"/work_pools/{POOL}", {"concurrency_limit": limit})
        except NotFound:
            if time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(0.2)


def take_lease(api: str, limit: str, slots: int, *, lease_s: float) -> str | None:
    """Take places of the global concurrency limit `limit` for `lease_s` seconds (60 at least), without waiting.

    Where the server takes too long to answer, a lease that nobody knows may be left to run out.

    Gives the lease's id, "" where there is no such limit, None where too few are free. Raises BadInput where the limit
    is smaller than `slots`.
    """
    body = {"names": [limit], "slots": slots, "mode": "concurrency", "lease_duration": lease_s}
    path = "/v2/concurrency_limits/increment-with-lease"
    reply = _reply(api, "POST", path, body)
    if reply.status_code == requests.codes.locked:
        return None
    found = _read(api, path, reply)
    return str(found["lease_id"]) if found["limits"] else ""


def renew_lease(api: str, lease: str, *, lease_s: float) -> bool:
    """Lengthen a lease; False where it is over, or unknown. Raises Unavailable."""
    path = f"/v2/concurrency_limits/leases/{lease}/renew"
    reply = _reply(api, "POST", path, {"lease_duration": lease_s})
    if reply.status_code in {requests.codes.not_found, requests.codes.gone}:
        return False
    _read(api, path, reply)
    return True


def end_lease(api: str, lease: str) -> None:
    """Give a lease's places back; one that is over is fine. Raises Unavailable."""
    ask(api, "POST", "/v2/concurrency_limits/decrement-with-lease", {"lease_id": lease})


def blocks(api: str, kind: str) -> Mapping[str, Mapping[str, Any]]:
    """Give the values of all named blocks of a type, by name; they hold secrets. Raises Unavailable, BadCredentials."""
    wanted = {
        "block_types": {"slug": {"any_": [kind]}},
        "block_documents": {"is_anonymous": {"eq_": False}},
        "include_secrets": True,
    }
    return {str(found["name"]): found["data"] for found in ask(api, "POST", "/block_documents/filter", wanted)}


def block(api: str, kind: str, name: str) -> Mapping[str, Any]:
    """Give the values of one block; they hold secrets. Raises NotFound, Unavailable, BadCredentials."""
    path = f"/block_types/slug/{kind}/block_documents/name/{name}?include_secrets=true"
    found: Mapping[str, Any] = ask(api, "GET", path)["data"]
    return found


def deployment_id(api: str, name: str, deadline: float) -> str:
    """Give the id of the deployment `name`, waiting for it until `deadline` of the monotonic clock."""
    while True:
        try:
            return str(ask(api, "GET", f"/deployments/name/{name}")["id"])
        except (NotFound, Unavailable) as error:
            if time.monotonic() >= deadline:
                remedy = "start a host there with: gpujobs serve"
                raise GpujobsError(f"{api} has no deployment {name}; {remedy}") from error
        time.sleep(0.1)


def ask(api: str, method: str, path: str, body: Mapping[str, Any] | None = None, within_s: float = BUSY_S) -> Any:
    """Ask once, and again while the server is only too busy: what is asked must be such that it may be asked twice.

    Raises NotFound, BadInput where the server refuses the values, BadCredentials, Unavailable; the last after
    `within_s`, or the time of one call more.
    """
    return _read(api, path, _reply(api, method, path, body, within_s))


def _reply(
    api: str, method: str, path: str, body: Mapping[str, Any] | None, within_s: float = BUSY_S
) -> requests.Response:
    """Ask once, and again while the server is only too busy: all that is asked here may be asked twice."""
    deadline = time.monotonic() + within_s
    for wait_s in backoff(1.0, 4.0, dice=_DICE):
        late = time.monotonic() >= deadline
        try:
            reply = _send(api, method, path, body, within_s)
        except Unavailable as error:
            if late or not isinstance(error.__cause__, requests.ReadTimeout):
                raise
        else:
            if late or reply.status_code not in _BUSY:
                return reply
        time.sleep(0.1 + wait_s)
    raise AssertionError("backoff never ends")  # for the type checker


def _send(api: str, method: str, path: str, body: Mapping[str, Any] | None, within_s: float) -> requests.Response:
    connect_s, read_s = _TIMEOUT_S
    timeout_s = (min(connect_s, within_s), min(read_s, within_s))
    try:
        with Point("http", "Prefect", method):
            return requests.request(
                method, api + path, json=body, headers=_headers(), timeout=timeout_s, allow_redirects=False
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
