"""A decorated function in a Prefect flow: its calls are task runs, with all that Prefect gives to those."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.call.project import write
from tests.cloud import Control
from tests.prefect.desk import FINAL, Desk, until

pytestmark = pytest.mark.timeout(900)
LIMIT_S = 600

WORK = """
@gpu_job(**KEYS)
def train(rate: float, epochs: int = 2) -> dict:
    print(f"rate {rate} epochs {epochs}", flush=True)
    return {"loss": rate * epochs}

@gpu_job(**KEYS)
def shaky(name: str) -> str:
    print(f"told by {name}", flush=True)
    raise ValueError(name)

@gpu_job(**KEYS)
def flaky(name: str) -> str:
    if not Path(name).exists():  # in the workdir, on the one machine
        Path(name).touch()
        raise OSError(name)
    return name

@gpu_job(**KEYS)
def sleep(seconds: int) -> None:
    print("asleep", flush=True)
    time.sleep(seconds)
"""
FLOWS = """
import json, sys
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.futures import PrefectFuture, as_completed, wait
from work import flaky, shaky, sleep, train

@task
def best(metrics: dict, others: list) -> float:
    return min([metrics["loss"], *(other["loss"] for other in others)])

@flow
def study() -> dict:
    first, several = train.submit(0.5), train.map([1.0, 2.0, 3.0])
    futures = [first, *several]
    assert all(isinstance(future, PrefectFuture) for future in futures)
    lowest = best.submit(first, several)
    retried = flaky.with_options(retries=1).map(["one", "two"])
    failed = shaky.with_options(retries=1).submit("twice")
    timed = sleep.with_options(timeout_seconds=2).submit(600)
    cached = train.with_options(cache_policy=INPUTS, name="cached")
    again = [cached.submit(7.0).result(), cached.submit(7.0).result()]
    losses = sorted(future.result()["loss"] for future in as_completed(futures))
    assert not wait([lowest, failed, timed]).not_done
    assert retried.result() == ["one", "two"]
    return {"losses": losses, "best": lowest.result(), "again": again, "direct": train.remote(9.0)}

@flow
def leaving() -> str:
    train.submit(11.0)
    return "left"

@flow
def long() -> None:
    many = sleep.map([601, 602])
    sleep.submit(600).result()

if __name__ == "__main__":
    if sys.argv[1:] == ["long"]:
        long()
    else:
        print("RESULT", json.dumps([study(return_state=True).result(raise_on_failure=False), leaving()]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A flow's file, beside the module of the functions: a machine has no Prefect."""
    (write(tmp_path / "proj", "work.py", WORK).parent / "study.py").write_text(FLOWS, encoding="utf-8")
    return tmp_path / "proj" / "study.py"


def environment(desk: Desk) -> Mapping[str, str]:
    """With more patience for a server that is too busy than Prefect has by itself."""
    more = {"PREFECT_API_URL": desk.api, "PREFECT_CLIENT_MAX_RETRIES": "20", "DO_NOT_TRACK": "1"}
    return {**os.environ, **more}


def task_runs(desk: Desk, flow_run: str) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The newest flow run's task runs by the names of their tasks, once all have ended there."""
    found: list[Any] = []

    def all_ended() -> bool:
        body = {"flows": {"name": {"any_": [flow_run]}}, "sort": "EXPECTED_START_TIME_DESC"}
        found[:] = desk.ask("POST", "/task_runs/filter", body)
        return bool(found) and all(one["state_type"] in FINAL for one in found)

    until(all_ended, within_s=180)
    names = {one["name"].rpartition("-")[0] for one in found}
    return {name: [one for one in found if one["name"].rpartition("-")[0] == name] for name in names}


def told(desk: Desk, task_run: Mapping[str, Any]) -> str:
    body = {"logs": {"task_run_id": {"any_": [task_run["id"]]}}, "sort": "TIMESTAMP_ASC"}
    return "\n".join(line["message"] for line in desk.ask("POST", "/logs/filter", body))


def artifact(desk: Desk, task_run: Mapping[str, Any]) -> str:
    found = desk.ask("POST", "/artifacts/filter", {"artifacts": {"task_run_id": {"any_": [task_run["id"]]}}})
    return "\n".join(str(one["data"]) for one in found)


def test_calls_in_a_flow_are_task_runs(desk: Desk, truth: Control, script: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=script.parent,
        env=environment(desk),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert "RESULT" in done.stdout, done.stderr
    assert json.loads(done.stdout.partition("RESULT ")[2]) == [
        {
            "losses": [1.0, 2.0, 4.0, 6.0],
            "best": 1.0,
            "again": [{"loss": 14.0}, {"loss": 14.0}],
            "direct": {"loss": 18.0},
        },
        "left",
    ], done.stderr
    runs = task_runs(desk, "study")
    states = {name: sorted((one["state_name"], one["run_count"]) for one in found) for name, found in runs.items()}
    assert states == {
        "train": [("Completed", 1)] * 5,  # one by itself, three on a fleet, one that was waited for
        "best": [("Completed", 1)],
        "flaky": [("Completed", 2)] * 2,  # on the machine that had seen their first tries
        "shaky": [("Failed", 2)],
        "sleep": [("TimedOut", 1)],
        "cached": [("Cached", 1), ("Completed", 1)],
    }
    for rate in ("0.5", "1.0", "2.0", "3.0", "9.0"):
        [mine] = [one for one in runs["train"] if f"rate {rate} epochs 2" in told(desk, one)]
        assert told(desk, mine).count("rate ") == 1, "its own output alone"
        assert f'"loss": {float(rate) * 2}' in artifact(desk, mine)
    assert told(desk, runs["shaky"][0]).count("told by twice") == 2
    assert "ValueError" in runs["shaky"][0]["state"]["message"]
    assert [one["state_name"] for one in task_runs(desk, "leaving")["train"]] == ["Completed"]
    logs = "".join(told(desk, one) for name, found in runs.items() if name != "sleep" for one in found)
    ids, names = set(re.findall(r"gpujobs run (\w+)\n", logs)), [machine["name"] for machine in truth.machines()]
    assert len(ids) == 7, "two calls, one for each map, two tries of one call, and one that is cached"
    assert [sum(f"-{run_id}-" in name for name in names) for run_id in ids] == [1] * 7, "a machine each"
    assert truth.left() == []


def asleep(desk: Desk, known: set[Path]) -> Sequence[Path]:
    """The runs' logs, of those that are not known, that say that their work has begun."""
    logs = [run / "output.log" for run in desk.settings.runs.iterdir() if run not in known]
    return [log for log in logs if log.exists() and "asleep" in log.read_text()]


def test_a_flow_that_is_cancelled_stops_its_calls_and_releases(desk: Desk, truth: Control, script: Path) -> None:
    known = set(desk.settings.runs.iterdir()) if desk.settings.runs.exists() else set()
    with subprocess.Popen(
        [sys.executable, str(script), "long"],
        cwd=script.parent,
        env=environment(desk),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(lambda: len(asleep(desk, known)) == 2, within_s=300)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=LIMIT_S)
    states = [one["state_type"] for one in task_runs(desk, "long")["sleep"]]
    assert states == ["CANCELLED"] * 3, err
    assert truth.left() == []
