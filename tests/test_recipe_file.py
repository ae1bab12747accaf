"""Recipes from files: what is wrong is said with its file, its line and the remedy."""

import io
import json
import os
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpujobs.errors import BadInput
from gpujobs.recipe import Recipe
from gpujobs.recipe_file import INIT_TEXT, load_recipe

OK = "name: digits\nresources:\n  accelerators: RTX 4090\nrun: python train.py\n"

Load = Callable[..., Recipe]
Refusal = Callable[..., str]

LATER = "is for a later version: this one"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def load() -> Load:
    def loaded(text: str, *overrides: str) -> Recipe:
        Path("a.yaml").write_text(text)
        return load_recipe(Path("a.yaml"), overrides).recipe

    return loaded


@pytest.fixture
def refusal(load: Load) -> Refusal:
    def refused(text: str, *overrides: str) -> str:
        with pytest.raises(BadInput) as caught:
            load(text, *overrides)
        return str(caught.value)

    return refused


# What is read


def test_a_recipe_of_three_lines_works(load: Load) -> None:
    assert load('name: hello\nresources: {accelerators: "RTX 4090"}\nrun: nvidia-smi\n').run == "nvidia-smi"


def test_the_recipe_that_init_writes_loads(load: Load) -> None:
    assert load(INIT_TEXT).name == "my-job"


def test_every_key_that_init_shows_in_a_comment_is_known(load: Load) -> None:
    Path("train.csv").write_text("x")
    recipe = load("\n".join(re.sub(r"^( *)# (\w+: )", r"\1\2", line) for line in INIT_TEXT.splitlines()[1:]))
    assert (recipe.secrets, recipe.resources.cuda, recipe.retry.attempts) == (["HF_TOKEN"], "11.8+", 3)
    assert recipe.snapshot is not None


@pytest.mark.parametrize("written", ["1e-3", "0.10", "007", "1_000", "0x1F", "12:30", "2026-11-21", ".5", "''"])
def test_a_variable_stays_as_it_is_written(load: Load, written: str) -> None:
    text = written.strip("'")
    assert load(f"{OK}envs: {{LR: {written}}}").envs == {"LR": text}
    assert load(OK, f"envs.LR={written}").envs == {"LR": text}


def test_versions_tags_and_names_are_text_though_they_look_like_numbers(load: Load) -> None:
    text = OK.replace("digits", "1").replace("RTX 4090", "4090\n  cuda: 12.0")
    recipe = load(f"{text}snapshot: {{name: 1, tag: 1.10}}")
    assert (recipe.name, recipe.resources.accelerators, recipe.resources.cuda) == ("1", ["4090"], "12.0")
    assert recipe.snapshot is not None
    assert (recipe.snapshot.name, recipe.snapshot.tag) == ("1", "1.10")


def test_local_paths_are_relative_to_the_recipes_folder_and_come_out_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep/src").mkdir(parents=True)
    (tmp_path / "train.csv").write_text("x")
    (tmp_path / "deep/a.yaml").write_text(
        f"{OK}workdir: src\nfile_mounts: {{/root/a: ../train.csv, /root/b: ~/train.csv}}"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = load_recipe(Path("deep/a.yaml"))
    assert loaded.folder == tmp_path / "deep"
    assert loaded.recipe.workdir == str(tmp_path / "deep/src")
    assert loaded.recipe.file_mounts == {"/root/a": str(tmp_path / "train.csv"), "/root/b": str(tmp_path / "train.csv")}


def test_standard_input_is_read_with_this_folder_as_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(f"{OK}workdir: .".encode())))
    assert load_recipe("-").recipe.workdir == str(tmp_path)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"name: [")))
    with pytest.raises(BadInput, match=r"^standard input:1: is not YAML"):
        load_recipe("-")


def test_a_byte_order_mark_is_no_part_of_the_text(load: Load) -> None:
    assert load("\ufeff" + OK).name == "digits"


def test_a_loaded_recipe_survives_being_written_down(load: Load) -> None:
    recipe = load(f"{OK}workdir: .\nmax_duration: 90m\nenvs: {{LR: 1e-3}}")
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe


@pytest.mark.parametrize("line", ["concurrency: 1", "tasks: 1", "tasks: 1\nconcurrency: 1"])
def test_what_says_one_task_may_stand(load: Load, line: str) -> None:
    assert load(f"{OK}{line}") == load(OK)


def test_an_anchor_can_be_used_twice(load: Load) -> None:
    recipe = load(OK.replace("run: python train.py", "setup: &same echo hello\nrun: *same"))
    assert (recipe.setup, recipe.run) == ("echo hello", "echo hello")


# --set


def test_overrides_are_read_as_yaml_and_the_last_wins(load: Load) -> None:
    sets = ["resources.infra=autodl", "resources.infra=[matrixdc, autodl/westDC2]", "budget=5", "retry.attempts=2"]
    recipe = load(OK, *sets, "resources.cuda=11.8", "outputs.a.b=runs/c.d", "resources.image.autodl=base", "tasks=1")
    assert recipe.resources.infra == ["matrixdc", "autodl/westDC2"]
    assert (recipe.budget, recipe.retry.attempts, recipe.retry.wait) == (5.0, 2, 0)
    assert (recipe.resources.cuda, recipe.resources.image) == ("11.8", {"autodl": "base"})
    assert recipe.outputs == {"a.b": "runs/c.d"}


def test_an_override_replaces_what_the_file_calls_by_another_name(load: Load) -> None:
    text = OK.replace("run:", "commands:").replace("accelerators", "gpu")
    recipe = load(text, "run=a", "resources.accelerators=H20", "env.LR=1")
    assert (recipe.run, recipe.resources.accelerators, recipe.envs) == ("a", ["H20"], {"LR": "1"})
    assert load(OK, "resources.gpu=H20").resources.accelerators == ["H20"]


def test_an_empty_override_takes_a_value_away(load: Load) -> None:
    assert load(f"{OK}budget: 5", "budget=").budget is None
    assert load(f"{OK}retry: {{attempts: 5}}", "retry=", "resources.image=") == load(OK)
    assert load(OK, "budget=null") == load(OK)
    assert load(OK, "envs.A=").envs == {"A": ""}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("resources.infr=autodl", "--set resources.infr: resources.infr is not known; did you mean infra?"),
        ("resources", "--set resources is not KEY=VALUE; write it as --set envs.LR=0.1"),
        ("=x", "--set =x is not KEY=VALUE; write it as --set envs.LR=0.1"),
        ("envs..A=x", "--set envs..A: envs: '.A' is not a name of an environment variable"),
        ("name.x=1", "--set name.x: name is no map here, so it has no parts; set all of it, as --set name=…"),
        ("budget=cheap", "--set budget: budget must be a number, not the text 'cheap'; write budget: 30"),
        (
            "tasks=0",
            "--set tasks: tasks: must be from 1 to 1000, not 0",
        ),
        ("workdir=nope", "--set workdir: workdir: nope does not exist (looked for {}/nope); make it, or mend the path"),
    ],
)
def test_a_wrong_override_is_named(refusal: Refusal, tmp_path: Path, override: str, words: str) -> None:
    assert refusal(OK, override) == words.format(tmp_path)


def test_the_same_is_said_once(refusal: Refusal) -> None:
    assert (
        refusal(OK, "secrets=[5, 6]")
        == "--set secrets: secrets must be text, not what it is; write secrets: [HF_TOKEN]"
    )


def test_to_take_away_what_must_be_there_is_a_mistake(refusal: Refusal) -> None:
    assert refusal(OK, "run=") == "--set run: run is missing; add run: python train.py"


def test_an_override_that_is_no_yaml_is_named(refusal: Refusal) -> None:
    assert refusal(OK, "resources.infra=[a").startswith("--set resources.infra: is not YAML: ")


# What is refused

MISTAKES = {  # a fifth line, and what is said of it
    "resources.acelerators: 1": "resources.acelerators is not known; did you mean resources.accelerators?",
    "outptus: {}": "outptus is not known; did you mean outputs?",
    "cpus: 4": "cpus is not known; it belongs under resources: cpus: …",
    "image_id: x": "image_id is not known; use resources.image",
    "num_nodes: 2": "num_nodes is not known; a run has one machine; leave it out",
    "<<: {a: b}": "<< is not known; merge keys are not read; write the keys out",
    "idle_timeout: 5m": "idle_timeout is not known; use idle_duration, as 15m",
    "matrix: {A: 1}": "matrix: 'A' must be a list of values, as A: [1, 2]",
    "matrix: {A: []}": "matrix: 'A' must be a list of values, as A: [1, 2]",
    "matrix: {A: [1, '1']}": "matrix: 'A' has a value twice; name each once",
    "matrix: {GPUJOBS_RUN: [x]}": "matrix: 'GPUJOBS_RUN': names that begin with GPUJOBS_ are set by gpujobs",
    "matrix: {A: [1], B: [true]}": "matrix: 'B' must be text; quote it, as B: \"true\"",
    "matrix: {A: [1], B: [yes, ~]}": "matrix: 'B' must be text; quote it, as B: \"\"",
    f"matrix: {{A: {list(range(30))}, B: {list(range(40))}}}": (
        "matrix: it makes 1200 tasks, and a run has 1000 at the most; make several recipes of it"
    ),
    "sweep: {}": "sweep is not known; use matrix, as {LR: [1e-4, 1e-3]}",
    "notify: [https://hooks.example/s3cret]": "notify[0]: give names (small letters, digits, - _), not URLs, "
    "as [wecom]; the URLs are settings",
    "credentials: {autodl: eyJhbGciOi.s3cret}": "credentials.autodl: give a block's name "
    "(small letters, digits, dashes), not a token, as {autodl: my-team}",
    "lease: 5m": f"lease {LATER} renews no leases; leave it out",
    "concurrency: 2": (
        "concurrency: it is how many machines work at the tasks, and there are none; add matrix or tasks"
    ),
    "tasks: true": "tasks must be a list, not true; write tasks: 8",
    "tasks: 1001": "tasks: must be from 1 to 1000, not 1001",
    "tasks: [{LR}]": "tasks: 'LR' must be text; quote it, as LR: \"\"",
    "only_tasks: [0]": "only_tasks: there is no task 0; there are 0, counted from 0",
    "retry: 3": "retry must be a map of key: value, not the number 3; write retry: {attempts: 3, wait: 2h}",
    "retry: {atempts: 3}": "retry.atempts is not known; did you mean attempts?",
    "retry: {run: x}": "retry.run is not known; run belongs at the left edge, not under retry",
    "retry: {on: [no-capcity]}": (
        "retry.on[0] must be 'no-capacity', 'machine-lost' or 'boot-timeout', not the text 'no-capcity'; "
        "write on: [no-capacity, machine-lost]"
    ),
    "max_duration: 60": "max_duration: 60 has no unit; write it with one, as 90s, 30m, 6h or 2d",
    "budget: -1": "budget must be above 0, not the number -1; write budget: 30",
    "budget: .inf": "budget must be a finite number, not the number inf; write budget: 30",
    "workdir: [a]": "workdir must be text, not a list; write workdir: .",
    "run:": "run stands here and in line 4; leave one",
    "commands: again": "commands is another name of run, which stands too; leave one",
    "envs: {1b: y}": "envs: '1b' is not a name of an environment variable",
    "envs: {A: true}": "envs: 'A' must be text; quote it, as A: \"true\"",
    "outputs: {../b: y}": "outputs: '../b' is not a local name; use letters, digits, - _ . and no folder",
    "secrets: hunter2": "secrets must be a list, not what it is; write secrets: [HF_TOKEN]",
    "setup: ''": "setup is empty; write setup: pip install -r requirements.txt",
    "snapshot: {name: A}": (
        "snapshot.name must be 1 to 63 small letters, digits, - _ ., a letter or digit first, not the text 'A'; "
        "write name: digits-env"
    ),
    "matrixdc: {cost_type: 2}": "matrixdc: cost_type 2 needs cost_time, as 3D",
    "workdir: !!python/name:os.system x": (
        "!!python/name:os.system is a tag, and tags are not read; write the plain value"
    ),
    "workdir: !mine x": "!mine is a tag, and tags are not read; write the plain value",
    "\tworkdir: x": "a tab cannot indent YAML; use spaces",
    "a: b: c": "has a colon where none can be; indent the line as its neighbours, or put the value in quotes",
    "setup: *nope": "undefined alias 'nope'; put a value that begins with * in quotes",
    "setup: @x": "character '@' that cannot start any token; put the value in quotes",
    "setup: 'open": (
        "is not YAML: found unexpected end of stream while scanning a quoted scalar; "
        "check quotes, colons and indentation"
    ),
    "---\nname: two": "holds a second document (---); keep one recipe in a file",
    "? [a]\n: b": "has a key that is no plain word; put keys in quotes",
    "setup: \x07": "holds a control character; is this a text file?",
}


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("name: A", "name"),
        ("snapshot: {name: A}", "snapshot.name"),
        ("snapshot: {name: a, tag: é}", "snapshot.tag"),
        ("matrixdc: {cost_time: 3Y}", "matrixdc.cost_time"),
        ("resources: {volumes: [{path: a, size: 1}]}", "resources.volumes[0].path"),
    ],
)
def test_every_pattern_is_explained(refusal: Refusal, lines: str, name: str) -> None:
    assert f": {name} must be " in refusal(lines)


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_remedy(refusal: Refusal, line: str) -> None:
    assert refusal(OK + line) == f"a.yaml:5: {MISTAKES[line]}"


def test_a_mistake_in_a_map_is_named_with_the_line_of_its_entry(refusal: Refusal) -> None:
    assert refusal(OK + "retry:\n  wait: 1h\n  atempts: 3\n").startswith("a.yaml:7: retry.atempts")
    assert refusal(OK + "envs:\n  A: x\n  1b: y\n").startswith("a.yaml:7: envs: '1b'")
    assert refusal(OK + "outputs:\n  a: x\n  ../b: y\n").startswith("a.yaml:7: outputs: '../b'")
    assert refusal(OK + "secrets:\n  - A\n  - 5\n").startswith("a.yaml:7: secrets[1] must be text")


def test_what_is_missing_is_named_with_an_example(refusal: Refusal) -> None:
    assert refusal("workdir: .\nresources:\n  cpus: 4\n").splitlines() == [
        "a.yaml:1: name is missing; add name: digits",
        "a.yaml:1: run is missing; add run: python train.py",
        "a.yaml:2: resources.accelerators is missing; add accelerators: RTX 4090:1",
    ]


def test_mistakes_come_in_the_files_order_and_only_the_first_five(refusal: Refusal) -> None:
    lines = refusal(OK + "".join(f"key{number}x: 1\n" for number in range(8))).splitlines()
    assert [line.partition(" ")[0] for line in lines] == [f"a.yaml:{line}:" for line in range(5, 10)] + ["…"]
    assert lines[-1] == "… and 3 more"


def test_a_local_file_that_is_not_there_is_named_with_its_line_and_the_nearest(
    refusal: Refusal, tmp_path: Path
) -> None:
    Path("train.csv").write_text("x")
    assert refusal(f"{OK}workdir: src\nfile_mounts:\n  /root/a: trian.csv\n").splitlines() == [
        f"a.yaml:5: workdir: src does not exist (looked for {tmp_path}/src); make it, or mend the path",
        f"a.yaml:7: file_mounts: trian.csv does not exist (looked for {tmp_path}/trian.csv); did you mean train.csv?",
    ]


def test_a_workdir_is_a_folder_and_a_mount_is_no_socket(refusal: Refusal) -> None:
    os.mkfifo("pipe")
    assert refusal(f"{OK}workdir: a.yaml") == "a.yaml:5: workdir: a.yaml is a file; name its folder"
    assert (
        refusal(f"{OK}file_mounts: {{/a: pipe}}")
        == "a.yaml:5: file_mounts: pipe is neither a file nor a folder; name one"
    )


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_file_is_called_empty(refusal: Refusal, text: str) -> None:
    assert refusal(text) == "a.yaml is empty; gpujobs init writes a recipe to begin with"


@pytest.mark.parametrize("text", ["hello", "- name: a", "42"])
def test_a_text_that_is_no_recipe_is_called_none(refusal: Refusal, text: str) -> None:
    assert refusal(text) == "a.yaml:1: a recipe begins with a line as name: digits; gpujobs init writes one"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"name: a\nx: \xff", "a.yaml:2: byte 0xff is not UTF-8; is it a text file? Save it as UTF-8"),
        ("name: a".encode("utf-16"), "a.yaml:1: byte 0xff is not UTF-8; is it a text file? Save it as UTF-8"),
        (b"name: \0", "a.yaml:1: holds a control character; is this a text file?"),
        (b"x" * 300_000, "a.yaml is larger than 256 KB: that is no recipe; name another file"),
    ],
)
def test_a_file_that_is_no_text_is_refused(raw: bytes, words: str) -> None:
    Path("a.yaml").write_bytes(raw)
    with pytest.raises(BadInput) as caught:
        load_recipe(Path("a.yaml"))
    assert str(caught.value) == words


def test_a_file_that_is_not_there_names_its_neighbours(tmp_path: Path) -> None:
    for name in ("quickstart.yaml", "sweep.yml", "notes.txt"):
        (tmp_path / name).write_text(OK)
    (tmp_path / "empty").mkdir()
    said = {}
    for path in (
        "quikstart.yaml",
        "other",
        ".",
        "empty",
        "empty/a.yaml",
        "nowhere/a.yaml",
        "notes.txt/a.yaml",
        "/dev/zero",
    ):
        with pytest.raises(BadInput) as caught:
            load_recipe(path)
        said[path] = str(caught.value)
    assert said == {
        "quikstart.yaml": "quikstart.yaml does not exist; did you mean quickstart.yaml?",
        "other": "other does not exist; did you mean quickstart.yaml or sweep.yml?",
        ".": ". is a folder; did you mean quickstart.yaml or sweep.yml?",
        "empty": "empty is a folder; gpujobs init writes a recipe to begin with",
        "empty/a.yaml": "empty/a.yaml does not exist; gpujobs init writes a recipe to begin with",
        "nowhere/a.yaml": "nowhere/a.yaml does not exist; nor can its folder nowhere be read; check the path",
        "notes.txt/a.yaml": "'notes.txt/a.yaml' cannot be read: Not a directory; name a recipe that you can read",
        "/dev/zero": "/dev/zero is larger than 256 KB: that is no recipe; name another file",
    }


LETTERS = "abcdefgh"
BOMB = f"{LETTERS[0]}: &{LETTERS[0]} [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in pairwise(LETTERS)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "holds more than 20000 values"),
        ("a: &a [*a]", "nested deeper than 20 levels"),
        ("[" * 100_000, "nested deeper than 20 levels"),
        ("{a: " * 50_000, "nested deeper than 20 levels"),
        ("a: [" + "1," * 120_000 + "]", "holds more than 20000 values"),
    ],
    ids=["aliases", "itself", "lists", "maps", "many"],
)
def test_a_text_that_would_unfold_without_end_is_refused_soon(refusal: Refusal, text: str, words: str) -> None:
    began = time.process_time()
    assert words in refusal(text)
    assert time.process_time() - began < 10


# Examples


def test_every_example_in_the_model_is_one_that_it_takes(load: Load) -> None:
    Path("train.csv").write_text("x")
    for name, known in Recipe.model_fields.items():
        for example in known.examples or []:
            of_tasks = {"tasks": 8} if name in {"only_tasks", "concurrency"} else {}
            load(json.dumps({"name": "digits", "resources": {"gpu": "H20"}, "run": "x", **of_tasks, name: example}))


def test_an_example_is_written_so_that_it_is_read_as_it_is_meant(refusal: Refusal) -> None:
    assert refusal(f"{OK}envs: 5").endswith('write envs: {LR: "1e-3"}')
    assert refusal(f"{OK}autodl: {{reuse_container: 5}}").endswith("write reuse_container: true")
