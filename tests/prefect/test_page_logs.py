"""The job's output on a flow run's page: in order, with no gap and no repeat, whoever drives the run."""

import asyncio
import json
import os
import re
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from gpujobs import controller, flow_outbox, process
from gpujobs.flow_outbox import Outbox, drained
from tests.cloud import Control
from tests.prefect.desk import Desk, starts_and_left, until
from tests.prefect.test_page import artifacts, rows

pytestmark = pytest.mark.timeout(600)

COUNTS = "i=0; while [ $i -lt 150 ]; do i=$((i + 1)); echo line $i; sleep 0.05; done"


def output(desk: Desk, flow_run_id: str) -> Sequence[tuple[int, str]]:
    """The pieces of the job's output in the order in which the page shows them, each with where it ends."""
    found: list[Any] = []
    while len(found) % 200 == 0:
        body = {
            "logs": {"flow_run_id": {"any_": [flow_run_id]}},
            "sort": "TIMESTAMP_ASC",
            "offset": len(found),
            "limit": 200,
        }
        if not (page := desk.ask("POST", "/logs/filter", body)):
            break
        found += page
    pieces = [(re.fullmatch(r"gpujobs\.output\.1\.([0-9]+)", one["name"]), one["message"]) for one in found]
    return [(int(match[1]), message) for match, message in pieces if match]


def assert_told_once(desk: Desk, run_id: str, flow_run_id: str) -> None:
    log = (desk.settings.runs / run_id / "output.log").read_text()
    assert log == "".join(f"line {number}\n" for number in range(1, 151))
    until(lambda: (output(desk, flow_run_id) or [(0, "")])[-1][0] == len(log))
    pieces = output(desk, flow_run_id)
    assert "".join(f"{message}\n" for _, message in pieces) == log
    assert len(pieces) < 30  # gathered, not line by line


def assert_page_is_whole(desk: Desk, flow_run_id: str) -> None:
    """Each artifact is there, once, and tells the end."""
    until(lambda: "t-cost" in artifacts(desk, flow_run_id), within_s=60)
    found = artifacts(desk, flow_run_id)
    assert rows(found["t-summary"]["data"])["Result"] == "succeeded"
    assert "gone at" in rows(found["t-summary"]["data"])["Machine"]
    assert len(json.loads(found["t-cost"]["data"])) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_output_is_told_once_though_the_host_ends_amid_it(desk: Desk, truth: Control, number: signal.Signals) -> None:
    run_id, flow_run_id = desk.submit(COUNTS)
    desk.wrote(run_id, "line 20\n")
    found = desk.controller()
    os.kill(found.worker_pid, number)
    until(lambda: not process.alive(found.worker_pid, found.worker_started))
    controller.up(desk.settings)
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    assert_told_once(desk, run_id, flow_run_id)
    assert_page_is_whole(desk, flow_run_id)
    assert len([machine for machine in truth.machines() if f"-{run_id}-" in machine["name"]]) == 1
    assert starts_and_left(truth, run_id)[1] == []


def test_page_is_whole_though_the_server_was_away_when_the_run_ended(desk: Desk) -> None:
    run_id, flow_run_id = desk.submit(COUNTS)
    desk.wrote(run_id, "line 20\n")
    os.kill(desk.controller().server_pid, signal.SIGKILL)
    until(lambda: desk.run(run_id).state == "succeeded", within_s=60)
    controller.up(desk.settings)
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    assert_told_once(desk, run_id, flow_run_id)
    assert_page_is_whole(desk, flow_run_id)


def test_run_that_has_ended_has_told_all(desk: Desk) -> None:
    """The UI looks for no more lines once it has seen the end."""
    _, flow_run_id = desk.submit("echo it ran")
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    body = {"logs": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "TIMESTAMP_DESC"}
    said = [one["message"] for one in desk.ask("POST", "/logs/filter", body)]
    assert any("0 machines alive" in message for message in said)


class Server:
    """A Prefect that is away for some calls, or says no to them, and then takes what it is given."""

    def __init__(self, *troubles: Exception) -> None:
        self._troubles = list(troubles)
        self.took: list[str] = []

    async def create_logs(self, logs: Sequence[Any]) -> None:
        if self._troubles:
            raise self._troubles.pop(0)
        self.took += [one["message"] for one in logs]


def said_no(status: int) -> PrefectHTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1/api/logs/")
    reply = httpx.Response(status, request=request)
    return PrefectHTTPStatusError(str(status), request=request, response=reply)


def line(text: str) -> dict[str, Any]:
    return {"name": "x", "level": 20, "message": text, "timestamp": str(datetime.now(UTC)), "__payload_size__": 1}


async def told(server: Any, lines: Sequence[str]) -> None:
    outbox = Outbox(server)
    async with outbox.installed():
        for text in lines:
            outbox.put(line(text))
        while len(server.took) < 1:  # noqa: ASYNC110 - it is the outbox's own task that brings it about
            await asyncio.sleep(0.01)


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_outbox, "EVERY_S", 0.001)


@pytest.mark.usefixtures("_at_once")
def test_lines_wait_in_order_for_a_server_that_is_away() -> None:
    server = Server(httpx.ConnectError("refused"), httpx.ReadError("reset"), said_no(503))
    asyncio.run(told(server, ["a", "b", "c"]))
    assert server.took == ["a", "b", "c"]


@pytest.mark.usefixtures("_at_once")
def test_lines_that_the_server_will_not_have_do_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_outbox, "BATCH_BYTES", 1)  # each line by itself
    server = Server(said_no(422))
    asyncio.run(told(server, ["a", "b \udc80", "c"]))
    assert server.took == ["b ?", "c"]


@pytest.mark.usefixtures("_at_once")
def test_more_than_can_be_held_is_dropped_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flow_outbox, "HELD_BYTES", 1300)
    server = Server()
    asyncio.run(told(server, ["a", "b", "c", "d"]))
    assert server.took == ["a", "b"]
    assert "2 log lines were dropped" in caplog.text


def test_all_that_was_said_so_far_can_be_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_outbox, "EVERY_S", 3600.0)
    server = Server(said_no(503))

    async def hurried() -> bool:
        outbox = Outbox(server)  # type: ignore[arg-type]  # it is asked for no more than that
        async with outbox.installed():
            await asyncio.sleep(0)
            outbox.put(line("a"))
            assert not await drained(0.3)
            outbox.put(line("b"))
            return await drained(60)

    assert asyncio.run(hurried())
    assert server.took == ["a", "b"]
