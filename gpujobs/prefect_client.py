"""The Prefect client of a host, which tells states until its server hears them, or has refused one for an hour."""

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import State
from prefect.context import AsyncClientContext
from prefect.exceptions import Abort, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

from gpujobs.clock import Clock, backoff

REFUSED_S = 3600.0
_FIRST_S, _SLOWEST_S = 2.0, 10.0
_PASSES = {408, 429}  # and all of 500 and above
_SERVER_ERROR = 500
_DICE = random.Random()  # noqa: S311 - for jitter, not for secrets
_log = logging.getLogger(__name__)


class PatientClient(PrefectClient):
    """A client that waits for a server that is away, and an hour for one that answers a state with an error each time.

    Prefect's own gives up after a minute; its engine then calls the flow run Failed, though the run went well. Where
    the server is back by then, it hears that and never the truth.
    """

    def __init__(self, api: Any, *, clock: Clock, **options: Any) -> None:
        """Talk to `api`; the hour is the clock's."""
        super().__init__(api, **options)
        self._clock = clock

    async def set_flow_run_state(
        self, flow_run_id: UUID | str, state: State[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        """Propose the state, and again while the server is away or too busy; a second of the same changes nothing.

        Raises Abort after the hour: the flow run is left in the state that it has, rather than called Failed.
        """
        refused_since_s: float | None = None
        for wait_s in backoff(_FIRST_S, _SLOWEST_S, dice=_DICE):
            try:
                return await super().set_flow_run_state(flow_run_id, state, force)
            except (httpx.TransportError, PrefectHTTPStatusError) as error:
                if not _passes(error):
                    raise
                now_s = self._clock.monotonic()
                away = isinstance(error, httpx.TransportError)
                refused_since_s = None if away else now_s if refused_since_s is None else refused_since_s
                if refused_since_s is not None and now_s - refused_since_s >= REFUSED_S:
                    _log.warning("flow run %s: Prefect does not take its state %s: %r", flow_run_id, state.name, error)
                    raise Abort(f"Prefect does not take the state {state.name}") from error
                _log.info("flow run %s: its state waits for Prefect: %r", flow_run_id, error)
            await anyio.sleep(0.1 + wait_s)
        raise AssertionError("backoff never ends")  # for the type checker

    async def tell_once(self, flow_run_id: UUID, state: State[Any]) -> None:
        """Have the flow run be in the state; raises what the server's answer, or its absence, is."""
        await super().set_flow_run_state(flow_run_id, state, force=True)


@asynccontextmanager
async def patient(clock: Clock) -> AsyncIterator[PatientClient]:
    """Open a block in which Prefect's engine and we use one patient client; give that."""
    client = PatientClient(
        PREFECT_API_URL.value(),
        clock=clock,
        auth_string=PREFECT_API_AUTH_STRING.value(),
        api_key=PREFECT_API_KEY.value(),
    )
    # Its __init__ would make a client of its own, which nobody used.
    async with AsyncClientContext.model_construct(client=client):
        yield client


def _passes(error: httpx.TransportError | PrefectHTTPStatusError) -> bool:
    if isinstance(error, httpx.TransportError):
        return True
    return error.response.status_code >= _SERVER_ERROR or error.response.status_code in _PASSES
