"""A run that was handed in and that no host has begun: every command that takes a run knows of it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from gpujobs import controller, prefect_api
from gpujobs.cli.entry import main
from gpujobs.cli.flow_watch import FlowRunWatch
from gpujobs.errors import BadInput
from tests.cloud import Control, Memory, recipe_for
from tests.prefect.desk import UNTIL_TOLD, Desk, end_host, let_go, starts_and_left


@pytest.fixture
def hostless(desk: Desk) -> Iterator[Desk]:
    """The desk while no host lives."""
    end_host(desk, signal.SIGTERM)
    yield desk
    controller.up(desk.settings)


def test_it_is_listed_told_of_and_begun_once_there_is_a_host(
    hostless: Desk, truth: Control, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_id, flow_run_id), (other, _) = hostless.submit("echo hello"), hostless.submit("echo other")
    some_day = {"type": "SCHEDULED", "state_details": {"scheduled_time": str(hostless.now() + timedelta(hours=3))}}
    later = hostless.create(recipe_for("autodl").model_dump(mode="json", exclude_unset=True), state=some_day)
    assert main(["ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(run["id"], run["name"], run["state"]) for run in listed[:2]] == [
        (other, "t", "waiting"),
        (run_id, "t", "waiting"),
    ]
    assert "waiting" not in {run["state"] for run in listed[2:]}
    assert main(["ls", "--state", "waiting", "-n", "1"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["RUN", other]
    assert main(["ls", "--state", "running"]) == 0
    assert run_id not in capsys.readouterr().out
    assert main(["status", run_id[:8]]) == 0
    assert f"run {run_id}: waiting (Scheduled at {hostless.api}); nothing is rented yet" in capsys.readouterr().out
    assert main(["status", "0123456789"]) == BadInput.exit_code
    controller.up(hostless.settings)
    assert hostless.ended(flow_run_id)[0] == "COMPLETED"
    assert starts_and_left(truth, run_id) == (1, [])
    hostless.ask("DELETE", f"/flow_runs/{later}")


def test_a_run_that_waits_for_its_retry_is_listed_once(
    desk: Desk, truth: Control, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, flow_run_id = desk.submit("exit 3")
    assert desk.ended(flow_run_id)[0] == "FAILED"
    end_host(desk, signal.SIGTERM)
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": again, "force": True})
    assert main(["ls", "--json"]) == 0
    assert [run["state"] for run in json.loads(capsys.readouterr().out) if run["id"] == run_id] == ["failed"]
    controller.up(desk.settings)
    assert desk.ended(flow_run_id)[0] == "FAILED"
    assert starts_and_left(truth, run_id) == (2, [])


def test_it_is_cancelled_by_its_name_before_it_begins(
    hostless: Desk, truth: Control, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, flow_run_id = hostless.submit("echo hello", name="waits-alone")
    assert main(["cancel", "waits-alone"]) == 0
    assert f"run {run_id} (waits-alone) was cancelled before it began; nothing was rented" in capsys.readouterr().out
    assert hostless.ended(flow_run_id)[0] == "CANCELLED"
    controller.up(hostless.settings)
    assert starts_and_left(truth, run_id) == (0, [])
    assert main(["cancel", run_id]) == BadInput.exit_code


@contextmanager
def following(*command: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the command on a waiting run, once it has said that it waits."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gpujobs", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stderr is not None
            assert f"run {command[-1]} (t) waits for a host" in process.stderr.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("command", [["logs", "--follow"], ["wait"]])
def test_who_follows_it_waits_for_its_begin_and_sees_its_end(hostless: Desk, command: list[str]) -> None:
    run_id, _ = hostless.submit("echo hello; exit 3")
    with following(*command, run_id) as process:
        controller.up(hostless.settings)
        out, told = process.communicate(timeout=120)
    if command == ["wait"]:
        assert (process.returncode, "exit code 3" in told) == (1, True)
    else:
        assert (process.returncode, out) == (0, "hello\n")


def test_who_stops_following_it_leaves_it_waiting(hostless: Desk) -> None:
    run_id, flow_run_id = hostless.submit("echo hello")
    with following("wait", run_id) as process:
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (4, f"gpujobs: no longer waiting; run {run_id} still waits for a host\n")
    assert hostless.state(flow_run_id, {"SCHEDULED"})[0] == "SCHEDULED"
    controller.up(hostless.settings)
    assert hostless.ended(flow_run_id)[0] == "COMPLETED"


def test_why_it_waits_is_said_once(desk: Desk, truth: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    _, working = desk.submit(UNTIL_TOLD)
    prefect_api.limit_runs(desk.api, 1)
    try:
        desk.state(working, {"RUNNING"})
        run_id, flow_run_id = desk.submit("echo hello")
        clock, told = [0.0], [Memory(), Memory()]
        watches = [FlowRunWatch(desk.api, flow_run_id, one, now=lambda: clock[0]) for one in told]  # type: ignore[arg-type]
        for clock[0] in (2.0, 18.0, 34.0):
            watches[0].look()
        monkeypatch.setattr(prefect_api, "_QUIET", timedelta(0))
        for clock[0] in (36.0, 52.0):
            watches[1].look()
        assert [text.partition(":")[0] for text in told[0].notes] == ["the run waits for its turn"]
        assert told[1].notes == [f"no host at {desk.api} has taken the run yet; start one: gpujobs serve"]
        assert main(["cancel", run_id]) == 0
    finally:
        desk.ask("PATCH", "/work_pools/gpujobs", {"concurrency_limit": None})
    let_go(truth)
    assert desk.ended(working)[0] == "COMPLETED"
