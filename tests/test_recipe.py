"""The recipe's model: what it takes, what it refuses, and that it survives being written down."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpujobs.recipe import Recipe
from gpujobs.variables import flaw_of

LEAST: dict[str, Any] = {"name": "digits", "resources": {"accelerators": "RTX 4090"}, "run": "python train.py"}
FULL: dict[str, Any] = {
    "name": "digits",
    "resources": {
        "infra": ["autodl/westDC2", "matrixdc"],
        "accelerators": ["RTX 4090:2", "H20"],
        "cpus": "4+",
        "memory": 16,
        "cuda": "11.8+",
        "image": {"autodl": "base-image-l2t43iu6uk", "matrixdc": "snapshot:digits-env:v1"},
        "max_price": 4,
        "volumes": [{"path": "/root/data", "size": 50}],
    },
    "workdir": "/home/ada/digits",
    "file_mounts": {"/root/data/train.csv": "/home/ada/train.csv"},
    "envs": {"LR": "1e-3", "NAME": "  两 spaces  "},
    "secrets": ["HF_TOKEN"],
    "setup": "pip install -r requirements.txt",
    "run": ["python train.py", "python test.py"],
    "outputs": {"checkpoints": "runs/ckpt"},
    "snapshot": {"name": "digits-env", "tag": "v1", "on": "always"},
    "max_duration": "1h30m",
    "idle_duration": "15m",
    "linger": "10m",
    "budget": 30.5,
    "retry": {"on": ["no-capacity"], "attempts": 2, "wait": "2h"},
    "on_failure": {"keep": "30m"},
    "schedule": {"cron": "0 2 * * *", "timezone": "Asia/Shanghai", "if_running": "skip", "max_lateness": "1h"},
    "autodl": {"deployment_type": "ReplicaSet", "reuse_container": True},
    "matrixdc": {"cost_type": 4, "cost_time": "3D", "coupon": ""},
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(LEAST | changes)


def resources(**changes: Any) -> dict[str, Any]:
    return {"accelerators": "RTX 4090"} | changes


@pytest.mark.parametrize("value", [LEAST, FULL], ids=["least", "full"])
def test_a_recipe_survives_being_written_down(value: dict[str, Any]) -> None:
    first = Recipe.model_validate(value)
    assert Recipe.model_validate(json.loads(first.model_dump_json())) == first
    assert Recipe.model_validate(first.model_dump()) == first


@given(
    seconds=st.integers(min_value=1, max_value=10**7),
    envs=st.dictionaries(
        st.from_regex(r"[A-FH-Z_][A-Z0-9_]{0,8}", fullmatch=True).filter(lambda name: not flaw_of(name)),
        st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    ),
    script=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1),
)
def test_durations_variables_and_scripts_survive_byte_for_byte(seconds: int, envs: dict[str, str], script: str) -> None:
    first = recipe(max_duration=f"{seconds}s", envs=envs, run=script)
    again = Recipe.model_validate(json.loads(first.model_dump_json()))
    assert (again.max_duration, again.envs, again.run) == (seconds, envs, script)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("6h", 21600), ("2d", 172800), ("1h30m", 5400), ("1.5 h", 5400)]
)
def test_a_duration_has_a_unit(text: str, seconds: int) -> None:
    assert recipe(max_duration=text).max_duration == seconds


def test_other_names_of_keys_mean_the_same() -> None:
    other = {"name": "digits", "resources": {"gpu": "RTX 4090"}, "commands": ["a", "b"], "env": {"LR": "1"}}
    assert Recipe.model_validate(other) == recipe(run="a\nb", envs={"LR": "1"})


def test_wanted_gpus_and_places_are_read() -> None:
    found = Recipe.model_validate(FULL).resources
    assert found.wanted == [("RTX 4090", 2), ("H20", 1)]
    assert (found.cpus, found.memory, found.cuda_at_least) == (4, 16, 118)
    assert (found.regions_for("autodl"), found.regions_for("matrixdc"), found.regions_for("x")) == (
        ["westDC2"],
        [],
        None,
    )
    assert (found.image_for("matrixdc"), found.image_for("x")) == ("snapshot:digits-env:v1", "")


def test_a_gpu_may_be_called_by_a_number() -> None:
    assert recipe(resources={"accelerators": 4090}).resources.wanted == [("4090", 1)]


def test_no_places_means_every_backend() -> None:
    assert recipe().resources.regions_for("autodl") == []
    assert recipe(resources=resources(infra=["autodl", "autodl/westDC2"])).resources.regions_for("autodl") == []


def test_a_value_in_a_variable_keeps_its_spaces() -> None:
    assert recipe(envs={"A": " x "}, run="  indented\n").model_dump(include={"envs", "run"}) == {
        "envs": {"A": " x "},
        "run": "  indented\n",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Two Words"}, "pattern"),
        ({"max_duration": 60}, "60 has no unit"),
        ({"max_duration": "6 hours"}, "is not a duration"),
        ({"max_duration": "0s"}, "greater than 0"),
        ({"max_duration": "367d"}, "longer than a year"),
        ({"max_duration": "9" * 400 + "d"}, "is not a duration"),
        ({"resources": resources(cpus="9" * 5000)}, "is not a number"),
        ({"resources": resources(accelerators=[])}, "at least 1"),
        ({"resources": resources(accelerators="RTX 4090:0")}, "is not a GPU"),
        ({"resources": resources(infra="Auto DL")}, "is not a place"),
        ({"resources": resources(cpus="many")}, "is not a number"),
        ({"resources": resources(cpus=0)}, "greater than or equal to 1"),
        ({"resources": resources(cpus=True)}, "valid integer"),
        ({"resources": resources(cuda="12")}, "is not a CUDA version"),
        ({"resources": resources(max_price=0)}, "greater than 0"),
        ({"resources": resources(max_price=float("nan"))}, "finite"),
        ({"resources": resources(image=["x"])}, "a map of backend: image"),
        ({"resources": resources(image="snapshot:")}, "is not a snapshot"),
        ({"resources": resources(image={"matrixdc": "snapshot:A B"})}, "is not a snapshot"),
        ({"resources": resources(image="x\x1b[31m")}, "cannot be printed"),
        ({"resources": resources(volumes=[{"path": "data", "size": 5}])}, "pattern"),
        ({"resources": resources(volumes=[{"path": "/data", "size": 0}])}, "greater than or equal to 1"),
        ({"envs": {"1A": "x"}}, "'1A' is not a name"),
        ({"envs": {"GPUJOBS_X": "x"}}, "set by gpujobs"),
        ({"envs": {"A": True}}, 'quote it, as A: "true"'),
        ({"envs": {"A": None}}, 'quote it, as A: ""'),
        ({"envs": {"A": "x\0y"}}, "NUL"),
        ({"envs": {"A": "\udcff"}}, "write it in UTF-8"),
        ({"envs": {"A": "x" * 2**20}}, "1048576 bytes, over the 120000 that a variable can hold"),
        ({"envs": {f"A{number}": "x" * 100_000 for number in range(20)}}, "over the 1000000 that a command can have"),
        ({"envs": {"UID": "0"}}, "the shell sets it itself"),
        ({"run": ""}, "at least 1"),
        ({"run": "a\0b"}, "NUL"),
        ({"file_mounts": {"data": "x"}}, "must be an absolute path"),
        ({"file_mounts": {"/data/": "x"}}, "must be an absolute path"),
        ({"outputs": {"../up": "x"}}, "is not a local name"),
        ({"outputs": {"a": ""}}, "names no path"),
        ({"secrets": ["A"], "envs": {"A": "x"}}, "both envs and secrets"),
        ({"snapshot": {"name": "Env"}}, "pattern"),
        ({"snapshot": {"name": "env", "on": "never"}}, "'success', 'failure' or 'always'"),
        ({"retry": {"attempts": 0}}, "greater than or equal to 1"),
        ({"schedule": {"cron": "@daily"}}, "five fields"),
        ({"schedule": {"cron": "61 * * * *"}}, "has a wrong minute"),
        ({"schedule": {"cron": "0 2 * * FRY"}}, "has a wrong day-of-week"),
        ({"schedule": {"cron": "0 0 30 2 *"}}, "has a wrong day-of-month"),
        ({"schedule": {"cron": "0 0 31 4,6 *"}}, "has a wrong day-of-month"),
        ({"schedule": {"cron": "0 2 * * *", "timezone": "Beijing"}}, "is not a time zone"),
        ({"schedule": {"cron": "0 2 * * *", "max_lateness": "0s"}}, "greater than 0"),
        ({"matrixdc": {"cost_type": 4}}, "needs cost_time"),
        ({"matrixdc": {"cost_time": "3D"}}, "cost_time goes with"),
        ({"matrixdc": {"cost_type": 4, "cost_time": "3D", "coupon": "c"}}, "a coupon"),
        ({"matrixdc": {"cost_type": 5}}, "1, 2, 3 or 4"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        recipe(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize("secrets", [["HF_TOKEN=hunter2"], ["hunter 2"], ["GPUJOBS_X"]])
def test_a_secret_given_by_value_is_refused_and_not_repeated(secrets: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        recipe(secrets=secrets)
    assert "hunter" not in str(caught.value.errors(include_input=False))


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        recipe().name = "other"  # type: ignore[misc]


def test_a_matrix_is_a_task_for_each_combination_in_order() -> None:
    found = recipe(matrix={"LR": ["1e-3", 0.1], "SEED": [1, 2]})
    assert found.all_tasks == [
        {"LR": "1e-3", "SEED": "1"},
        {"LR": "1e-3", "SEED": "2"},
        {"LR": "0.1", "SEED": "1"},
        {"LR": "0.1", "SEED": "2"},
    ]
    assert Recipe.model_validate_json(found.model_dump_json()) == found


def test_tasks_are_a_number_or_the_variables_of_each() -> None:
    assert (recipe(tasks=3).all_tasks, recipe(tasks="2").all_tasks) == ([{}, {}, {}], [{}, {}])
    assert recipe(tasks=[{"LR": 1}, {}]).all_tasks == [{"LR": "1"}, {}]
    assert recipe(tasks=1) == recipe()


def test_some_of_the_tasks_keep_their_indices() -> None:
    found = recipe(matrix={"SEED": [5, 6, 7]}, only_tasks=[2, 0])
    assert found.wanted_tasks == {0: {"SEED": "5"}, 2: {"SEED": "7"}}


@pytest.mark.parametrize(
    ("values", "machines"),
    [
        ({"tasks": 5, "concurrency": 3}, 3),
        ({"tasks": 5, "concurrency": 3, "only_tasks": [1]}, 1),
        ({"tasks": 5, "concurrency": 3, "resources": resources(accelerators=["H20:4"])}, 2),
        ({}, 1),
    ],
)
def test_no_more_machines_than_tasks_can_use(values: dict[str, Any], machines: int) -> None:
    assert recipe(**values).machines_at_once == machines


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"matrix": {"A": [1]}, "tasks": 2}, "leave one of the two out"),
        ({"matrix": {"A": [1]}, "envs": {"A": "2"}}, "stands in both envs and matrix"),
        ({"tasks": [{"A": "1"}, {}], "secrets": ["A"]}, "stands in secrets too"),
        ({"tasks": 2, "only_tasks": [2]}, "there is no task 2; there are 2"),
        ({"tasks": 2, "snapshot": {"name": "env"}}, "a snapshot is of one job's machine"),
        ({"matrix": {"A": [1]}, "on_failure": {"keep": "5m"}}, "on_failure.keep is for one job's machine"),
        ({"tasks": 2, "outputs": {"a": "/root/a"}}, "let it be in the workdir"),
        ({"matrix": {"A": [1]}, "outputs": {"a": "b/../../a"}}, "let it be in the workdir"),
        ({"tasks": [{"A": "x" * 130_000}, {}]}, "use a file"),
    ],
)
def test_tasks_that_cannot_be_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        recipe(**values)
