"""A decorated function as a deployment: a form from its signature, a run like any other, and its result on the page."""

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests

from gpujobs import deploy
from gpujobs.errors import BadInput
from gpujobs.prefect_api import run_id_of
from tests.call.project import load, write
from tests.cloud import Control, recipe_for
from tests.prefect.desk import Desk, starts_and_left

pytestmark = pytest.mark.timeout(900)

FORMED = """
from datetime import date
from typing import Literal

@dataclasses.dataclass
class Metrics:
    loss: float
    seen: list

@gpu_job(**KEYS, envs={"WORD": "sent"})
def fit(rate: float, epochs: int = 2, kind: Literal["sgd", "adam"] = "sgd", since: date = date(2026, 1, 2)) -> Metrics:
    '''Fit it.

    Args:
        rate: how fast
    '''
    if rate < 0:
        raise ValueError(f"a rate of {rate} is none")
    return Metrics(rate * epochs, [type(rate).__name__, kind, str(since), os.environ["WORD"]])

@gpu_job(**KEYS)
def nightly(epochs: int = 2) -> int:
    return epochs

@gpu_job(**KEYS, trust_remote=True)
def pickled() -> object:
    return Metrics(0.5, [])

@gpu_job(**KEYS)
def odd(metrics: Metrics) -> None:
    pass

@gpu_job(**KEYS)
def many(*rates: float) -> None:
    pass

def nested():
    @gpu_job(**KEYS)
    def inner() -> None:
        pass
    return inner
"""


@pytest.fixture
def formed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the functions."""
    return load(write(tmp_path / "proj", "formed.py", FORMED), monkeypatch)


def start(desk: Desk, deployment_id: str, arguments: Mapping[str, Any]) -> requests.Response:
    path = f"{desk.api}/deployments/{deployment_id}/create_flow_run"
    replies = (requests.post(path, json={"parameters": {"arguments": arguments}}, timeout=60) for _ in range(100))
    return next(reply for reply in replies if reply.status_code != 503)  # SQLite under many writers


def test_a_deployed_function_runs_from_its_form(desk: Desk, truth: Control, formed: ModuleType) -> None:
    made, again = formed.fit.deploy(), formed.fit.deploy()
    assert (made.name, made.made, again.id, again.made) == ("fit", "created", made.id, "unchanged")
    found = desk.ask("GET", f"/deployments/{made.id}")
    fields = found["parameter_openapi_schema"]["properties"]["arguments"]
    assert list(fields["properties"]) == ["rate", "epochs", "kind", "since"]
    assert fields["required"] == ["rate"]
    assert fields["properties"]["rate"]["description"] == "how fast"
    refused = start(desk, made.id, {"rate": "fast"})
    assert (refused.status_code, "rate" in refused.text) == (409, True)
    flow_runs = [start(desk, made.id, {"rate": rate}).json()["id"] for rate in (1, -1)]
    flow_runs.append(start(desk, formed.pickled.deploy().id, {}).json()["id"])
    kind, _, message = desk.ended(flow_runs[0], within_s=300)
    assert kind == "COMPLETED", message
    told = '{"loss": 2.0, "seen": ["float", "sgd", "2026-01-02", "sent"]}'
    assert message.startswith(f"returned {told}; cost ")
    shown = desk.ask("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_runs[0]]}}})
    assert told in next(one["data"] for one in shown if one["key"] == "fit-result")
    run_id = run_id_of(flow_runs[0])
    assert desk.ask("GET", f"/flow_runs/{flow_runs[0]}")["name"] == f"fit-{run_id}"
    assert not (desk.settings.runs / run_id / "call").exists(), "what went up is not kept"
    assert desk.ended(flow_runs[1], within_s=300) == (
        "FAILED",
        "Failed",
        "ValueError: a rate of -1.0 is none",
    )
    assert desk.ended(flow_runs[2], within_s=300)[2].startswith("returned a pickle of "), "and it is not read"
    assert [starts_and_left(truth, run_id_of(one)) for one in flow_runs] == [(1, [])] * 3


def test_a_process_of_its_own_runs_it_as_well(desk: Desk, truth: Control, formed: ModuleType) -> None:
    desk.ask("POST", "/work_pools/", {"name": "processes", "type": "process"})
    made = formed.nightly.deploy("alone", pool="processes")
    flow_run = start(desk, made.id, {"epochs": 5}).json()["id"]
    environment = {
        **os.environ,
        "PREFECT_API_URL": desk.api,
        "PREFECT__FLOW_RUN_ID": flow_run,
        "PREFECT_CLIENT_MAX_RETRIES": "20",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect.engine"]  # as a worker of Prefect's starts it
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    kind, _, message = desk.ended(flow_run)
    assert (kind, message[:11]) == ("COMPLETED", "returned 5;"), done.stderr
    assert starts_and_left(truth, run_id_of(flow_run)) == (1, [])


def test_its_schedule_is_obeyed_as_a_recipes_is(desk: Desk, truth: Control, formed: ModuleType) -> None:
    made = formed.nightly.deploy(cron="0 3 1 1 *", timezone="UTC")
    [schedule] = desk.ask("GET", f"/deployments/{made.id}")["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 3 1 1 *", "UTC")
    now = datetime.now(UTC)
    body = {"start_time": (now - timedelta(days=367)).isoformat(), "end_time": now.isoformat(), "min_runs": 1}
    desk.ask("POST", f"/deployments/{made.id}/schedule", body)
    due = {"deployments": {"id": {"any_": [made.id]}}, "sort": "EXPECTED_START_TIME_ASC"}
    late = desk.ask("POST", "/flow_runs/filter", due)[0]["id"]
    kind, name, message = desk.ended(late, within_s=300)
    assert (kind, name) == ("CANCELLED", "Skipped")
    assert message.endswith("nothing was rented")
    assert not (desk.settings.runs / run_id_of(late)).exists()
    assert not [one for one in truth.machines() if f"-{run_id_of(late)}-" in one["name"]]
    assert formed.nightly.deploy().dropped == ["0 3 1 1 *"]


def test_what_a_form_cannot_ask_for_is_refused(desk: Desk, formed: ModuleType) -> None:
    for call, words in (
        (formed.odd.deploy, "the parameter metrics of odd is of a class of its own"),
        (formed.many.deploy, r"the parameter \*rates: float of many cannot be in a form"),
        (formed.nested().deploy, "has no name that a machine could import it by"),
        (lambda: formed.fit.deploy(cron="0 3 * * *"), "give the parameter rate of fit a default"),
        (lambda: formed.nightly.deploy(cron="never"), "cron=: 'never' is not a cron line"),
        (lambda: formed.nightly.deploy(timezone="UTC"), "timezone= is of a schedule"),
        (lambda: formed.nightly.deploy(pool="nowhere"), "has no work pool nowhere"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
    recipe = recipe_for("autodl", name="taken")
    deploy.deploy(desk.settings, desk.api, recipe, name="taken", description="…")
    with pytest.raises(BadInput, match="taken is the deployment of a recipe or a function already"):
        formed.nightly.deploy("taken")
