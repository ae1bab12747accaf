"""What a host's upkeep does where the Prefect server refuses what it says of one run."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI

from gpujobs.host import Host
from gpujobs.prefect_client import PatientClient
from gpujobs.worker_floor import Floor
from gpujobs.worker_upkeep import Upkeep, taken_by

REFUSED, TAKEN = UUID(int=1), UUID(int=2)


def server(told: list[str]) -> FastAPI:
    """Make one that knows two flow runs, which a dead host took, and does not take what is said of the first."""
    app, long_ago = FastAPI(), datetime(2026, 1, 1, tzinfo=UTC).isoformat()

    @app.post("/api/flow_runs/filter")
    def _list() -> list[dict[str, Any]]:
        pending = {"type": "PENDING", "message": taken_by("gone"), "timestamp": long_ago}
        return [{"id": str(one), "flow_id": str(UUID(int=3)), "state": pending} for one in (REFUSED, TAKEN)]

    @app.post(f"/api/flow_runs/{REFUSED}/set_state", status_code=500)
    def _refuse() -> None:
        told.append("refused")

    @app.post(f"/api/flow_runs/{TAKEN}/set_state")
    def _take(said: dict[str, Any]) -> dict[str, Any]:
        told.append(said["state"]["type"])
        return {"state": said["state"], "status": "ACCEPT", "details": {"type": "accept_details"}}

    return app


@pytest.mark.parametrize("act", ["take_over", "recover"])
def test_a_run_whose_state_the_server_refuses_holds_up_no_other(
    host: Host, act: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    async def look_after() -> str:
        async with PatientClient(server(told), clock=host.clock) as client:
            upkeep = Upkeep(host, Floor(host, client), client, tend=bool)
            try:
                await (upkeep.take_over("gone") if act == "take_over" else upkeep.recover())
            except Exception as error:  # noqa: BLE001 - as its loop does
                return str(error)
        return ""

    with caplog.at_level(logging.WARNING):
        failed = asyncio.run(asyncio.wait_for(look_after(), 60))
    assert told == ["refused", "SCHEDULED"]
    assert failed == ("" if act == "take_over" else "1 of the runs")
    assert "a run that is looked after: " in caplog.text
