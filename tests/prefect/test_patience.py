"""How long a host tells a state to a server that does not take it."""

import asyncio
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import Abort, PrefectHTTPStatusError
from prefect.states import Completed

from gpujobs import prefect_client
from gpujobs.prefect_client import REFUSED_S, PatientClient
from tests.clocks import ManualClock


def test_state_that_a_server_refuses_for_an_hour_is_told_no_longer_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock, told, refusing = ManualClock(), list[str](), FastAPI()

    @refusing.post("/api/flow_runs/{flow_run_id}/set_state", status_code=500)
    async def refuse(flow_run_id: str) -> None:
        """Answer, a quarter of an hour later."""
        told.append(flow_run_id)
        clock.advance(REFUSED_S / 4)

    async def tell() -> None:
        async with PatientClient(refusing, clock=clock) as client:
            await client.set_flow_run_state(flow_run_id, Completed())

    flow_run_id = uuid4()
    monkeypatch.setattr(prefect_client, "_FIRST_S", 0.0)
    with pytest.raises(Abort, match="does not take the state Completed"):
        asyncio.run(asyncio.wait_for(tell(), 60))
    assert told == [str(flow_run_id)] * 5
    assert f"flow run {flow_run_id}: Prefect does not take its state Completed" in caplog.text


def test_hour_begins_anew_once_the_server_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, heard = ManualClock(), list[Exception]()
    request = httpx.Request("POST", "http://127.0.0.1/set_state")
    refused = PrefectHTTPStatusError("busy", request=request, response=httpx.Response(500, request=request))
    answers: Iterator[Exception] = iter([refused, refused, httpx.ConnectError("away"), refused, refused, refused])

    async def answer(*_: object) -> None:
        """Answer, half an hour later."""
        heard.append(next(answers))
        clock.advance(REFUSED_S / 2)
        raise heard[-1]

    monkeypatch.setattr(prefect_client, "_FIRST_S", 0.0)
    monkeypatch.setattr(PrefectClient, "set_flow_run_state", answer)
    with pytest.raises(Abort):
        asyncio.run(PatientClient(FastAPI(), clock=clock).set_flow_run_state(uuid4(), Completed()))
    assert (len(heard), next(answers, None)) == (6, None)
