"""The guards that `tools/mutations.py` takes out are where it says, and their tests too; the page tells of each."""

import importlib.util
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parent.parent


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutations", PROJECT / "tools" / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


MUTATIONS = load()


@pytest.mark.parametrize("mutation", MUTATIONS.MUTATIONS, ids=lambda one: one.guard)
def test_guard_is_there_to_be_taken_out(mutation: object) -> None:
    file, tests = mutation.file, mutation.tests  # type: ignore[attr-defined]
    text = (PROJECT / file).read_text()
    without = MUTATIONS.mutated(text, mutation)
    assert without != text
    if file.endswith(".py"):
        compile(without, file, "exec")
    assert all((PROJECT / shlex.split(one)[0]).is_file() for one in tests)


def test_page_tells_of_each_guard_and_who_notices() -> None:
    page = (PROJECT / "docs" / "mutations.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == [one.guard for one in MUTATIONS.MUTATIONS]
    assert all("::test_" in row[2] for row in rows)
