"""Exceptions come back as themselves, and nothing that a machine chose is run for it."""

import sys
from pathlib import Path
from typing import Any

import pytest

from gpujobs.call_error import rebuild
from gpujobs.errors import BadResult, RemoteError


def record(**changes: Any) -> dict[str, Any]:
    usual = {"module": "builtins", "name": "ValueError", "text": "t", "traceback": "tb", "whole": True}
    return {**usual, "args": ["a", 1], "state": {}, **changes}


class Custom(Exception):
    """One whose arguments are not those of its `__init__`."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code


class Eager(Exception):
    """One that does something when it is made."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        Path(path).touch()


def test_builtin_exceptions_come_back_as_themselves_with_the_traceback_as_a_note() -> None:
    error = rebuild(record(traceback="line 1\n\x1b]0;title\x07line 2"))
    assert (type(error), error.args) == (ValueError, ("a", 1))
    assert error.__notes__ == ["Traceback on the machine:\n\nline 1\nline 2"]
    missing = rebuild(record(name="FileNotFoundError", args=[2, "No such file", "x.txt"]))
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, missing.filename) == (2, "x.txt")


def test_a_class_of_the_callers_comes_back_with_its_attributes_and_without_its_init() -> None:
    error = rebuild(record(module=__name__, name="Custom", args=["7: no"], state={"code": 7}))
    assert isinstance(error, Custom)
    assert (error.args, error.code) == (("7: no",), 7)


def test_no_init_is_called_with_what_a_machine_says(tmp_path: Path) -> None:
    error = rebuild(record(module=__name__, name="Eager", args=[str(tmp_path / "made")]))
    assert isinstance(error, Eager)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"module": "no_such_module", "name": "X"},
        {"module": "antigravity", "name": "X"},
        {"name": "SystemExit"},
        {"name": "KeyboardInterrupt"},
        {"name": "ExceptionGroup", "args": ["x", []]},
        {"name": "eval", "args": ["1/0"]},
        {"module": "subprocess", "name": "Popen", "args": ["touch hacked"]},
        {"module": "os", "name": "path.join"},
        {"whole": False},
        {"name": "UnicodeDecodeError", "args": [1]},
        {"args": "no list"},
        {"state": []},
    ],
    ids=str,
)
def test_all_else_is_a_remote_error(changes: dict[str, Any]) -> None:
    error = rebuild(record(**changes))
    assert isinstance(error, RemoteError)
    assert "tb" in error.__notes__[0]
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("wrong", [None, [], {}, record(text=1), record(module=[])], ids=str)
def test_a_record_that_is_none_is_a_bad_result(wrong: Any) -> None:
    with pytest.raises(BadResult):
        rebuild(wrong)
