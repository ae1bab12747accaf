"""What the documents say is so: links lead somewhere, commands parse, recipes load, tables are complete."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from gpujobs import errors
from gpujobs.cli.parser import parse
from gpujobs.recipe_file import load_recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_command_in_the_readme_is_one_that_we_have() -> None:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    lines = [line.partition("#")[0].removeprefix("$ ") for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("gpujobs ")]
    assert len(commands) > 5
    for words in commands:
        parse(words)


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for path in DOCUMENTS for name in re.findall(r"(?:\$ |`|    )make ([a-z]+)", path.read_text())}
    assert {"quickstart", "test"} <= named <= targets


def test_every_test_that_a_document_names_exists() -> None:
    named = {pair for path in DOCUMENTS for pair in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", path.read_text("utf-8"))}
    assert len(named) > 20
    assert [pair for pair in named if f"def {pair[1]}(" not in (ROOT / pair[0]).read_text("utf-8")] == []


def test_the_recipes_in_the_readme_load(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "recipe.yaml").write_text(block)
        load_recipe(tmp_path / "recipe.yaml", [])


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert told == {0} | {kind.exit_code for kind in kinds if issubclass(kind, errors.GpujobsError)}


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[><=\[]", one)[0] for one in project["dependencies"]}
    table = README.partition("## What it stands on")[2]
    told = {name for row in re.findall(r"^\| ([a-z0-9, -]+) \|", table, re.MULTILINE) for name in row.split(", ")}
    assert told - {"package"} == names
