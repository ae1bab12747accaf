"""A recipe's tasks through a real Prefect server and host: one flow run, with a table of them on its page."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gpujobs import prefect_api
from tests.cloud import Control
from tests.prefect.desk import Desk, starts_and_left, until
from tests.prefect.test_page import artifacts, rows

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("page")]


def table(desk: Desk, flow_run_id: str) -> Sequence[Any]:
    """The rows of the table of tasks that the page shows now; none before there is one."""
    found = artifacts(desk, flow_run_id).get("t-tasks")
    return [] if found is None else list(json.loads(found["data"]))


def test_a_matrix_comes_to_its_end_and_the_page_has_a_row_for_each_task(desk: Desk, truth: Control) -> None:
    script = 'echo "{\\"loss\\": $LR}" >metrics.json; echo kept >kept; [ $LR != 0.5 ] || exit 3'
    run_id, flow_run_id = desk.submit(script, matrix={"LR": ["0.25", "0.5"], "SEED": ["1"]}, outputs={"kept": "kept"})
    kind, _, message = desk.ended(flow_run_id, within_s=120)
    assert (kind, "1 of 2 tasks did not succeed (1)" in message) == ("FAILED", True)
    shown = [
        {name: row[name] for name in ("task", "state", "parameters", "metrics", "attempt", "exit code", "error")}
        for row in table(desk, flow_run_id)
    ]
    assert [tuple(row.values()) for row in shown] == [
        (0, "succeeded", "LR=0.25 SEED=1", "loss=0.25", "1", 0, ""),
        (1, "failed", "LR=0.5 SEED=1", "loss=0.5", "1", 3, "the command ended with exit code 3"),
    ]
    found = artifacts(desk, flow_run_id)
    assert found["t-tasks"]["description"] == "2 tasks: 1 succeeded, 1 failed"
    outputs = desk.settings.runs / run_id / "outputs"
    told = rows(found["t-summary"]["data"])
    assert (told["Tasks"], told["Outputs"]) == (found["t-tasks"]["description"], f"what 2 of the tasks left: {outputs}")
    assert (outputs / "task-0" / "kept").read_text() == "kept\n"
    assert (desk.run(run_id).kind, starts_and_left(truth, run_id)) == ("tasks", (1, []))


def test_cancel_in_prefect_ends_the_tasks_brings_home_what_they_wrote_and_releases(desk: Desk, truth: Control) -> None:
    script = "echo saved >kept; echo begun; [ $GPUJOBS_TASK_INDEX = 0 ] || exec sleep 600"
    run_id, flow_run_id = desk.submit(script, tasks=3, outputs={"kept": "kept"})
    desk.wrote(run_id, "[1] begun", within_s=120)
    wanted = ["succeeded", "running", "waiting"]
    until(lambda: [row["state"] for row in table(desk, flow_run_id)] == wanted, within_s=120)
    prefect_api.cancel(desk.api, flow_run_id)
    assert desk.ended(flow_run_id, within_s=120)[0] == "CANCELLED"
    assert [row.state for row in desk.ledger.tasks(run_id)] == ["succeeded", "cancelled", "cancelled"]
    assert [row["state"] for row in table(desk, flow_run_id)] == ["succeeded", "cancelled", "cancelled"]
    assert (desk.settings.runs / run_id / "outputs" / "task-1" / "kept").read_text() == "saved\n"
    assert starts_and_left(truth, run_id)[1] == []
