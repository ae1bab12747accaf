"""Whatever stands in a recipe arrives exactly as it is written, or is refused before anything is rented."""

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpujobs import runner
from gpujobs.host import Host
from gpujobs.recipe import Recipe
from gpujobs.runner import RunSpec
from tests.cli.command import Cli
from tests.cloud import BACKENDS, GPUS, Control, recipe_for
from tests.lifecycle.test_run import run

NASTY: Mapping[str, str] = {
    "quotes": "a'b\"c`d`",
    "expansion": "$(touch /tmp/gj-evil) ${HOME} $HOME `id` \\$x !! ~",
    "lines": "first\nsecond\r\nthird\n",
    "dashes": "-rf --help",
    "operators": "; rm -rf x & echo | cat > y < z # !",
    "escapes": "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m",
    "direction": "\u202eevil\u2066 \u200b\u200f",
    "spaces": "  \t x \u3000 ",
    "other scripts": "深度学习 ünïcödé 🚀",
    "empty": "",
}
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
NAMES = st.from_regex(r"GJ_[A-Za-z0-9_]{0,8}", fullmatch=True)


def members(spec: RunSpec) -> Mapping[str, bytes]:
    """What is sent to a machine for this work."""
    with tarfile.open(fileobj=io.BytesIO(runner._bundle(spec))) as tar:
        return {member.name: found.read() for member in tar if (found := tar.extractfile(member))}


@settings(max_examples=60)
@given(values=st.dictionaries(NAMES, VALUES | st.sampled_from(sorted(NASTY.values())), max_size=8))
def test_variables_are_read_by_a_real_shell_as_they_are_written(values: dict[str, str]) -> None:
    text = members(RunSpec(run="true", envs=values, max_duration_s=1))["env"]
    said = subprocess.run(
        ["sh", "-c", 'eval "$(cat)"; exec env -0'], input=text, capture_output=True, check=True
    ).stdout
    came = dict(line.split(b"=", 1) for line in said.split(b"\0") if line.startswith(b"GJ_"))
    assert came == {name.encode(): value.encode() for name, value in values.items()}


@given(script=VALUES.filter(bool), setup=VALUES)
def test_scripts_are_sent_byte_for_byte(script: str, setup: str) -> None:
    sent = members(RunSpec(run=script, setup=setup, max_duration_s=1))
    assert sent["run.sh"] == (script + "\n").encode()
    assert sent.get("setup.sh", b"") == ((setup + "\n").encode() if setup.strip() else b"")


def placed(key: str, value: str) -> Mapping[str, Any]:
    """A recipe with the value in that place."""
    base: dict[str, Any] = {"name": "t", "resources": {"accelerators": "RTX 4090"}, "run": "true"}
    top, _, inner = key.partition(".")
    if not inner:
        return {**base, top: value}
    if inner == "KEY":
        return {**base, top: {value: "x"}}
    if inner == "ITEM":
        return {**base, top: [value]}
    return {**base, top: {**base.get(top, {}), inner: value}}


PLACES = (
    "name", "run", "setup", "workdir", "envs.A", "envs.KEY", "secrets.ITEM", "outputs.a", "outputs.KEY", "notify.ITEM",
    "file_mounts.KEY", "resources.image", "resources.accelerators", "resources.infra", "resources.cuda",
    "snapshot.name", "snapshot.tag", "credentials.autodl", "matrixdc.coupon", "matrixdc.cost_time", "max_duration",
)  # fmt: skip
FREE = {"run", "setup", "envs.A", "outputs.a"}  # of a person's own words, which only a machine's shell reads


@pytest.mark.parametrize("place", PLACES)
def test_a_value_is_kept_as_it_is_or_refused_without_an_escape(place: str) -> None:
    for value in [*NASTY.values(), "x\0y", "\udc80"]:
        recipe = placed(place, value)
        try:
            kept = json.loads(Recipe.model_validate(recipe).model_dump_json())
        except ValidationError as error:
            said = " ".join(one["msg"] for one in error.errors(include_input=False, include_url=False))
            assert not any(char in said for char in "\x1b\x9b\x07\0\u202e"), said
            continue
        assert value.isprintable() or place in FREE, (place, value)
        if place == "envs.A":
            assert kept["envs"]["A"] == value


SEEN = """
import json, os
from pathlib import Path
names = [name for name in os.environ if name.startswith("N_")]
files = {str(path): path.read_text() for path in Path(".").rglob("*") if path.is_file() and "mine" in str(path)}
print("SEEN" + json.dumps([{name: os.environ[name] for name in names}, files]))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_nasty_values_arrive_on_a_machine_exactly(
    backend: str, host: Host, control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["-rf mine", "it's mine; $(id) `id`", 'mine "x" & | > y', "深度 mine 🚀"]
    folder = tmp_path / "-up $(id) 'x'"
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)
    values = {f"N_{number}": value for number, value in enumerate(NASTY.values())}
    monkeypatch.setenv("N_SECRET", secret := "".join(NASTY.values()))
    monkeypatch.setenv("MINE", "not sent")
    recipe = recipe_for(
        backend,
        workdir=str(folder),
        envs=values,
        secrets=["N_SECRET"],
        file_mounts={"./sub dir/'$(id)' mine": str(folder / names[0])},
        outputs={"first": names[0], "second": f"./{names[1]}", "all": "."},
        run=f"python3 - <<'END'\n{SEEN}\nEND\ntrue '$x' \"$(printf '%s' \"\\\\\")\"",
    )
    outcome = run(host, recipe)
    assert (outcome.state, outcome.error, control.left()) == ("succeeded", "", [])
    line = next(line for line in outcome.log.read_text().splitlines() if line.startswith("SEEN"))
    came, files = json.loads(line.removeprefix("SEEN"))
    assert came == {**values, "N_SECRET": secret}
    assert files == {**{name: name for name in names}, "sub dir/'$(id)' mine": names[0]}
    assert (outcome.outputs["first"].read_text(), outcome.outputs["second"].read_text()) == (names[0], names[1])
    assert not Path("/tmp/gj-evil").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("LONG", "has 131072 bytes, over the 120000"), ("BROKEN", "holds bytes that are no text")],
)
def test_a_secret_that_no_variable_can_hold_is_refused_before_anything_is_rented(
    cli: Cli, control: Control, name: str, words: str
) -> None:
    folder = Path(cli.env["XDG_CONFIG_HOME"]) / "gpujobs"
    folder.mkdir(parents=True)
    (folder / "config.toml").touch(mode=0o600)
    (folder / "config.toml").write_text(f'[secrets]\nLONG = "{"x" * 2**17}"\n')
    cli.env["BROKEN"] = os.fsdecode(b"\xff\xfe")
    resources = f'{{infra: autodl, accelerators: "{GPUS["autodl"]}"}}'
    done = cli("submit", cli.recipe(f"name: t\nresources: {resources}\nrun: x\nsecrets: [{name}]\n"), "--here", "--yes")
    assert (done.returncode, f"the value of {name} {words}" in done.stderr) == (2, True), done.stderr
    assert control.machines() == []
