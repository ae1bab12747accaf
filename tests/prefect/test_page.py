"""What a flow run's page shows: asked of the Prefect server by the calls that its UI makes."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs import prefect_api
from gpujobs.backends import load
from gpujobs.clock import SystemClock
from gpujobs.prefect_api import run_id_of
from gpujobs.shell import connect
from tests.cloud import Control, recipe_for
from tests.prefect.desk import Desk, until

pytestmark = pytest.mark.timeout(600)

WAITS = "echo saved > kept; echo begun; while [ ! -e /root/go ]; do sleep 0.1; done"


def artifacts(desk: Desk, flow_run_id: str) -> Mapping[str, Any]:
    """The flow run's artifacts by key, or by their type where they have none; no two are the same."""
    found = desk.ask("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
    keys = [one["key"] or f"{one['type']}: {one['description']}" for one in found]
    assert len(keys) == len(set(keys)), keys
    return dict(zip(keys, found, strict=True))


def rows(markdown: str) -> Mapping[str, str]:
    """The rows of a Markdown table of two columns."""
    return dict(re.findall(r"^\| (\w[^|]*) \| (.*) \|$", markdown, flags=re.MULTILINE))


def events(desk: Desk, run_id: str) -> Sequence[str]:
    """The names of the events about a run, first to last."""
    about = {"resource": {"id": [f"gpujobs.run.{run_id}"]}, "order": "ASC"}
    return [one["event"] for one in desk.ask("POST", "/events/filter", {"filter": about})["events"]]


def found_by(desk: Desk, *tags: str) -> Sequence[str]:
    """The ids of the flow runs that have all these tags, as the UI's filter finds them."""
    body = {"flow_runs": {"tags": {"all_": list(tags)}}}
    return [one["id"] for one in desk.ask("POST", "/flow_runs/filter", body)]


def labels(desk: Desk, flow_run_id: str) -> set[str]:
    """Our labels of a flow run, written as its tags are."""
    found = desk.ask("GET", f"/flow_runs/{flow_run_id}")["labels"]
    return {f"{name.removeprefix('gpujobs.')}:{value}" for name, value in found.items() if name.startswith("gpujobs.")}


def files_under(*folders: Path) -> Sequence[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def say_go(desk: Desk, backend: str, run_id: str) -> None:
    """Let the job on the run's machine come to its end."""
    door = load(backend, desk.settings, clock=SystemClock())
    [machine] = door.find(f"gj-tester-{run_id}-")
    access = door.access(machine)
    assert access is not None
    shell = connect(access, host_key=None, pkey_path=None)
    shell.check("touch /root/go", what="letting the job go on")
    shell.close()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A run, what its page showed while it worked, and what must not stand anywhere."""

    flow_run_id: str
    run_id: str
    during: Mapping[str, Any]
    secrets: Sequence[str]


@pytest.fixture(scope="module")
def shown(desk: Desk, cloud: FakeServer) -> Shown:
    """A run that waited for its machine, and then for a word of ours, and has come to its end."""
    Control(cloud).ask("POST", "faults", {"kind": "stuck_in_creating", "provider": "matrixdc", "seconds": 5})
    recipe = recipe_for("matrixdc", name="digits_2.x", run=WAITS, outputs={"kept": "kept"}, max_duration="10m")
    flow_run_id = desk.create(recipe.model_dump(mode="json", exclude_unset=True))
    run_id = run_id_of(flow_run_id)
    desk.wrote(run_id, "begun")
    until(lambda: "digits-2-x-links" in artifacts(desk, flow_run_id))
    during = artifacts(desk, flow_run_id)
    [instance] = [one for one in cloud.world.matrixdc.instances.values() if run_id in one.order.display_name]
    say_go(desk, "matrixdc", run_id)
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    return Shown(
        flow_run_id=flow_run_id, run_id=run_id, during=during, secrets=[instance.token, instance.password, cloud.token]
    )


def test_summary_tells_what_runs_where_and_at_what_price_while_it_runs(shown: Shown) -> None:
    text = shown.during["digits-2-x-summary"]["data"]
    told = rows(text)
    assert (told["Result"], told["Price"], told["Bill"]) == ("running", "2.50 CNY/h", "not yet known")
    assert told["Where"] == f"4090 ×1 on matrixdc/host-cluster, as gj-tester-{shown.run_id}-1"
    assert WAITS in text


def test_summary_tells_the_end_the_outputs_the_bill_and_that_the_machine_is_gone(shown: Shown, desk: Desk) -> None:
    summary = artifacts(desk, shown.flow_run_id)["digits-2-x-summary"]
    told = rows(summary["data"])
    folder, cost = desk.settings.runs / shown.run_id, desk.run(shown.run_id).cost_cny
    assert (told["Result"], told["Exit code"], told["Bill"]) == ("succeeded", "0", f"{cost:.4f} CNY")
    assert (told["Outputs"], told["Log"]) == (f"kept: {folder}/outputs/kept", f"{folder}/output.log")
    [machine] = desk.ledger.machines(shown.run_id)
    assert machine.gone_at is not None
    assert told["Machine"] == f"gone at {machine.gone_at.astimezone():%H:%M %Z on %Y-%m-%d}"
    assert summary["description"] == f"**succeeded**, {told['Bill']}, {told['Machine']}"


def test_cost_table_has_a_row_for_each_attempt_and_the_sum(shown: Shown, desk: Desk) -> None:
    cost = artifacts(desk, shown.flow_run_id)["digits-2-x-cost"]
    attempt, total = json.loads(cost["data"])
    [bill] = desk.ledger.bills(shown.run_id)
    assert bill.seconds is not None
    assert cost["description"] == f"{bill.cost_cny:.4f} CNY for 1 attempt"
    assert list(attempt)[:4] == ["attempt", "CNY", "seconds", "CNY per hour"]  # the others may not fit on the page
    assert (cost["type"], attempt["attempt"], total["attempt"]) == ("table", 1, "total")
    assert (attempt["seconds"], attempt["CNY per hour"]) == (round(bill.seconds), "2.50")
    assert attempt["CNY"] == total["CNY"] == f"{bill.cost_cny:.4f}"


def test_links_lead_to_the_services_without_their_tokens_and_end_with_the_machine(shown: Shown, desk: Desk) -> None:
    before = shown.during["digits-2-x-links"]["data"]
    assert re.findall(r"\[(\w+)\]\(http://[0-9a-f-]+\.gw\.neolink-ai\.com(/\w+)\)", before) == [
        ("Jupyter", "/jupyter"),
        ("TensorBoard", "/monitor"),
    ]
    assert "without their tokens" in before
    after = artifacts(desk, shown.flow_run_id)["digits-2-x-links"]["data"]
    assert after == "The machine is released; its services are gone.\n"


def test_a_wait_of_some_seconds_has_a_progress_artifact_in_its_phase(shown: Shown, desk: Desk) -> None:
    found = artifacts(desk, shown.flow_run_id)
    waits = [one for one in found.values() if one["type"] == "progress"]
    assert [one["data"] for one in waits] == [100.0] * len(waits)
    [wait] = [one for one in waits if one["description"].startswith("waiting for the machine: ")]
    assert wait["description"].endswith("s, over")
    task = desk.ask("GET", f"/task_runs/{wait['task_run_id']}")
    assert task["name"] == "boot"


def test_run_is_found_by_each_of_its_tags(shown: Shown, desk: Desk) -> None:
    named = ["backend:matrixdc", "gpu:4090", "region:host-cluster", "owner:tester", "recipe:digits_2.x"]
    assert found_by(desk, "gpujobs", *named, f"run:{shown.run_id}") == [shown.flow_run_id]
    until(lambda: labels(desk, shown.flow_run_id), within_s=100)  # on SQLite the server often wants that call again
    assert labels(desk, shown.flow_run_id) == {*named, f"run:{shown.run_id}"}


def test_each_phase_and_the_end_is_an_event_that_automations_can_hear(shown: Shown, desk: Desk) -> None:
    phases = ["plan", "provision", "boot", "push", "run", "pull", "release"]
    wanted = [f"gpujobs.run.{name}" for name in [*phases, "succeeded"]]
    until(lambda: len(events(desk, shown.run_id)) >= len(wanted))
    assert events(desk, shown.run_id) == wanted


def test_prefect_and_the_runs_folder_hold_no_secret(shown: Shown, desk: Desk) -> None:
    home = desk.settings.home
    files = files_under(home / "prefect", home / "controller", home / "runs" / shown.run_id)
    assert len(files) > 5
    for secret in shown.secrets:
        assert len(secret) > 7
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_log_says_nothing_twice_and_not_that_each_phase_ended_well(shown: Shown, desk: Desk) -> None:
    desk.logged(shown.flow_run_id, "0 machines alive")
    lines = prefect_api.logs(desk.api, shown.flow_run_id)
    assert len(lines) == len(set(lines)), lines
    assert "Finished in state Completed()" not in lines
    assert [line for line in lines if line in {"begun", f"run: gj-tester-{shown.run_id}-1"}] == [
        f"run: gj-tester-{shown.run_id}-1",
        "begun",
    ]


@pytest.fixture(scope="module")
def failed(desk: Desk) -> tuple[str, str]:
    """A run whose command failed: its id and its flow run's."""
    run_id, flow_run_id = desk.submit("echo only to be read in the run; exit 3")
    assert desk.ended(flow_run_id)[0] == "FAILED"
    return run_id, flow_run_id


def test_hosts_own_log_has_the_failure_once_and_nothing_of_the_jobs_output(failed: tuple[str, str], desk: Desk) -> None:
    desk.wrote(failed[0], "only to be read in the run")
    lines = (desk.settings.home / "controller" / "worker.log").read_text().splitlines()
    assert len([line for line in lines if failed[0] in line and "exit code 3" in line and "Task run" in line]) == 1
    assert [line for line in lines if "only to be read" in line or line == "NoneType: None"] == []


def test_page_of_a_failed_run_tells_why_and_what_it_cost(failed: tuple[str, str], desk: Desk) -> None:
    run_id, flow_run_id = failed
    found = artifacts(desk, flow_run_id)
    told = rows(found["t-summary"]["data"])
    assert told["Result"].startswith("failed: the command ended with exit code 3")
    assert told["Exit code"] == "3"
    assert json.loads(found["t-cost"]["data"])[-1]["result"] == "failed"
    until(lambda: events(desk, run_id)[-1:] == ["gpujobs.run.failed"])


def test_page_of_a_run_that_rented_nothing_says_so(desk: Desk) -> None:
    _, flow_run_id = desk.submit("true", resources={"accelerators": "GTX 9999"})
    assert desk.ended(flow_run_id)[0] == "FAILED"
    told = rows(artifacts(desk, flow_run_id)["t-summary"]["data"])
    assert (told["Machine"], "GTX 9999" in told["Result"], told["Bill"]) == ("none was rented", True, "0.00 CNY")
