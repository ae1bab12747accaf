"""Recipes through a real Prefect server and a real host, on the fake cloud."""

import time
from pathlib import Path

import pytest
import requests

from gpujobs import prefect_api
from gpujobs.errors import BadInput, NotFound
from gpujobs.prefect_api import DEPLOYMENT
from tests.cloud import Control
from tests.prefect.desk import FINAL, Desk, starts_and_left, until

PHASES = ["plan", "provision", "boot", "push", "run", "pull", "release"]


def test_run_completes_phase_by_phase_and_tells_the_jobs_output(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit("echo one; echo two")
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    assert (desk.run(run_id).state, desk.run(run_id).flow_run_id) == ("succeeded", flow_run_id)
    desk.shows(flow_run_id, *((phase, "Completed") for phase in PHASES), alone=True)
    assert starts_and_left(truth, run_id) == (1, [])
    shown = desk.ask("GET", f"/flow_runs/{flow_run_id}")
    assert (shown["name"], {"gpujobs", "recipe:t"} <= set(shown["tags"])) == (f"t-{run_id}", True)
    desk.logged(flow_run_id, "one\ntwo")


def test_failing_job_fails_its_flow_run_with_the_reason(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit("exit 3")
    kind, _, message = desk.ended(flow_run_id)
    assert (kind, "3" in message, desk.run(run_id).exit_code) == ("FAILED", True, 1)
    desk.shows(flow_run_id, ("run", "Failed"))
    assert starts_and_left(truth, run_id) == (1, [])


def test_retry_in_prefect_is_a_new_attempt_of_the_same_run(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit("exit 3")
    desk.ended(flow_run_id)
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": again})
    until(lambda: desk.state(flow_run_id, FINAL) and len(desk.ledger.attempts(run_id)) == 2)
    assert desk.ended(flow_run_id)[0] == "FAILED"
    assert [row.number for row in desk.ledger.attempts(run_id)] == [1, 2]
    assert starts_and_left(truth, run_id) == (2, [])


def test_cancel_in_prefect_ends_the_work_and_releases_the_machine(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit("echo begun; exec sleep 600")
    desk.wrote(run_id, "begun")
    prefect_api.cancel(desk.api, flow_run_id)
    assert desk.ended(flow_run_id, within_s=30)[:2] == ("CANCELLED", "Cancelled")
    assert (desk.run(run_id).state, desk.run(run_id).exit_code) == ("cancelled", 4)
    desk.shows(flow_run_id, ("run", "Cancelled"))
    assert starts_and_left(truth, run_id) == (1, [])


def test_cancel_through_the_ledger_cancels_the_flow_run(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit("echo begun; exec sleep 600")
    desk.wrote(run_id, "begun")
    desk.ledger.request_cancel(run_id, desk.now())
    assert desk.ended(flow_run_id, within_s=30)[0] == "CANCELLED"
    assert starts_and_left(truth, run_id) == (1, [])


def test_cancel_at_any_moment_of_the_start_is_the_end_of_it(desk: Desk, truth: Control) -> None:
    runs = [desk.submit("echo begun; exec sleep 600") for _ in range(8)]
    for _, flow_run_id in runs:
        prefect_api.cancel(desk.api, flow_run_id)
        time.sleep(0.4)  # which phase each of them has come to is as it falls
    assert [desk.ended(flow_run_id)[0] for _, flow_run_id in runs] == ["CANCELLED"] * 8
    until(lambda: not desk.ledger.list_runs(states=("submitted", "running")))
    assert [starts_and_left(truth, run_id)[1] for run_id, _ in runs] == [[]] * 8


def test_runs_share_the_hosts_one_process(desk: Desk) -> None:
    runs = [desk.submit("echo begun; while [ ! -e stop ]; do sleep 0.1; done") for _ in range(3)]
    for run_id, _ in runs:
        desk.wrote(run_id, "begun")
    pid = desk.controller().worker_pid
    assert Path(f"/proc/{pid}/task/{pid}/children").read_text() == ""
    for _, flow_run_id in runs:
        prefect_api.cancel(desk.api, flow_run_id)
    assert [desk.ended(flow_run_id)[0] for _, flow_run_id in runs] == ["CANCELLED"] * 3


def test_value_of_a_wrong_type_is_refused_by_the_server(desk: Desk, truth: Control) -> None:
    before = len(truth.machines())
    with pytest.raises(requests.HTTPError, match=r"409|422"):
        desk.create({"name": "t", "resources": {"accelerators": "RTX 4090"}, "run": 7})
    assert len(truth.machines()) == before


def test_bad_value_fails_the_flow_run_before_anything_is_rented(desk: Desk, truth: Control) -> None:
    before = len(truth.machines())
    flow_run_id = desk.create(
        {"name": "t", "resources": {"accelerators": "RTX 4090"}, "run": "true", "max_duration": "5 parsecs"}
    )
    kind, _, message = desk.ended(flow_run_id)
    assert kind == "FAILED"
    assert "5 parsecs" in message
    assert len(truth.machines()) == before


def test_recipe_that_cannot_be_planned_fails_in_the_first_task(desk: Desk) -> None:
    _, flow_run_id = desk.submit("true", resources={"accelerators": "GTX 9999"})
    kind, _, message = desk.ended(flow_run_id)
    assert (kind, "GTX 9999" in message) == ("FAILED", True)
    desk.shows(flow_run_id, ("plan", "Failed"), alone=True)


def test_submit_refuses_a_host_that_was_started_for_another_cloud(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTODL_API_URL", "https://elsewhere.example")
    with pytest.raises(BadInput, match=r"another AUTODL_API_URL.*gpujobs down"):
        desk.submit("true")


def test_submit_refuses_a_host_that_lacks_the_recipes_secret(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-9f2")
    with pytest.raises(BadInput, match="another HF_TOKEN") as caught:
        desk.submit("true", secrets=["HF_TOKEN"])
    assert "canary" not in str(caught.value)


def test_flow_run_that_is_unknown_is_not_found(desk: Desk) -> None:
    with pytest.raises(NotFound):
        prefect_api.flow_run_state(desk.api, "00000000-0000-0000-0000-000000000000")


def test_deployment_is_made_again_as_the_same_one(desk: Desk) -> None:
    found = desk.deployments("run-recipe")
    assert [(f"run-recipe/{one['name']}", one["work_pool_name"]) for one in found] == [(DEPLOYMENT, "gpujobs")]
