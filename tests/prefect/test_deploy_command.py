"""`gpujobs deploy` as a user types it, against a real Prefect server; and what it refuses before it asks one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpujobs.prefect_api import run_id_of
from tests.cloud import Control
from tests.prefect.desk import Desk, starts_and_left

pytestmark = pytest.mark.timeout(600)

RECIPE = """\
name: {name}
resources: {{infra: autodl, accelerators: RTX 4090}}
workdir: .
envs: {{LR: "0.1"}}
run: echo $LR
"""


def command(folder: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gpujobs", "deploy", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(RECIPE.format(name=f"cli-{name}"))
    return tmp_path


def test_one_recipe_with_a_schedule_from_the_command_line(desk: Desk, folder: Path) -> None:
    words = ("one.yaml", "--cron", "*/5 2 * * *", "--timezone", "UTC", "--name", "cli-nightly", "--set", "envs.LR=0.3")
    done = command(folder, *words, PREFECT_API_URL=desk.api)
    assert done.returncode == 0, done.stderr
    assert "cli-nightly: created" in done.stdout
    assert "runs at */5 2 * * *, UTC; next 20" in done.stdout
    assert f"the host that runs it needs: the folder {folder}" in done.stdout
    found = desk.ask("GET", "/deployments/name/run-recipe/cli-nightly")
    assert found["parameters"]["envs"] == {"LR": "0.3"}
    assert found["parameters"]["rest"]["schedule"] == {"cron": "*/5 2 * * *", "timezone": "UTC"}
    desk.ask("DELETE", f"/deployments/{found['id']}")


def test_a_folder_of_recipes(desk: Desk, folder: Path) -> None:
    done = command(folder, "--all", ".", "--json", PREFECT_API_URL=desk.api)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["deployments"]
    assert [(one["name"], one["made"], one["cron"]) for one in made] == [
        ("cli-one", "created", None),
        ("cli-two", "created", None),
    ]
    found = desk.ask("GET", f"/deployments/{made[0]['id']}")
    assert made[0]["url"] == f"{desk.api.removesuffix('/api')}/deployments/deployment/{found['id']}"
    again = command(folder, "--all", ".", "--json", PREFECT_API_URL=desk.api)
    assert [one["made"] for one in json.loads(again.stdout)["deployments"]] == ["unchanged"] * 2


def test_deployment_on_a_pool_of_processes_is_run_to_its_end_by_prefects_own_worker(
    desk: Desk, truth: Control, folder: Path
) -> None:
    desk.ask("POST", "/work_pools/", {"name": "cli-processes", "type": "process"})
    words = ("one.yaml", "--name", "cli-process", "--pool", "cli-processes", "--json")
    done = command(folder, *words, PREFECT_API_URL=desk.api)
    assert done.returncode == 0, done.stderr
    [deployment] = json.loads(done.stdout)["deployments"]
    made = desk.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {}})
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", "cli-processes"]
    home = str(desk.settings.home / "prefect-cli")
    environment = {**os.environ, "PREFECT_API_URL": desk.api, "PREFECT_HOME": home}
    process = subprocess.Popen(worker, cwd=folder, env=environment, stdin=subprocess.DEVNULL)
    try:
        assert desk.ended(made["id"], within_s=240)[0] == "COMPLETED"
    finally:
        process.kill()
        process.wait()
    run_id = run_id_of(made["id"])
    assert desk.ask("GET", f"/flow_runs/{made['id']}")["infrastructure_pid"]
    assert (desk.settings.runs / run_id / "output.log").read_text() == "0.1\n"
    assert starts_and_left(truth, run_id) == (1, [])
    desk.ask("DELETE", f"/deployments/{deployment['id']}")
    desk.ask("DELETE", "/work_pools/cli-processes")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("one.yaml", "--cron", "61 * * * *"), "--cron: '61 * * * *' has a wrong minute"),
        (("one.yaml", "--cron", "0 2 * * *", "--timezone", "Beijing"), "--timezone: 'Beijing' is not a time zone"),
        (("one.yaml", "--timezone", "UTC"), "--timezone is of a schedule, and this recipe has none"),
        (("one.yaml", "--name", "run-recipe"), "run-recipe is the name of a deployment that the host makes"),
        (("one.yaml", "--name", "No Such"), "--name No Such: write 1 to 40 small letters"),
        (("--all", "one.yaml"), "one.yaml is not a folder; leave --all out"),
        (("--all", ".", "--cron", "0 2 * * *"), "are for one recipe, not for --all"),
        (("--all", "same"), "another recipe there is named cli-same too"),
        (("--all", "empty"), "empty holds no recipe"),
    ],
)
def test_bad_input_is_refused_before_a_server_is_asked(folder: Path, words: tuple[str, ...], said: str) -> None:
    (folder / "empty").mkdir()
    (folder / "same").mkdir()
    for name in ("a.yaml", "b.yml"):
        (folder / "same" / name).write_text(RECIPE.format(name="cli-same"))
    done = command(folder, *words, PREFECT_API_URL="http://127.0.0.1:9/api", GPUJOBS_HOME=str(folder / "home"))
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
