"""What is wrong with a decorated function is said in plain words before anything is rented; what travels is found."""

import asyncio
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpujobs
from gpujobs import gpu_job
from gpujobs.call_files import Call, write_call
from gpujobs.call_recipe import NOT_OURS, OURS, Keys, for_call, template
from gpujobs.call_source import find_source
from gpujobs.errors import BadInput
from gpujobs.recipe import Recipe, Resources
from gpujobs.remote import IN_WORKDIR
from tests.call.project import load

ROOT = Path(__file__).parents[2]
GPU = {"accelerators": "RTX 4090"}

# Keywords


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, 'gpu_job: accelerators= is missing; add accelerators="RTX 4090:1"'),
        ({**GPU, "infrra": "autodl"}, "gpu_job: infrra is not known; did you mean infra?"),
        ({**GPU, "timeout": "2h"}, "gpu_job: timeout is not known; use max_duration, as 6h"),
        ({**GPU, "run": "x"}, "gpu_job: run= is of no use, since the function is what runs; leave it out"),
        ({**GPU, "max_duration": 7200}, "gpu_job: max_duration: 7200 has no unit; write it with one"),
        ({**GPU, "budget": -1}, "gpu_job: budget must be above 0, not the number -1"),
        ({**GPU, "python": 3.8}, 'gpu_job: python= must be as python="python3.10", not 3.8'),
        ({**GPU, "python": "a\nb"}, "gpu_job: python= must be as"),
        ({**GPU, "trust_remote": "yes"}, "gpu_job: trust_remote= must be as trust_remote=True, not 'yes'"),
        ({**GPU, "outputs": {"_outcome": "x"}}, "_outcome is the name of the function's own result"),
        ({**GPU, "secrets": ["not a name"]}, "gpu_job: secrets: give names of environment variables, not their values"),
    ],
    ids=str,
)
def test_a_wrong_keyword_is_refused_where_the_function_is_decorated(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:

        @gpu_job(**keys)
        def work() -> None:
            pass

    assert said in str(caught.value)
    assert "resources" not in str(caught.value)


def test_every_mistake_is_told() -> None:
    with pytest.raises(BadInput, match=r"(?s)budget.*max_price|max_price.*budget"):
        template({**GPU, "budget": "x", "max_price": "y"}, name="f", folder=Path())


def test_the_keywords_are_those_of_the_recipe() -> None:
    common = template(
        {**GPU, "infra": ["autodl"], "max_price": 3.0, "max_duration": "2h", "file_mounts": {"/data": "data"}},
        name="train_Big.<locals>.Net",
        folder=Path("/proj"),
    )
    call = for_call(common, workdir="/proj", files=Path("/files"), python="python3.9")
    assert (call.name, call.resources.infra, call.resources.max_price) == ("net", ["autodl"], 3.0)
    assert (call.max_duration, call.workdir) == (7200, "/proj")
    assert call.file_mounts == {"/data": "/proj/data", IN_WORKDIR: "/files"}
    assert "python3.9" in call.run
    assert Recipe.model_validate_json(call.model_dump_json()) == call, "a run is resumed from its JSON"


def test_every_key_of_a_recipe_that_a_call_has_a_use_for_is_a_keyword() -> None:
    keys = {*Recipe.model_fields, *Resources.model_fields, *OURS} - {"resources", *NOT_OURS}
    assert set(Keys.__annotations__) == keys


@pytest.mark.parametrize("wrong", [print, int, object()])
def test_only_a_function_can_be_decorated(wrong: Any) -> None:
    with pytest.raises(BadInput, match="gpu_job goes on a function"):
        gpu_job(**GPU)(wrong)  # type: ignore[typeddict-item]


async def _async() -> None:
    await asyncio.sleep(0)


def _generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("wrong", [_async, _generator])
def test_a_function_that_is_async_or_yields_is_refused(wrong: Any) -> None:
    with pytest.raises(BadInput, match=r"is async or yields; make it a function that returns"):
        gpu_job(accelerators="RTX 4090")(wrong)


@gpu_job(accelerators="RTX 4090")
def add(left: int, right: int = 1) -> int:
    """Add."""
    return left + right


def test_here_it_is_the_function_that_it_was() -> None:
    assert (add(1, 2), add.local(1), add.__name__, add.__doc__) == (3, 2, "add", "Add.")
    with pytest.raises(TypeError, match="missing a required argument"):
        add.submit()  # type: ignore[call-arg]


# What travels


def project(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


WORK = "from gpujobs import gpu_job\n@gpu_job(accelerators='4090')\ndef work(x=1):\n    return x\n"


def test_the_folder_with_the_projects_mark_goes_up_and_the_import_root_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"pyproject.toml": "", "src/deep_pkg/__init__.py": "", "src/deep_pkg/mod.py": WORK, "data.txt": ""}
    root = project(tmp_path / "proj", files)
    monkeypatch.syspath_prepend(str(root / "src"))
    importlib.invalidate_caches()
    work = importlib.import_module("deep_pkg.mod").work
    source = find_source(work.__wrapped__, workdir=None)
    assert (source.workdir, source.roots, source.by_value) == (str(root), ["src"], False)
    assert (source.module, source.name) == ("deep_pkg.mod", "work")


def test_without_a_mark_the_import_root_goes_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(tmp_path / "plain", {"rooted/__init__.py": "", "rooted/mod.py": WORK})
    monkeypatch.syspath_prepend(str(root))
    importlib.invalidate_caches()
    source = find_source(importlib.import_module("rooted.mod").work.__wrapped__, workdir=None)
    assert (source.workdir, source.roots) == (str(root), ["."])


def test_a_home_folder_never_goes_up_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loose = load(project(tmp_path / "home", {"loose.py": WORK}) / "loose.py", monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(BadInput, match="move the function's file into a folder of its own, or name the folder with"):
        loose.work.submit()
    assert find_source(loose.work.__wrapped__, workdir=".").workdir == str(tmp_path / "home")


def test_a_workdir_without_the_functions_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = load(project(tmp_path / "proj", {"away.py": WORK, "other/x": ""}) / "away.py", monkeypatch)
    with pytest.raises(BadInput, match=r"away\.work is in .*, and only .*/other goes up"):
        find_source(away.work.__wrapped__, workdir="other")
    with pytest.raises(BadInput, match=r"and no folder goes up"):
        find_source(away.work.__wrapped__, workdir="")
    with pytest.raises(BadInput, match=r"workdir: nowhere is no folder"):
        find_source(away.work.__wrapped__, workdir="nowhere")


def test_a_file_that_prefect_has_loaded_goes_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a module of the same name is loaded already, Prefect loads a flow's file under a name that it makes up."""
    path = tmp_path / "proj" / "json.py"
    path.parent.mkdir()
    path.write_text("def work() -> None: ...\n", encoding="utf-8")
    made_up = "__prefect_loader_0123456789abcdef__"
    spec = importlib.util.spec_from_file_location(made_up, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, made_up, module)
    spec.loader.exec_module(module)
    found = find_source(module.work, workdir=None)
    assert (found.module, found.roots, found.by_value, found.workdir) == ("json", ["."], False, str(path.parent))


def test_arrays_among_the_arguments_go_once_and_not_as_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = load(project(tmp_path / "proj", {"sends.py": WORK}) / "sends.py", monkeypatch).work.__wrapped__
    big = np.ones(100_000)
    call = Call(function=work, args=([big, big, np.float32(1)],), kwargs={})
    write_call(tmp_path / "call", call, find_source(work, workdir=None), trust_remote=False)
    assert (tmp_path / "call/arguments").stat().st_size < 200
    assert 800_000 < (tmp_path / "call/arrays").stat().st_size < 801_000


# Types, and the price of importing


BY_ITSELF = """
from typing import assert_type
from gpujobs import Job, gpu_job

@gpu_job(accelerators="RTX 4090:1", infra=["autodl"], max_duration="2h", budget=20)
def train(lr: float, *, epochs: int = 10) -> dict[str, float]:
    return {"loss": lr / epochs}

async def main() -> None:
    assert_type(train(0.1), dict[str, float])
    assert_type(train.local(0.1), dict[str, float])
    assert_type(train.remote(0.1, epochs=3), dict[str, float])
    assert_type(train.submit(0.1), Job[dict[str, float]])
    assert_type(train.submit(0.1).result(timeout=1), dict[str, float])
    assert_type(await train.aremote(0.1), dict[str, float])
    assert_type(train.submit(0.1).cost, float | None)

train.remote("fast")
train.submit(0.1, 3)
train.remote(0.1, epoch=3)
gpu_job(accelerators="RTX 4090", max_durations="2h")
gpu_job(accelerators="RTX 4090", budget="much")
"""
IN_A_FLOW = """
from typing import assert_type
from gpujobs import gpu_job
from prefect.futures import PrefectFuture, PrefectFutureList

@gpu_job(accelerators="RTX 4090:1")
def train(lr: float, *, epochs: int = 10) -> dict[str, float]:
    return {"loss": lr / epochs}

assert_type(train.with_options(retries=2)(0.1), dict[str, float])
assert_type(train.with_options(retries=2).submit(0.1), PrefectFuture[dict[str, float]])
assert_type(train.with_options().map([0.1]), PrefectFutureList[PrefectFuture[dict[str, float]]])
train.with_options(retry=2)
train.with_options().submit("fast")
"""


@pytest.fixture(scope="module")
def wrong_lines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Sequence[str]]:
    """In which lines of each program mypy finds an error.

    One run for both, with the project's own cache, which its check of types has filled: to read all of Prefect takes
    half a minute.
    """
    folder = tmp_path_factory.mktemp("typed")
    for name, program in (("by_itself", BY_ITSELF), ("in_a_flow", IN_A_FLOW)):
        (folder / f"{name}.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", *sorted(folder.glob("*.py"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.findall(r"/(by_itself|in_a_flow)\.py:(\d+): error", done.stdout)
    assert found, done.stdout + done.stderr
    return {name: [line for where, line in found if where == name] for name in ("by_itself", "in_a_flow")}


@pytest.mark.xdist_group("types")
def test_editors_and_mypy_know_arguments_and_results(wrong_lines: Mapping[str, Sequence[str]]) -> None:
    assert sorted(set(wrong_lines["by_itself"]), key=int) == ["18", "19", "20", "21", "22"]


@pytest.mark.xdist_group("types")
def test_in_a_flow_the_types_are_prefects(wrong_lines: Mapping[str, Sequence[str]]) -> None:
    assert wrong_lines["in_a_flow"] == ["13", "14"]


def test_importing_the_package_brings_nothing() -> None:
    program = "import sys; before = set(sys.modules); import gpujobs; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['gpujobs']\n"
    assert not hasattr(gpujobs, "no_such_name")


def test_the_decorator_brings_no_prefect() -> None:
    program = "import sys; from gpujobs import gpu_job, Job; print('prefect' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# The example


def test_the_example_runs_on_the_fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUJOBS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GPUJOBS_OWNER", "tester")
    command = [sys.executable, str(ROOT / "examples/decorated.py"), "--fake"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert lines[0].startswith("y = 2.9") or lines[0].startswith("y = 3.0")
    assert all(line.endswith(" CNY") for line in lines[1:])
