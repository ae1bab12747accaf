"""Retry in the UI, by the call that the UI makes: of what failed a new attempt, of what crashed the same machine."""

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gpujobs import controller, prefect_api
from gpujobs.prefect_api import run_id_of
from gpujobs.worker import worker_name
from gpujobs.worker_upkeep import NOT_CRASHED, taken_by
from tests.cloud import Control, recipe_for
from tests.prefect.desk import Desk, end_host, starts_and_left, until
from tests.prefect.test_page import say_go

pytestmark = pytest.mark.timeout(600)

AGAIN = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}


def retry(desk: Desk, flow_run_id: str, *, force: bool = False, **state: Any) -> None:
    """Press Retry: the first UI sends it without force, the second with."""
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": {**AGAIN, **state}, "force": force})


def machines(truth: Control, run_id: str) -> list[Any]:
    return [machine for machine in truth.machines() if f"-{run_id}-" in machine["name"]]


@pytest.mark.parametrize(("backend", "force"), [("autodl", False), ("matrixdc", True)])
def test_retry_of_a_failed_run_is_a_new_attempt_on_a_new_machine(
    backend: str, force: bool, desk: Desk, truth: Control, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("echo first; exit 3")
    recipe = recipe_for(backend, run="sh /root/script", file_mounts={"/root/script": str(script)}, max_duration="10m")
    flow_run_id = desk.create(recipe.model_dump(mode="json", exclude_unset=True))
    run_id = run_id_of(flow_run_id)
    assert desk.ended(flow_run_id)[0] == "FAILED"
    script.write_text("echo second")
    retry(desk, flow_run_id, force=force)
    assert desk.state(flow_run_id, {"COMPLETED"})[0] == "COMPLETED"
    assert (desk.run(run_id).state, desk.run(run_id).error, desk.run(run_id).exit_code) == ("succeeded", "", 0)
    assert [row.state for row in desk.ledger.attempts(run_id)] == ["failed", "succeeded"]
    first, second = machines(truth, run_id)
    assert first["gone_at"] <= second["made_at"]
    assert starts_and_left(truth, run_id) == (2, [])
    folder = desk.settings.runs / run_id
    assert [(folder / name).read_text() for name in ("attempt-1.log", "output.log")] == ["first\n", "second\n"]


def test_retry_of_a_cancelled_run_is_not_cancelled_again(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit("echo begun; [ -e /root/again ] || exec sleep 600")
    desk.wrote(run_id, "begun")
    desk.ledger.request_cancel(run_id, desk.now())
    assert desk.ended(flow_run_id)[0] == "CANCELLED"
    retry(desk, flow_run_id)
    until(lambda: len(desk.ledger.attempts(run_id)) == 2 and desk.run(run_id).phase == "run", within_s=60)
    desk.wrote(run_id, "begun")
    prefect_api.cancel(desk.api, flow_run_id)
    assert desk.ended(flow_run_id)[0] == "CANCELLED"
    assert starts_and_left(truth, run_id) == (2, [])


def test_cancel_of_a_retry_that_is_not_due_yet_is_the_end_of_it(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit("exit 3")
    assert desk.ended(flow_run_id)[0] == "FAILED"
    retry(desk, flow_run_id, state_details={"scheduled_time": str(datetime.now(UTC) + timedelta(hours=1))})
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", body)
    assert desk.ended(flow_run_id)[0] == "CANCELLED"
    assert (desk.run(run_id).state, starts_and_left(truth, run_id)) == ("failed", (1, []))


def job_to_crash(desk: Desk) -> tuple[str, str]:
    """Begin a job that ends once it is told to."""
    run_id, flow_run_id = desk.submit("echo begun; while [ ! -e /root/go ]; do sleep 0.1; done; echo over")
    desk.wrote(run_id, "begun")
    return run_id, flow_run_id


def crash(desk: Desk, flow_run_id: str) -> None:
    """Say of a flow run what Prefect says when it has lost sight of one."""
    crashed = {"type": "CRASHED", "name": "Crashed", "message": "no heartbeat"}
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": crashed, "force": True})


def assert_went_on(desk: Desk, truth: Control, run_id: str) -> None:
    assert desk.run(run_id).state == "succeeded"
    assert (desk.settings.runs / run_id / "output.log").read_text() == "begun\nover\n"
    assert [row.number for row in desk.ledger.attempts(run_id)] == [1]
    assert len(machines(truth, run_id)) == 1
    assert starts_and_left(truth, run_id)[1] == []


def test_retry_of_a_run_whose_host_died_goes_on_with_its_machine(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = job_to_crash(desk)
    end_host(desk, signal.SIGKILL)
    crash(desk, flow_run_id)
    retry(desk, flow_run_id)
    controller.up(desk.settings)
    desk.state(flow_run_id, {"RUNNING"})
    say_go(desk, "autodl", run_id)
    assert desk.state(flow_run_id, {"COMPLETED"})[0] == "COMPLETED"
    assert_went_on(desk, truth, run_id)


@pytest.mark.parametrize("resumed", [False, True])
def test_retry_of_a_run_that_is_said_to_have_crashed_and_has_not_starts_nothing(
    resumed: bool, desk: Desk, truth: Control
) -> None:
    run_id, flow_run_id = job_to_crash(desk)
    if resumed:
        driver = desk.run(run_id).driver
        end_host(desk, signal.SIGKILL)
        controller.up(desk.settings)
        until(lambda: (desk.run(run_id).driver or driver) != driver, within_s=60)
    crash(desk, flow_run_id)
    retry(desk, flow_run_id)
    until(lambda: desk.state(flow_run_id, {"RUNNING"})[2] == NOT_CRASHED, within_s=60)
    say_go(desk, "autodl", run_id)
    assert desk.state(flow_run_id, {"COMPLETED"})[0] == "COMPLETED"
    assert_went_on(desk, truth, run_id)
    states = desk.ask("GET", f"/flow_run_states/?flow_run_id={flow_run_id}")
    assert [state["type"] for state in states].count("PENDING") == 1


def test_a_run_that_another_host_has_done_meanwhile_is_not_done_again(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit("echo once")
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    desk.ledger.update_run(run_id, ended_at=datetime.now(UTC) + timedelta(hours=1))  # after it was sent once more
    retry(desk, flow_run_id, force=True)
    assert desk.state(flow_run_id, {"COMPLETED"})[0] == "COMPLETED"
    assert starts_and_left(truth, run_id) == (1, [])


def test_a_host_whose_word_of_taking_a_run_came_after_the_runs_end_does_not_do_it_again(
    desk: Desk, truth: Control
) -> None:
    run_id, flow_run_id = desk.submit("echo once")
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    end_host(desk, signal.SIGTERM)
    taken = {"type": "PENDING", "message": taken_by(worker_name(desk.settings))}
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": taken})
    assert desk.state(flow_run_id, {"PENDING"})[0] == "PENDING"
    controller.up(desk.settings)
    assert desk.state(flow_run_id, {"COMPLETED"})[0] == "COMPLETED"
    assert starts_and_left(truth, run_id) == (1, [])
