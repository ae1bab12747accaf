"""A run that was handed in and that no host has begun: only the Prefect server knows of it."""

from datetime import UTC, datetime

from gpujobs import controller, prefect_api
from gpujobs.cli.output import Output
from gpujobs.errors import BadInput, GpujobsError
from gpujobs.prefect_api import run_id_of
from gpujobs.progress import time_text
from gpujobs.settings import Settings


def tell_waiting(found: Settings, word: str, unknown: BadInput, out: Output) -> int:
    """Say that the run `word` waits for a host; raises `unknown` where the server knows of no such run either.

    Raises GpujobsError where there is a server, and it does not tell.
    """
    api = _server(found)
    if api is None:
        raise unknown
    try:
        runs = [one for one in prefect_api.waiting(api) if run_id_of(one["id"]).startswith(word)]
        heard_at = prefect_api.host_heard_at(api)
    except GpujobsError as error:
        raise GpujobsError(f"{unknown}; whether it waits for a host is not known: {error}") from error
    if len(runs) != 1:
        raise unknown
    [one] = runs
    run_id, state = run_id_of(one["id"]), one["state"]["name"].lower()
    sign = f"{time_text((datetime.now(UTC) - heard_at).total_seconds())} ago" if heard_at else "never"
    out.value(
        {"run_id": run_id, "name": one["name"], "state": state, "flow_run_id": one["id"], "host_heard_at": heard_at}
    )
    out.text(f"run {run_id}: {state} at {api}; it waits for a host, and nothing is rented yet")
    out.text(f"last sign of life of a host: {sign} (start one: gpujobs serve)")
    return 0


def _server(found: Settings) -> str | None:
    """Find the server that a run was handed to, also one whose host is dead."""
    if url := prefect_api.api_url(found):
        return url
    mine = controller.status(found)
    return mine.url if mine and mine.server_alive else None
