"""Sixty recipes on three hosts and two Prefect servers, one of the hosts killed and a server restarted meanwhile."""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_server.server import FakeServer
from gpujobs import prefect_api
from gpujobs import settings as gpujobs_settings
from gpujobs.ledger import Ledger, open_ledger
from gpujobs.ledger_rows import ENDED
from tests.cloud import STARTS, Control, recipe_for
from tests.prefect.desk import until
from tests.scale.team import Team
from tests.servers import Postgresql, redis

pytestmark = [pytest.mark.scale, pytest.mark.timeout(900)]
RUNS = 60
RECIPE = recipe_for("autodl", run="echo begun; sleep 5; echo over; echo kept > kept", outputs={"kept": "kept"})


@pytest.fixture
def cloud() -> Iterator[FakeServer]:
    with FakeServer(seed=1) as server:
        yield server


@pytest.fixture
def team(cloud: FakeServer, postgres: Postgresql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "GPUJOBS_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        **cloud.env(),
        "GPUJOBS_HOME": str(tmp_path / "desk"),
        "GPUJOBS_OWNER": "tester",
        "GPUJOBS_DATABASE_URL": postgres.new_database(),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PREFECT_HOME": str(tmp_path / "desk-prefect"),
    }.items():
        monkeypatch.setenv(name, value)
    with redis() as port:
        theirs = postgres.new_database().replace("://", "+asyncpg://")
        servers = {
            "GPUJOBS_REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": theirs,
        }
        started = Team(folder=tmp_path, environment={**os.environ, **servers})
        try:
            yield started
        finally:
            started.end()


def begin(team: Team) -> None:
    team.start("database", "database")
    team.finish("database")
    for number in range(2):
        team.start_api(number)
    team.start("services", "services")
    for number in range(3):
        team.start_host(number)
    team.await_apis()


def submit_all(team: Team) -> dict[str, str]:
    """Hand in the recipes, in turns to either server; give the flow runs by the runs' ids."""
    settings = gpujobs_settings.load()
    return dict(prefect_api.submit(settings, team.apis[number % 2], RECIPE, 300.0) for number in range(RUNS))


def states(ledger: Ledger) -> Counter[str]:
    return Counter(run.state for run in ledger.list_runs())


def drivers(ledger: Ledger) -> set[int]:
    """The pids of the processes that drive runs now."""
    return {int(run.driver.split(":")[1]) for run in ledger.list_runs(states=["running"]) if run.driver}


def test_sixty_runs_outlive_a_killed_host_and_a_restarted_server(team: Team, cloud: FakeServer) -> None:
    control, began_s = Control(cloud), time.monotonic()
    begin(team)
    flow_runs = submit_all(team)
    with open_ledger(os.environ["GPUJOBS_DATABASE_URL"]) as ledger:
        hosts = {team.parts[name].pid: name for name in ("host-0", "host-1", "host-2")}
        deadline = time.monotonic() + 300
        while not (driving := drivers(ledger) & hosts.keys()):
            assert time.monotonic() < deadline, "no host drives a run"
            time.sleep(0.05)
        team.kill(hosts[driving.pop()])
        team.kill("api-1", signal.SIGTERM)
        team.start_api(1)
        until(lambda: states(ledger)["succeeded"] == RUNS or _hopeless(ledger), within_s=600)
        assert states(ledger) == {"succeeded": RUNS}
        for flow_run_id in flow_runs.values():
            until(lambda: prefect_api.flow_run_state(team.apis[0], flow_run_id)[0] == "COMPLETED", within_s=120)  # noqa: B023
        assert {run.id for run in ledger.list_runs()} == set(flow_runs)
    assert starts(control) == dict.fromkeys(flow_runs, 1)
    assert control.left() == []
    print(f"{RUNS} runs in {time.monotonic() - began_s:.0f} s, servers' start included")  # noqa: T201


def _hopeless(ledger: Ledger) -> bool:
    return all(run.state in ENDED for run in ledger.list_runs()) and len(ledger.list_runs()) == RUNS


def starts(control: Control) -> dict[str, int]:
    """How often each run's command was started, by the cloud's own ledger."""
    found: Counter[str] = Counter()
    for machine in control.machines():
        match = re.fullmatch(r"gj-tester-(\w+)-\d+", machine["name"])
        assert match
        begun = [one for one in machine["commands"] if one["command"].endswith(STARTS) and one["exit_code"] == 0]
        found[match[1]] += len(begun)
    return dict(found)
