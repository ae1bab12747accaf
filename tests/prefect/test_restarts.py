"""The host ends, is killed, or its server does, while a job runs: the job goes on, and is picked up again."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from gpujobs import controller, prefect_api, process
from gpujobs.clock import StopToken
from gpujobs.errors import Detached
from gpujobs.host import Host
from gpujobs.lifecycle import execute, new_run_id, open_run
from gpujobs.settings import Settings
from gpujobs.worker import worker_name
from gpujobs.worker_upkeep import taken_by
from tests.cloud import Control, Memory, recipe_for
from tests.prefect.desk import UNTIL_TOLD, Desk, end_host, let_go, starts_and_left, until


@pytest.fixture(autouse=True)
def _up_again(desk: Desk) -> Iterator[None]:
    """Leave a controller to the next test."""
    yield
    controller.up(desk.settings)


def running_job(desk: Desk) -> tuple[str, str]:
    run_id, flow_run_id = desk.submit("echo begun; for i in 1 2 3 4 5 6 7 8; do sleep 1; done; echo over")
    desk.wrote(run_id, "begun")
    return run_id, flow_run_id


def assert_once(desk: Desk, truth: Control, run_id: str) -> None:
    """One machine, one start of the job on it: asking its runner to start again has only told that it had started."""
    assert (desk.settings.runs / run_id / "output.log").read_text() == "begun\nover\n"
    assert len([machine for machine in truth.machines() if f"-{run_id}-" in machine["name"]]) == 1
    assert starts_and_left(truth, run_id)[1] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_host_that_ends_leaves_the_job_which_the_next_host_brings_to_its_end(
    desk: Desk, truth: Control, number: signal.Signals
) -> None:
    run_id, flow_run_id = running_job(desk)
    end_host(desk, number)
    assert prefect_api.flow_run_state(desk.api, flow_run_id)[0] == "RUNNING"
    if number == signal.SIGTERM:
        desk.shows(flow_run_id, ("run", "Detached"))
    controller.up(desk.settings)
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    assert_once(desk, truth, run_id)


def test_cancel_or_deletion_while_no_host_lives_is_done_by_the_next(desk: Desk, truth: Control) -> None:
    (run_id, flow_run_id), deleted = (desk.submit("echo begun; exec sleep 600") for _ in range(2))
    for one in (run_id, deleted[0]):
        desk.wrote(one, "begun")
    end_host(desk, signal.SIGKILL)
    prefect_api.cancel(desk.api, flow_run_id)
    desk.ask("DELETE", f"/flow_runs/{deleted[1]}")
    controller.up(desk.settings)
    assert desk.ended(flow_run_id)[0] == "CANCELLED"
    until(lambda: desk.run(deleted[0]).state == "cancelled", within_s=180)
    for one in (run_id, deleted[0]):
        assert desk.run(one).state == "cancelled"
        assert starts_and_left(truth, one) == (1, [])


def test_end_that_came_while_no_host_lived_is_told_by_the_next(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit(f"{UNTIL_TOLD}; echo over")
    desk.wrote(run_id, "begun")
    end_host(desk, signal.SIGKILL)
    let_go(truth)
    desk.ledger.release_claim(run_id, desk.run(run_id).driver)  # as if its lease had run out
    with Host.open(desk.settings) as host:  # as `gpujobs resume` does
        assert execute(host, run_id, stop=StopToken(), reporter=Memory()).state == "succeeded"
    assert prefect_api.flow_run_state(desk.api, flow_run_id)[0] == "RUNNING"
    controller.up(desk.settings)
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    assert_once(desk, truth, run_id)


def test_run_that_a_dead_host_had_taken_is_begun_by_the_next(desk: Desk, truth: Control) -> None:
    end_host(desk, signal.SIGTERM)
    run_id, flow_run_id = desk.submit("echo hello")
    taken = {"type": "PENDING", "message": taken_by(worker_name(desk.settings))}
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": taken})
    controller.up(desk.settings)
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    assert starts_and_left(truth, run_id) == (1, [])


def test_job_ends_well_while_the_server_is_dead_and_its_end_is_told_later(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = running_job(desk)
    found = desk.controller()
    os.kill(found.server_pid, signal.SIGKILL)
    until(lambda: desk.run(run_id).state == "succeeded", within_s=60)
    assert_once(desk, truth, run_id)
    controller.up(desk.settings)
    assert desk.ended(flow_run_id)[0] == "COMPLETED"


def test_run_of_a_process_without_prefect_that_died_is_brought_to_its_end_by_the_host(
    desk: Desk, truth: Control
) -> None:
    run_id, stop, reporter = new_run_id(), StopToken(), Memory()
    script = "echo begun; sleep 2; echo over | tee kept"
    with Host.open(desk.settings) as host:
        open_run(host, recipe_for("autodl", run=script, outputs={"kept": "kept"}, max_duration="10m"), run_id=run_id)
        threading.Thread(target=lambda: reporter.wrote.wait(60) and stop.stop(Detached("as if killed"))).start()
        execute(host, run_id, stop=stop, reporter=reporter)
    until(lambda: desk.run(run_id).state == "succeeded", within_s=60)
    assert_once(desk, truth, run_id)
    assert (desk.settings.runs / run_id / "outputs" / "kept").read_text() == "over\n"


def test_server_that_is_started_anew_finds_the_job_at_work(desk: Desk, truth: Control, at_home: Settings) -> None:
    """The whole controller goes down and up: its server moves to another port."""
    run_id, flow_run_id = running_job(desk)
    old = desk.controller()
    assert controller.down(at_home) is True
    assert not process.alive(old.server_pid, old.server_started)
    api = controller.up(at_home).url
    assert api != old.url
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    assert_once(desk, truth, run_id)
