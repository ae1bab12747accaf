"""The automations of `gpujobs up --automations`: made once, and what they are for really happens on a real server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gpujobs import automations, prefect_api
from gpujobs.prefect_api import run_id_of
from tests.cloud import Control, recipe_for
from tests.prefect.desk import Desk, starts_and_left, until

pytestmark = pytest.mark.timeout(600)
PATIENCE_S = 60


def ours(desk: Desk) -> Sequence[Any]:
    return list(desk.ask("POST", "/automations/filter", {"automations": {"tags": {"all_": ["gpujobs"]}}}))


def reaps(desk: Desk) -> dict[str, datetime]:
    """When each run of the deployment that the automations call is, or was, due."""
    deployment = desk.ask("GET", f"/deployments/name/{prefect_api.REAPER}")["id"]
    found = desk.ask("POST", "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
    return {run["id"]: datetime.fromisoformat(run["expected_start_time"]) for run in found}


def test_automations_are_made_once_kept_and_mended(desk: Desk) -> None:
    names = {"gpujobs: a crashed run calls the reaper", "gpujobs: a silent run calls the reaper"}
    assert set(automations.set_up(desk.api).values()) <= {"made", "kept"}
    before = ours(desk)
    assert automations.set_up(desk.api) == dict.fromkeys(names, "kept")
    assert ours(desk) == before
    assert {made["name"] for made in before} == names
    [crashed, silent] = sorted(before, key=lambda made: made["name"])
    changed = {key: crashed[key] for key in ("name", "description", "trigger", "actions")}
    desk.ask("PUT", f"/automations/{crashed['id']}", {**changed, "tags": ["gpujobs"], "actions": silent["actions"]})
    desk.ask("PATCH", f"/automations/{crashed['id']}", {"enabled": False})
    assert automations.set_up(desk.api)[crashed["name"]] == "updated"
    [mended] = [made for made in ours(desk) if made["id"] == crashed["id"]]
    assert (mended["enabled"], mended["actions"]) == (False, crashed["actions"])
    desk.ask("PATCH", f"/automations/{crashed['id']}", {"enabled": True})


@pytest.fixture
def served(desk: Desk) -> Iterator[None]:
    """Prefect's own runner, with a process a run: what dies there, Prefect calls Crashed."""
    environment = {**os.environ, "PREFECT_API_URL": desk.api, "PREFECT_HOME": str(desk.settings.home / "prefect-cli")}
    flows = Path(__file__).parents[2] / "flows"
    with subprocess.Popen([sys.executable, "serve.py"], cwd=flows, env=environment, stdin=subprocess.DEVNULL) as runner:
        until(lambda: desk.deployments("served"), within_s=60)
        yield
        runner.send_signal(signal.SIGINT)
        runner.wait(timeout=30)


@pytest.mark.usefixtures("served")
def test_run_that_really_crashes_has_the_reaper_called_when_it_may_act(desk: Desk, truth: Control) -> None:
    automations.set_up(desk.api)
    before = reaps(desk)
    recipe = recipe_for("autodl", run="echo begun; exec sleep 600")
    flow_run_id = desk.create(recipe.model_dump(mode="json", exclude_unset=True), deployment="run-recipe/served")
    run_id = run_id_of(flow_run_id)
    desk.wrote(run_id, "begun", within_s=100)
    driver = desk.run(run_id).driver
    os.kill(int(driver.split(":")[1]), signal.SIGKILL)
    assert desk.ended(flow_run_id)[0] == "CRASHED"
    until(lambda: reaps(desk).keys() - before.keys(), within_s=PATIENCE_S)
    [due] = [due for run, due in reaps(desk).items() if run not in before]
    assert due > datetime.now(UTC) + timedelta(seconds=automations.CRASHED_S - 2 * PATIENCE_S)
    desk.ledger.request_cancel(run_id, desk.now())
    desk.ledger.release_claim(run_id, driver)  # as if the lease had run out: the host ends the run
    until(lambda: desk.run(run_id).state == "cancelled", within_s=PATIENCE_S)
    assert starts_and_left(truth, run_id) == (1, [])


def test_run_whose_signs_of_life_end_has_the_reaper_called_which_leaves_a_driven_one_alone(
    desk: Desk, truth: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where 12 s are silence: a run gives its first sign of life as it starts, and the next 180 s later."""
    automations.set_up(desk.api)
    monkeypatch.setattr(automations, "SILENT_S", 12.0)
    assert "updated" in automations.set_up(desk.api).values()
    run_id, flow_run_id = desk.submit("echo begun; exec sleep 600")
    desk.wrote(run_id, "begun")
    before = reaps(desk)
    until(lambda: reaps(desk).keys() - before.keys(), within_s=PATIENCE_S)
    [called] = reaps(desk).keys() - before.keys()
    kind, _, message = desk.ended(called)
    assert (kind, message.split(",")[0]) == ("COMPLETED", "0 released")
    assert (desk.run(run_id).state, f"gj-tester-{run_id}-1" in truth.alive()) == ("running", True)
    monkeypatch.undo()
    automations.set_up(desk.api)
    prefect_api.cancel(desk.api, flow_run_id)
    assert desk.ended(flow_run_id)[0] == "CANCELLED"
