"""The programs of the recipes do what they say. The recipes themselves are run whole in test_recipes."""

import ast
import gzip
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
DATA = RECIPES / "digits/optdigits.csv.gz"


def program(path: Path, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False)


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


# The data


def test_the_digits_are_the_ones_that_the_readme_names() -> None:
    digest = hashlib.sha256(DATA.read_bytes()).hexdigest()
    assert digest in (DATA.parent / "README.md").read_text()
    with gzip.open(DATA, "rt") as file:
        rows = np.loadtxt(file, delimiter=",")
    assert rows.shape == (1797, 65)
    assert (rows[:, :-1].min(), rows[:, :-1].max()) == (0, 16)
    assert sorted(set(rows[:, -1])) == list(range(10))


# The programs


def test_training_reads_nine_in_ten_unseen_digits_and_says_so_in_every_file(tmp_path: Path) -> None:
    done = program(DATA.with_name("train.py"), cwd=tmp_path, EPOCHS="8", LR="0.02", SEED="3")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:8]] == [["epoch", f"{epoch}/8"] for epoch in range(1, 9)]
    metrics = json.loads((tmp_path / "results/metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.9
    assert (metrics["epochs"], metrics["learning_rate"], metrics["seed"]) == (8, 0.02, 3)
    assert f"held out {metrics['test_accuracy']:.4f}" in lines[7]
    with np.load(tmp_path / "results/model.npz") as model:
        assert {name: model[name].shape for name in model} == {
            "w1": (64, 256),
            "b1": (256,),
            "w2": (256, 10),
            "b2": (10,),
        }
    picture = ET.parse(tmp_path / "results/learning_curve.svg").getroot()
    lines_drawn = picture.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines_drawn] == [8, 8]


def test_the_saved_model_gives_the_accuracy_that_was_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(DATA.with_name("train.py"), cwd=tmp_path, EPOCHS="2", SEED="5")
    monkeypatch.syspath_prepend(str(DATA.parent))
    train = module(DATA.with_name("train.py"))
    _, held_out = train.split(train.load(DATA, np.random.RandomState(5)))
    with np.load(tmp_path / "results/model.npz") as model:
        accuracy = train.accuracy(dict(model), held_out)
    assert accuracy == json.loads((tmp_path / "results/metrics.json").read_text())["test_accuracy"]


def test_what_is_tested_on_is_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DATA.parent))
    train = module(DATA.with_name("train.py"))
    shuffled = train.load(DATA, np.random.RandomState(1))
    images, held_out = train.split(shuffled)
    assert (len(images[1]), len(held_out[1])) == (1437, 360)
    for whole, one, other in zip(shuffled, held_out, images, strict=True):
        assert np.array_equal(whole, np.concatenate([one, other]))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate(("1", "1", "2")):
        (tmp_path / str(number)).mkdir()
        program(DATA.with_name("train.py"), cwd=tmp_path / str(number), EPOCHS="1", SEED=seed)
        with np.load(tmp_path / str(number) / "results/model.npz") as model:
            found.append(model["w1"])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_the_slopes_are_those_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DATA.parent))
    train = module(DATA.with_name("train.py"))
    dice = np.random.RandomState(0)
    model, (pixels, digits) = train.new_model(dice), train.load(DATA, dice)
    pixels, digits = pixels[:5], digits[:5]

    def loss() -> float:
        chances = train.forward(model, pixels)[1]
        return float(-np.log(chances[np.arange(5), digits]).mean())

    slopes = train.gradients(model, pixels, digits)
    units = range(0, train.HIDDEN, 16)  # some of which an image leaves idle
    places = [("w1", (20, unit)) for unit in units] + [("b1", (unit,)) for unit in units]
    for name, place in [*places, ("w2", (7, 3)), ("b2", (3,))]:
        small, before = 1e-6, model[name][place]
        model[name][place] = before + small
        above = loss()
        model[name][place] = before - small
        measured = (above - loss()) / (2 * small)
        model[name][place] = before
        assert slopes[name][place] == pytest.approx(measured, abs=1e-7)


@pytest.mark.parametrize("wrong", [{"EPOCHS": "many"}, {"EPOCHS": "0"}, {"LR": "fast"}, {"SEED": "1.5"}])
def test_a_setting_of_no_use_is_refused_in_one_line(tmp_path: Path, wrong: dict[str, str]) -> None:
    done = program(DATA.with_name("train.py"), cwd=tmp_path, **wrong)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert next(iter(wrong)) in done.stderr


def test_the_programs_use_no_grammar_that_python_3_8_lacks() -> None:
    programs = [path.read_text() for path in RECIPES.rglob("*.py")]
    assert len([ast.parse(text, feature_version=(3, 8)) for text in programs]) == 4


def test_the_package_of_the_chain_is_a_wheel(tmp_path: Path) -> None:
    source = RECIPES / "snapshot_chain/install"
    info = source / "inkstats-1.0.dist-info"
    assert Parser().parsestr((info / "METADATA").read_text())["Name"] == "inkstats"
    wheel = tmp_path / "inkstats-1.0-py3-none-any.whl"
    command = [sys.executable, "-m", "zipfile", "-c", str(wheel), "inkstats", info.name]
    subprocess.run(command, cwd=source, check=True)
    listed = {line.partition(",")[0] for line in (info / "RECORD").read_text().splitlines()}
    with zipfile.ZipFile(wheel) as made:
        held = {name for name in made.namelist() if not name.endswith("/") and "__pycache__" not in name}
    assert held == listed
