"""What a team deploys: `prefect deploy` from the folder of flows, and Prefect's own serve, each as it stands."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpujobs import prefect_api
from gpujobs.prefect_api import run_id_of
from tests.cloud import Control, recipe_for
from tests.prefect.desk import Desk, starts_and_left, until

FLOWS = Path(__file__).parents[2] / "flows"
RECIPE = recipe_for("autodl", run="echo begun", max_duration="10m").model_dump(mode="json", exclude_unset=True)
ENDLESS = {**RECIPE, "run": "echo begun; exec sleep 600"}


def start(desk: Desk, *command: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PREFECT_API_URL": desk.api, "PREFECT_HOME": str(desk.settings.home / "prefect-cli")}
    return subprocess.Popen([sys.executable, *command], cwd=FLOWS, env=environment, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def deployed(desk: Desk) -> None:
    with start(desk, "-m", "prefect", "--no-prompt", "deploy", "--all") as process:
        assert process.wait(timeout=100) == 0


@pytest.mark.usefixtures("deployed")
def test_deployed_recipe_runs_on_the_host(desk: Desk, truth: Control) -> None:
    flow_run_id = desk.create(RECIPE, deployment="run-recipe/team")
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    assert starts_and_left(truth, run_id_of(flow_run_id)) == (1, [])


@pytest.mark.usefixtures("deployed")
def test_deployed_reaper_leaves_a_living_run_alone(desk: Desk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit(ENDLESS["run"])
    desk.wrote(run_id, "begun")
    reaper = desk.ask("GET", "/deployments/name/reap/team")
    [schedule] = reaper["schedules"]
    assert (schedule["active"], schedule["schedule"]["interval"]) == (True, 600.0)
    made = desk.ask("POST", f"/deployments/{reaper['id']}/create_flow_run", {"parameters": {}})
    assert desk.ended(made["id"])[0] == "COMPLETED"
    desk.logged(made["id"], f"gj-tester-{run_id}-1, run {run_id} is at work on it")
    prefect_api.cancel(desk.api, flow_run_id)
    assert desk.ended(flow_run_id)[0] == "CANCELLED"
    assert starts_and_left(truth, run_id) == (1, [])


@pytest.mark.usefixtures("deployed")
def test_deployed_nightly_flow_has_its_schedule_and_trains(desk: Desk, truth: Control) -> None:
    nightly = desk.ask("GET", "/deployments/name/run-recipe/nightly-digits")
    [schedule] = nightly["schedules"]
    assert schedule["schedule"] == {"cron": "0 2 * * *", "timezone": "Asia/Shanghai", "day_or": True}
    made = desk.ask("POST", f"/deployments/{nightly['id']}/create_flow_run", {"parameters": {"epochs": 1}})
    assert desk.ended(made["id"], within_s=100)[0] == "COMPLETED"
    assert desk.ask("GET", f"/flow_runs/{made['id']}")["name"] == "nightly-digits-lr0.02"
    assert desk.run(run_id_of(made["id"])).name == "nightly-digits"
    assert starts_and_left(truth, run_id_of(made["id"])) == (1, [])


@pytest.fixture(scope="module")
def served(desk: Desk) -> Iterator[None]:
    with start(desk, "serve.py") as process:
        until(lambda: desk.deployments("served"), within_s=60)
        yield
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


@pytest.mark.usefixtures("served")
def test_served_recipe_runs_in_a_process_of_its_own(desk: Desk, truth: Control) -> None:
    flow_run_id = desk.create(RECIPE, deployment="run-recipe/served")
    assert desk.ended(flow_run_id, within_s=100)[0] == "COMPLETED"
    assert starts_and_left(truth, run_id_of(flow_run_id)) == (1, [])


@pytest.mark.usefixtures("served")
def test_cancel_of_a_served_recipe_releases_its_machine_before_the_process_is_killed(
    desk: Desk, truth: Control
) -> None:
    flow_run_id = desk.create(ENDLESS, deployment="run-recipe/served")
    desk.wrote(run_id_of(flow_run_id), "begun", within_s=100)
    prefect_api.cancel(desk.api, flow_run_id)
    assert desk.ended(flow_run_id)[0] == "CANCELLED"
    until(lambda: desk.run(run_id_of(flow_run_id)).state == "cancelled")
    assert starts_and_left(truth, run_id_of(flow_run_id)) == (1, [])
