"""Recipes deployed into a real Prefect server: the form that starts them, and schedules that are not always obeyed."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from gpujobs import deploy, prefect_api
from gpujobs.deploy import Deployed
from gpujobs.deploy_page import description, look
from gpujobs.errors import BadInput, Unavailable
from gpujobs.host import Host
from gpujobs.prefect_api import run_id_of
from gpujobs.recipe import Recipe
from tests.cloud import Control, recipe_for
from tests.prefect.desk import FINAL, Desk, starts_and_left, until

pytestmark = pytest.mark.timeout(600)  # a busy machine takes its time
YEARLY = "0 3 1 1 *"
LONG = "366d"


def made(desk: Desk, name: str, **parts: Any) -> Deployed:
    recipe = recipe_for("autodl", name=name, max_duration="10m", **parts)
    for _ in range(3):
        with suppress(Unavailable):  # its database stands still on a busy machine; nothing was made, or all of it
            return deploy.deploy(desk.settings, desk.api, recipe, name=name, description="…")
    raise AssertionError("the server does not answer")


def shown(desk: Desk, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = desk.ask("GET", f"/deployments/name/run-recipe/{name}")
    return found


def start(desk: Desk, deployed: Deployed, **groups: Any) -> requests.Response:
    """Start it as the UI does: each group that is sent takes the place of the deployment's own."""
    path = f"{desk.api}/deployments/{deployed.id}/create_flow_run"
    replies = (requests.post(path, json={"parameters": groups}, timeout=60) for _ in range(100))
    return next(reply for reply in replies if reply.status_code != 503)  # SQLite under many writers


def due(desk: Desk, deployed: Deployed, *, days: float, runs: int = 10) -> Sequence[str]:
    """Let Prefect's scheduler make the runs that were due in the last `days`; give their ids, earliest first."""
    now = datetime.now(UTC)
    body = {"start_time": (now - timedelta(days=days)).isoformat(), "end_time": now.isoformat(), "min_runs": runs}
    desk.ask("POST", f"/deployments/{deployed.id}/schedule", body)
    made = [run for run in flow_runs(desk, deployed) if run["auto_scheduled"]]
    return [run["id"] for run in made if datetime.fromisoformat(run["expected_start_time"]) < now]


def flow_runs(desk: Desk, deployed: Deployed) -> Sequence[Mapping[str, Any]]:
    body = {"deployments": {"id": {"any_": [deployed.id]}}, "sort": "EXPECTED_START_TIME_ASC"}
    found: Sequence[Mapping[str, Any]] = desk.ask("POST", "/flow_runs/filter", body)
    return found


def yearly(**more: Any) -> Mapping[str, Any]:
    return {"cron": YEARLY, "timezone": "UTC", **more}


def test_a_deployed_recipe_is_one_deployment_however_often(desk: Desk) -> None:
    first = made(desk, "twice", schedule=yearly())
    assert (first.made, made(desk, "twice", schedule=yearly())) == (
        "created",
        Deployed(name="twice", id=first.id, made="unchanged"),
    )
    found = shown(desk, "twice")
    assert set(found["tags"]) == {"gpujobs", "autodl", "recipe:twice"}
    assert (found["entrypoint"], found["work_pool_name"]) == ("gpujobs.form_flow.run_form", "gpujobs")
    [schedule] = found["schedules"]
    assert (schedule["slug"], schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == (
        "recipe: 0 3 1 1 * (UTC)",
        YEARLY,
        "UTC",
    )


def test_deploying_again_keeps_what_was_set_in_the_ui(desk: Desk) -> None:
    first = made(desk, "kept", schedule=yearly())
    [ours] = shown(desk, "kept")["schedules"]
    other = {"schedule": {"interval": 86400.0 * 300}, "active": False}
    desk.ask("POST", f"/deployments/{first.id}/schedules", [other])
    desk.ask("PATCH", f"/deployments/{first.id}/schedules/{ours['id']}", {"active": False})
    desk.ask("POST", f"/deployments/{first.id}/pause_deployment")
    assert made(desk, "kept", schedule=yearly(), run="echo other").made == "updated"
    found = shown(desk, "kept")
    assert found["paused"]
    assert {(one["schedule"].get("cron"), one["active"]) for one in found["schedules"]} == {
        (YEARLY, False),
        (None, False),
    }
    gone = made(desk, "kept", run="echo other")
    assert (gone.made, gone.dropped) == ("updated", [YEARLY])
    assert [one["schedule"].get("cron") for one in shown(desk, "kept")["schedules"]] == [None]


def test_the_form_starts_a_run_with_another_value(desk: Desk, truth: Control) -> None:
    deployed = made(desk, "form", run="echo lr=$LR seed=$SEED", envs={"LR": "0.1", "SEED": "1"})
    flow_run = start(desk, deployed, envs={"LR": "0.02", "SEED": "1"}).json()
    kind, _, message = desk.ended(flow_run["id"], within_s=120)
    assert kind == "COMPLETED", message
    run_id = run_id_of(flow_run["id"])
    desk.wrote(run_id, "lr=0.02 seed=1")
    assert desk.ask("GET", f"/flow_runs/{flow_run['id']}")["name"] == f"form-{run_id}"
    assert starts_and_left(truth, run_id) == (1, [])


def test_a_bad_value_is_refused_by_the_server_before_the_run_exists(desk: Desk) -> None:
    deployed = made(desk, "strict")
    machine = {**shown(desk, "strict")["parameters"]["machine"], "gpus": ["RTX 9999"]}
    refused = start(desk, deployed, machine=machine)
    assert (refused.status_code, "RTX 9999" in refused.text) == (409, True)
    assert flow_runs(desk, deployed) == []


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("workdir", "/no/such/folder", "workdir: /no/such/folder does not exist on this machine"),
        ("secrets", ["NO_SUCH_SECRET"], "NO_SUCH_SECRET"),
        ("more_envs", ["A=1", "A=2"], "the form cannot be used: job.more_envs: A stands there twice"),
    ],
)
def test_what_the_server_cannot_check_fails_before_anything_is_rented(
    desk: Desk, truth: Control, field: str, value: Any, words: str
) -> None:
    deployed = made(desk, "loose")
    job = {**shown(desk, "loose")["parameters"]["job"], field: value}
    flow_run_id = start(desk, deployed, job=job).json()["id"]
    kind, _, message = desk.ended(flow_run_id, within_s=120)
    assert (kind, words in message, "nothing was rented" in message) == ("FAILED", True, True), message
    assert_unknown(desk, truth, flow_run_id)


def assert_unknown(desk: Desk, truth: Control, flow_run_id: str) -> None:
    """See that a run left no trace: no row in the ledger, no machine at any time."""
    run_id = run_id_of(flow_run_id)
    with pytest.raises(BadInput):
        desk.run(run_id)
    assert not [one for one in truth.machines() if f"-{run_id}-" in one["name"]]


def test_a_scheduled_run_that_comes_too_late_is_skipped_until_somebody_wants_it(desk: Desk, truth: Control) -> None:
    deployed = made(desk, "late", schedule=yearly(max_lateness="30s"))
    [flow_run_id] = due(desk, deployed, days=367, runs=1)
    kind, name, message = desk.ended(flow_run_id, within_s=120)
    assert (kind, name) == ("CANCELLED", "Skipped")
    assert "late, max_lateness is 30s; nothing was rented" in message
    assert "it was due at" in message
    assert_unknown(desk, truth, flow_run_id)
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": again})
    until(lambda: desk.state(flow_run_id, FINAL)[1] != "Skipped", within_s=120)
    assert desk.ended(flow_run_id, within_s=120)[0] == "COMPLETED"


def test_a_run_by_hand_is_never_late(desk: Desk) -> None:
    deployed = made(desk, "by-hand", schedule=yearly(max_lateness="1s"))
    early = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2026-01-01T00:00:00Z"}}}
    flow_run = desk.ask("POST", f"/deployments/{deployed.id}/create_flow_run", early)
    assert desk.ended(flow_run["id"], within_s=120)[0] == "COMPLETED"


def test_a_scheduled_run_is_skipped_while_the_one_before_it_lives(desk: Desk, truth: Control) -> None:
    deployed = made(desk, "overlap", run="echo begun; exec sleep 600", schedule=yearly(max_lateness=LONG))
    first = start(desk, deployed).json()["id"]
    desk.wrote(run_id_of(first), "begun", within_s=120)
    [second] = due(desk, deployed, days=366, runs=1)
    kind, name, message = desk.ended(second, within_s=120)
    assert (kind, name) == ("CANCELLED", "Skipped")
    assert f"overlap-{run_id_of(first)} of this deployment is still running" in message
    assert_unknown(desk, truth, second)
    by_hand = start(desk, deployed).json()["id"]  # who starts it by hand has seen the other
    desk.wrote(run_id_of(by_hand), "begun", within_s=120)
    for flow_run_id in (first, by_hand):
        prefect_api.cancel(desk.api, flow_run_id)
        assert desk.ended(flow_run_id, within_s=120)[0] == "CANCELLED"


def test_of_two_that_are_due_at_once_one_runs(desk: Desk) -> None:
    schedule = {"cron": "0 3 1,2 1 *", "timezone": "UTC", "max_lateness": LONG}
    deployed = made(desk, "pair", run="echo begun; exec sleep 600", schedule=schedule)
    pair = due(desk, deployed, days=(datetime.now(UTC) - datetime(datetime.now(UTC).year, 1, 1, tzinfo=UTC)).days + 1)
    assert len(pair) == 2
    until(lambda: [one for one in pair if prefect_api.flow_run_state(desk.api, one)[1] == "Skipped"], within_s=120)
    [runs] = [one for one in pair if prefect_api.flow_run_state(desk.api, one)[1] != "Skipped"]
    desk.wrote(run_id_of(runs), "begun", within_s=120)
    prefect_api.cancel(desk.api, runs)
    assert desk.ended(runs, within_s=120)[0] == "CANCELLED"


def test_late_runs_do_not_keep_the_one_that_is_in_time_from_running(desk: Desk, truth: Control) -> None:
    """A host that was down finds all that was due meanwhile at once."""
    now = datetime.now(UTC)
    last = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    allowed = f"{round((now - last).total_seconds()) + 86400}s"
    schedule = {"cron": "0 0 1 * *", "timezone": "UTC", "max_lateness": allowed}
    deployed = made(desk, "pile", schedule=schedule)
    *late, in_time = due(desk, deployed, days=(now - last).days + 95)
    assert len(late) >= 2
    assert {desk.ended(one, within_s=120)[1] for one in late} == {"Skipped"}
    assert desk.ended(in_time, within_s=120)[0] == "COMPLETED"
    assert starts_and_left(truth, run_id_of(in_time)) == (1, [])


def test_the_host_makes_an_empty_form_for_each_cloud(desk: Desk) -> None:
    until(lambda: desk.deployments("form-matrixdc"))
    for name, place in [("autodl", "autodl/beijingDC1"), ("matrixdc", "matrixdc/北京一区")]:
        found = shown(desk, f"form-{name}")
        fields = found["parameter_openapi_schema"]["properties"]
        assert place in fields["machine"]["properties"]["places"]["items"]["enum"]
        assert found["enforce_parameter_schema"]


def test_a_name_of_the_hosts_own_deployments_is_refused(desk: Desk) -> None:
    for name in ("run-recipe", "form-autodl"):
        with pytest.raises(BadInput, match="a deployment that the host makes"):
            made(desk, name)


def test_a_pool_that_is_not_there_is_refused(desk: Desk) -> None:
    recipe = recipe_for("autodl")
    with pytest.raises(BadInput, match="has no work pool nowhere"):
        deploy.deploy(desk.settings, desk.api, recipe, name="t", description="", pool="nowhere")


def test_the_description_tells_plan_schedule_and_what_the_host_needs(desk: Desk, tmp_path: Path) -> None:
    recipe = recipe_for("autodl", schedule=yearly(), workdir=str(tmp_path), max_duration="1h")
    with Host.open(desk.settings) as host:
        text = description(recipe, look(host, recipe))
    assert "| → | autodl/" in text
    assert "**Cost of a run**: at most about " in text
    assert "`0 3 1 1 *`, UTC" in text
    assert f"- the folder `{tmp_path}`" in text
    assert "AUTODL\\_TOKEN" in text or "AUTODL_TOKEN" in text


def test_clouds_that_cannot_be_asked_are_told_of(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for("autodl")
    monkeypatch.delenv("AUTODL_TOKEN")
    with Host.open(desk.settings) as host:
        text = description(recipe, look(host, recipe))
    assert "the clouds could not be asked" in text


def test_what_never_runs_is_refused(desk: Desk) -> None:
    recipe = recipe_for("autodl", snapshot={"name": "x"})
    with Host.open(desk.settings) as host, pytest.raises(BadInput, match="cannot save snapshots"):
        look(host, recipe)
    unknown = Recipe.model_validate({"name": "t", "run": "true", "resources": {"infra": "aws", "gpu": "L20"}})
    with pytest.raises(BadInput, match="there is no backend aws"):
        deploy.may_run_on(unknown)
