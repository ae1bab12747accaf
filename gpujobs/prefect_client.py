"""The Prefect client of a host, which tells states until its server hears them."""

import logging
import random
from typing import Any
from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import State
from prefect.context import AsyncClientContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

from gpujobs.clock import backoff

_FIRST_S, _SLOWEST_S = 2.0, 10.0
_PASSES = {408, 429}  # and all of 500 and above
_SERVER_ERROR = 500
_DICE = random.Random()  # noqa: S311 - for jitter, not for secrets
_log = logging.getLogger(__name__)


class PatientClient(PrefectClient):
    """A client that never gives up on a state.

    Prefect's own gives up after a minute; its engine then calls the flow run Failed, though the run went well. Where
    the server is back by then, it hears that and never the truth.
    """

    async def set_flow_run_state(
        self, flow_run_id: UUID | str, state: State[Any], force: bool = False
    ) -> OrchestrationResult[Any]:
        """Propose the state, and again while the server is away or too busy; a second of the same changes nothing."""
        for wait_s in backoff(_FIRST_S, _SLOWEST_S, dice=_DICE):
            try:
                return await super().set_flow_run_state(flow_run_id, state, force)
            except (httpx.TransportError, PrefectHTTPStatusError) as error:
                if not _passes(error):
                    raise
                _log.info("flow run %s: its state waits for Prefect: %r", flow_run_id, error)
            await anyio.sleep(0.1 + wait_s)
        raise AssertionError("backoff never ends")  # for the type checker


def patient() -> AsyncClientContext:
    """Give a context, to be entered, in which Prefect's engine and we use one patient client."""
    context = AsyncClientContext()
    context.client = PatientClient(
        PREFECT_API_URL.value(), auth_string=PREFECT_API_AUTH_STRING.value(), api_key=PREFECT_API_KEY.value()
    )
    return context


def _passes(error: httpx.TransportError | PrefectHTTPStatusError) -> bool:
    if isinstance(error, httpx.TransportError):
        return True
    return error.response.status_code >= _SERVER_ERROR or error.response.status_code in _PASSES
