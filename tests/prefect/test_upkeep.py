"""What a host's upkeep does where the Prefect server refuses what it says of one run."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI

from gpujobs import lifecycle
from gpujobs.host import Host
from gpujobs.prefect_api import run_id_of
from gpujobs.prefect_client import PatientClient
from gpujobs.worker_floor import Floor
from gpujobs.worker_upkeep import Upkeep, taken_by
from tests.cloud import recipe_for

REFUSED, TAKEN = UUID(int=1), UUID(int=2)


def server(told: list[str], *, pending: Sequence[UUID] = ()) -> FastAPI:
    """Make one that knows flow runs which a dead host took, and TAKEN as begun; of REFUSED it takes no state."""
    app, long_ago = FastAPI(), datetime(2026, 1, 1, tzinfo=UTC).isoformat()

    @app.post("/api/flow_runs/filter")
    def _list() -> list[dict[str, Any]]:
        state = {"type": "PENDING", "message": taken_by("gone"), "timestamp": long_ago}
        return [{"id": str(one), "flow_id": str(UUID(int=3)), "state": state} for one in pending]

    @app.get(f"/api/flow_runs/{TAKEN}")
    def _read() -> dict[str, Any]:
        state = {"type": "RUNNING", "timestamp": long_ago}
        return {"id": str(TAKEN), "flow_id": str(UUID(int=3)), "state": state}

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
        async with PatientClient(server(told, pending=(REFUSED, TAKEN)), clock=host.clock) as client:
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


def test_a_run_that_lost_its_driver_is_gone_on_with_and_not_begun_anew(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    seated: list[tuple[UUID, bool]] = []
    monkeypatch.setattr(Floor, "seat", lambda _, flow_run, *, resumes=False: seated.append((flow_run.id, resumes)))
    run_id = run_id_of(str(TAKEN))
    lifecycle.open_run(host, recipe_for("autodl"), run_id=run_id, flow_run_id=str(TAKEN))
    host.ledger.update_run(run_id, state="running")

    async def look_after() -> None:
        async with PatientClient(server([]), clock=host.clock) as client:
            await Upkeep(host, Floor(host, client), client, tend=bool).recover()

    asyncio.run(asyncio.wait_for(look_after(), 60))
    assert seated == [(TAKEN, True)]
