"""What a host's upkeep does where the Prefect server refuses what it says of one run."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import Running, Scheduled
from prefect.workers.base import BaseWorker

from gpujobs import lifecycle
from gpujobs.host import Host
from gpujobs.prefect_api import run_id_of
from gpujobs.prefect_client import PatientClient
from gpujobs.worker import Worker
from gpujobs.worker_floor import Floor
from gpujobs.worker_upkeep import NO_SUSPENSION, NOT_CRASHED, Upkeep, _missed_end, taken_by
from tests.cloud import recipe_for

REFUSED, TAKEN = UUID(int=1), UUID(int=2)


def server(told: list[str], *, pending: Sequence[UUID] = (), moved: bool = False) -> FastAPI:
    """Make one that lists flow runs which a dead host took, and has them begun if asked; of REFUSED it takes no state.

    Args:
        told: gets the states that it is told.
        pending: what it lists.
        moved: they have got another state since they were listed.
    """
    app, long_ago = FastAPI(), datetime(2026, 1, 1, tzinfo=UTC).isoformat()

    @app.post("/api/flow_runs/filter")
    def _list(wanted: dict[str, Any]) -> list[dict[str, Any]]:
        state = {"id": str(UUID(int=4)), "type": "PENDING", "message": taken_by("gone"), "timestamp": long_ago}
        return [{"id": str(one), "flow_id": str(UUID(int=3)), "state": state} for one in pending][
            wanted["offset"] : wanted["offset"] + (wanted["limit"] or 200)
        ]

    @app.get("/api/flow_runs/{flow_run_id}")
    def _read(flow_run_id: UUID) -> dict[str, Any]:
        state = {"id": str(UUID(int=4 + moved)), "type": "RUNNING", "timestamp": long_ago}
        return {"id": str(flow_run_id), "flow_id": str(UUID(int=3)), "state": state}

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


def test_of_more_runs_than_the_server_lists_at_once_all_are_looked_after(host: Host) -> None:
    pending = [UUID(int=100 + number) for number in range(250)]

    async def look_after() -> None:
        async with PatientClient(server([], pending=[*pending, TAKEN]), clock=host.clock) as client:
            upkeep = Upkeep(host, Floor(host, client), client, tend=bool)
            assert [one.id for one in await upkeep._unended()] == [*pending, TAKEN]

    asyncio.run(asyncio.wait_for(look_after(), 60))


def test_a_state_is_not_told_of_a_flow_run_that_has_got_another_since_it_was_listed(host: Host) -> None:
    told: list[str] = []

    async def look_after() -> None:
        async with PatientClient(server(told, pending=(TAKEN,), moved=True), clock=host.clock) as client:
            await Upkeep(host, Floor(host, client), client, tend=bool).recover()

    asyncio.run(asyncio.wait_for(look_after(), 60))
    assert told == []


def test_a_flow_run_that_is_retried_before_its_last_life_is_over_is_not_taken_until_it_is(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_run = FlowRun(id=TAKEN, flow_id=UUID(int=3))
    queue = [WorkerFlowRunResponse(work_pool_id=UUID(int=5), work_queue_id=UUID(int=6), flow_run=flow_run)]

    async def ask(_: BaseWorker[Any, Any, Any]) -> list[WorkerFlowRunResponse]:
        return queue

    async def live(*_: object) -> None:
        await over.wait()

    monkeypatch.setattr(BaseWorker, "_get_scheduled_flow_runs", ask)
    monkeypatch.setattr(Floor, "_run", live)
    over = asyncio.Event()

    async def take_twice() -> list[int]:
        async with PatientClient(server([]), clock=host.clock) as client:
            floor = Floor(host, client)
            worker = Worker(floor, work_pool_name="gpujobs")
            sitting, found = floor.seat(flow_run, resumes=True), []
            for _ in range(2):
                worker._asked_at = float("-inf")  # so that the queue is asked, whatever the count
                found.append(len(await worker._get_scheduled_flow_runs()))
                over.set()
                await sitting.task
            return found

    assert asyncio.run(asyncio.wait_for(take_twice(), 60)) == [0, 1]


@pytest.mark.parametrize(("message", "tells"), [(NOT_CRASHED, True), (NO_SUSPENSION, True), (None, False)])
def test_a_run_that_ended_as_it_was_called_running_again_is_told_to_have_ended(
    host: Host, message: str | None, tells: bool
) -> None:
    run_id, now = run_id_of(str(TAKEN)), host.clock.now()
    lifecycle.open_run(host, recipe_for("autodl"), run_id=run_id, flow_run_id=str(TAKEN))
    host.ledger.update_run(run_id, state="succeeded", ended_at=now)
    running: State[Any] = Running(message=message, timestamp=now + timedelta(seconds=1))
    missed = _missed_end(FlowRun(id=TAKEN, flow_id=UUID(int=3), state=running), host.ledger.get_run(run_id))
    assert (missed is not None and missed.is_completed()) == tells


@pytest.mark.parametrize(("ledger_state", "tells"), [("running", ["RUNNING"]), ("failed", []), ("submitted", [])])
def test_a_retry_of_a_run_that_works_is_undone_and_one_of_a_run_that_is_over_is_not(
    host: Host, ledger_state: str, tells: list[str]
) -> None:
    told: list[str] = []
    run_id = run_id_of(str(TAKEN))
    lifecycle.open_run(host, recipe_for("autodl"), run_id=run_id, flow_run_id=str(TAKEN))
    host.ledger.update_run(run_id, state=ledger_state)
    sent: State[Any] = Scheduled(name="AwaitingRetry")

    async def look_after() -> None:
        async with PatientClient(server(told), clock=host.clock) as client:
            await Upkeep(host, Floor(host, client), client, tend=bool)._undo_retry(
                FlowRun(id=TAKEN, flow_id=UUID(int=3), state=sent)
            )

    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        asyncio.run(asyncio.wait_for(look_after(), 60))
    assert told == tells
