"""Every recipe of the project runs to its end on the fake cloud, by the command that its reader would type."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fake_server.server import FakeServer
from gpujobs.settings import Settings
from tests.cloud import Control

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
RUNS = [  # recipe, backend that it may choose
    ("quickstart.yaml", "autodl"),
    ("quickstart.yaml", "matrixdc"),
    ("sweep.yaml", "autodl"),
    ("sweep.yaml", "matrixdc"),
    ("autodl.yaml", None),
    ("matrixdc.yaml", None),
]


@pytest.fixture
def cloud(fake: FakeServer, cloud_settings: Settings) -> Control:
    """The settings stand in the environment, which the commands inherit."""
    assert cloud_settings.home.exists()
    return Control(fake)


def submit(recipe: str, *more: str) -> dict[str, object]:
    command = [sys.executable, "-m", "gpujobs", "submit", str(RECIPES / recipe), "--here", "--yes", "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def outputs(run: dict[str, object]) -> dict[str, Path]:
    return {name: Path(path) for name, path in run["outputs"].items()}  # type: ignore[attr-defined]  # from JSON


def test_none_is_forgotten() -> None:
    chain = {"snapshot_chain.yaml", "snapshot_chain_next.yaml", "matrix.yaml"}
    assert {path.name for path in RECIPES.glob("*.yaml")} == {name for name, _ in RUNS} | chain


@pytest.mark.parametrize(("recipe", "backend"), RUNS)
def test_it_learns_digits_and_leaves_nothing(recipe: str, backend: str | None, cloud: Control) -> None:
    run = submit(recipe, *(["--set", f"resources.infra={backend}"] if backend else []))
    came = outputs(run)
    results = came.get("results")
    metrics = results / "metrics.json" if results else came["metrics"]
    picture = results / "learning_curve.svg" if results else came["learning_curve.svg"]
    weights = results / "model.npz" if results else came["model.npz"]
    assert json.loads(metrics.read_text())["test_accuracy"] > 0.9
    assert picture.read_text().startswith("<svg")
    assert weights.read_bytes().startswith(b"PK")
    assert (len(cloud.machines()), cloud.left()) == (1, [])


def test_the_chain_installs_once_and_the_next_run_uses_it(cloud: Control) -> None:
    submit("snapshot_chain.yaml")
    came = outputs(submit("snapshot_chain_next.yaml"))
    assert came["mean_digits.txt"].read_text().strip()
    assert (len(cloud.machines()), cloud.left()) == (2, [])


def test_the_matrix_learns_digits_once_for_each_pair(cloud: Control) -> None:
    run = submit("matrix.yaml", "--set", "resources.infra=autodl")
    status = [sys.executable, "-m", "gpujobs", "status", str(run["run_id"])]
    told = json.loads(subprocess.run([*status, "--json"], capture_output=True, text=True, check=True).stdout)
    assert [(task["state"], task["parameters"]) for task in told["tasks"]] == [
        ("succeeded", {"LR": rate, "SEED": seed}) for rate in ("0.005", "0.02") for seed in ("1", "2")
    ]
    assert all(task["metrics"]["test_accuracy"] > 0.8 for task in told["tasks"])
    lines = subprocess.run(status, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[:4] for line in lines if "succeeded" in line][2:4] == [
        ["0", "succeeded", "0.005", "1"],
        ["1", "succeeded", "0.005", "2"],
    ]
    assert {(home / "results" / "model.npz").exists() for home in outputs(run).values()} == {True}
    assert (len(cloud.machines()) <= 2, cloud.left()) == (True, [])
