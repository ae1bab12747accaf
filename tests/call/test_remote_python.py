"""What runs on the machine runs on the Pythons that these clouds' images have, and says where one will not do."""

import ast
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gpujobs.call_files import Call, write_call
from gpujobs.call_outcome import Ending, Wanted, result_of
from gpujobs.call_recipe import check_script, run_script
from gpujobs.call_source import find_source
from gpujobs.errors import BadInput, BadResult, KilledRemotely, OutOfMemory
from gpujobs.remote import IN_WORKDIR
from tests.call.project import load

SENT = sorted((Path(__file__).parents[2] / "gpujobs/remote").glob("*.py"))
OLD = ("3.6", "3.8", "3.12")

PROJECT = """
import gpujobs.errors
import pkg.inner
from gpujobs import gpu_job, Job
from gpujobs.errors import RemoteError

class Thing(object):
    def __init__(self, number):
        self.number = number

@gpu_job(accelerators="RTX 4090")
def work(thing, deep=0):
    # type: (object, int) -> dict
    import datetime, multiprocessing, subprocess, sys
    try:
        if deep < 0:
            raise ZeroDivisionError("deep", deep)
    except RemoteError:
        pass
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        from_child = pool.apply(pkg.inner.twice, (thing.number,))
    program = "import gpujobs, pkg.inner; print(pkg.inner.twice(4))"
    return {
        "process": subprocess.check_output([sys.executable, "-c", program]),
        "child": from_child,
        "again": helper.local(thing.number),
        "at": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
        "numbers": (1, 2.5, {3}, 10 ** 30),
        "python": list(sys.version_info[:2]),
    }

@gpu_job(accelerators="RTX 4090")
def helper(number):
    return number + 1
"""


def interpreter(version: str) -> str:
    """Find a Python; a test that needs one that is missing says so in the summary."""
    if version == "here":
        return sys.executable
    places = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python3"))
    found = str(places[0]) if places else shutil.which(f"python{version}")
    if found is None:
        pytest.skip(f"NOT RUN: there is no Python {version} on this machine, so nobody has seen a call work with it")
    return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = tmp_path / "proj"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg/__init__.py").touch()
    (folder / "pkg/inner.py").write_text("def twice(x):\n    return 2 * x\n")
    (folder / "things.py").write_text(PROJECT)
    (folder / ".gpujobsignore").touch()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "pkg", raising=False)
    monkeypatch.delitem(sys.modules, "pkg.inner", raising=False)
    return load(folder / "things.py", monkeypatch)


def make_call(function: Any, *args: Any, work: Path | None = None, **kwargs: Any) -> Path:
    """Write a call's files into `work`, else the project's folder, where the machine has them; give their folder."""
    plain: Callable[..., Any] = function.__wrapped__
    source = find_source(plain, workdir=None)
    folder = (work or Path(source.workdir)) / IN_WORKDIR
    write_call(folder, Call(function=plain, args=args, kwargs=kwargs), source, trust_remote=False)
    return folder


def answer(folder: Path, python: str, *words: str, state: str = "succeeded") -> Any:
    """Make the call as the machine does, and read what came of it."""
    done = subprocess.run([python, f"{IN_WORKDIR}/call.py", *words], cwd=folder.parent, check=False)
    ended = state if done.returncode == 0 else "failed"
    ending = Ending(state=ended, exit_code=int(done.returncode != 0), error="failed", code=done.returncode)
    return result_of(folder / "out", ending, Wanted(hint=Any, trust_remote=False))


@pytest.mark.parametrize("version", [*OLD, "here"])
def test_a_call_works_on_this_python(version: str, project: Any) -> None:
    python = interpreter(version)
    found = answer(make_call(project.work, project.Thing(21)), python)
    ran_on = found.pop("python")
    assert version == "here" or ".".join(map(str, ran_on)) == version
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert found == {"process": b"8\n", "child": 42, "again": 22, "at": at, "numbers": (1, 2.5, {3}, 10**30)}


@pytest.mark.parametrize("version", [*OLD, "here"])
def test_an_exception_comes_home_from_this_python(version: str, project: Any) -> None:
    python = interpreter(version)
    with pytest.raises(ZeroDivisionError) as caught:
        answer(make_call(project.work, project.Thing(1), deep=-1), python)
    assert caught.value.args == ("deep", -1)
    assert "things.py" in caught.value.__notes__[0]


def test_arguments_are_gone_from_the_machine_once_they_are_read(project: Any) -> None:
    folder = make_call(project.helper, 1)
    assert answer(folder, sys.executable) == 2
    assert not (folder / "arguments").exists()


def test_every_file_of_a_call_is_ours_alone(project: Any) -> None:
    folder = make_call(project.helper, 1)
    modes = {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_file()}
    assert modes == {"0o600"}
    assert {oct(path.stat().st_mode & 0o777) for path in [folder, *folder.rglob("*/")]} == {"0o700"}


def test_a_nested_function_is_refused_by_another_minor_version_before_the_work(project: Any, tmp_path: Path) -> None:
    python = interpreter("3.8")

    @project.gpu_job(accelerators="RTX 4090")
    def nested(number: int) -> int:
        return number

    folder = make_call(nested, 1, work=tmp_path)
    with pytest.raises(
        BadInput, match=r"by value .* one minor version: here it is 3\.\d+, and the machine's .* is 3\.8;"
    ):
        answer(folder, python, "check")
    assert answer(make_call(nested, 7, work=tmp_path), sys.executable) == 7


def test_source_that_the_machines_python_cannot_read_is_refused_in_plain_words(project: Any) -> None:
    python = interpreter("3.6")
    folder = make_call(project.helper, 1)
    (folder.parent / "things.py").write_text("match = 1\nmatch match:\n    case 1: pass\n")
    with pytest.raises(BadInput, match=r"things\.py:2 is not for this machine's Python 3\.6 .*; name a newer one with"):
        answer(folder, python)


def test_an_array_for_a_python_without_numpy_is_refused_in_plain_words(project: Any) -> None:
    import numpy as np  # noqa: PLC0415

    python = interpreter("3.8")
    if subprocess.run([python, "-c", "import numpy"], capture_output=True, check=False).returncode == 0:
        pytest.skip("NOT RUN: this Python 3.8 has numpy")
    with pytest.raises(BadInput, match="an argument is a numpy array, and the machine's Python has no numpy"):
        answer(make_call(project.helper, np.arange(3)), python)


def script_call(folder: Path, text: str) -> Path:
    """Write a call of `main_work` in a script, as when that script is the main module."""
    (folder / "script.py").write_text(textwrap.dedent(text))
    spec = json.loads((folder / IN_WORKDIR / "call.json").read_text())
    spec |= {"module": "__main__", "function": "main_work", "main": {"path": "script.py"}}
    (folder / IN_WORKDIR / "call.json").write_text(json.dumps(spec))
    return folder / IN_WORKDIR


@pytest.mark.parametrize("version", ["3.6", "here"])
def test_a_script_is_imported_there_as_by_spawn(version: str, project: Any) -> None:
    python = interpreter(version)
    folder = script_call(
        make_call(project.helper, 5).parent,
        """
        from gpujobs import gpu_job

        @gpu_job(accelerators="RTX 4090")
        def main_work(number):
            import multiprocessing, sys
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return [__name__, sys.modules["__main__"].__name__, pool.apply(inc, (number,))]

        def inc(number):
            return number + 1

        if __name__ == "__main__":
            main_work.remote()
        """,
    )
    assert answer(folder, python) == ["__mp_main__", "__mp_main__", 6]


def test_a_script_without_a_guard_is_told_what_is_missing(project: Any) -> None:
    text = "from gpujobs import gpu_job\n@gpu_job()\ndef main_work(x):\n    pass\nmain_work.remote(1)\n"
    with pytest.raises(RuntimeError, match='belongs under: if __name__ == "__main__":'):
        answer(script_call(make_call(project.helper, 5).parent, text), sys.executable)


def test_a_function_under_the_guard_is_told_where_to_stand(project: Any) -> None:
    with pytest.raises(BadInput, match="makes no main_work; define it at the module's top"):
        answer(script_call(make_call(project.helper, 5).parent, "x = 1\n"), sys.executable)


def test_what_is_sent_has_no_grammar_that_python_3_6_lacks() -> None:
    read = [path.name for path in SENT if ast.parse(path.read_text(), feature_version=(3, 6)).body]
    assert {"call.py", "encode.py", "foreman.py", "relay.py", "slot.py", "cell.py"} <= set(read)


# The scripts around it


def shell(script: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["sh", "-e", "-c", script], cwd=cwd, capture_output=True, text=True, check=False)


def place(tmp_path: Path, program: str) -> Path:
    (tmp_path / IN_WORKDIR / "out").mkdir(parents=True)
    (tmp_path / IN_WORKDIR / "call.py").write_text(program)
    return tmp_path / IN_WORKDIR / "out"


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [("oom_kill 3", "oom_kill 4", OutOfMemory), ("oom_kill 3", "oom_kill 3", KilledRemotely), ("", "", KilledRemotely)],
)
def test_a_process_that_linux_ended_for_its_memory_is_told_from_others(
    before: str, after: str, kind: type[KilledRemotely], tmp_path: Path
) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text(f"low 0\n{before}\n")
    program = f"import os; open({str(counter)!r}, 'w').write('low 0\\n{after}\\n'); os.kill(os.getpid(), 9)"
    out = place(tmp_path, program)
    done = shell(run_script(sys.executable, cgroup=str(tmp_path)), tmp_path)
    assert done.returncode == 137
    ending = Ending(state="failed", exit_code=1, error="was killed by signal 9", code=137)
    with pytest.raises(KilledRemotely, match="was killed by signal 9") as caught:
        result_of(out, ending, Wanted(hint=Any, trust_remote=False))
    assert (type(caught.value), caught.value.signal) == (kind, 9)


def test_the_exit_code_of_the_call_is_that_of_the_script(tmp_path: Path) -> None:
    out = place(tmp_path, "import sys; sys.exit(3)")
    assert shell(run_script(""), tmp_path).returncode == 3
    (out / "refused").write_text("result.x is a Y; \x1b[2Jdo Z\n")
    ending = Ending(state="failed", exit_code=1, error="", code=3)
    with pytest.raises(BadResult, match=r"^result\.x is a Y; do Z$"):
        result_of(out, ending, Wanted(hint=Any, trust_remote=False))


def test_no_python_at_all_is_refused_after_the_setup_and_let_be_before_it(tmp_path: Path) -> None:
    out = place(tmp_path, "raise SystemExit(9)")
    assert shell(check_script("python2.6"), tmp_path).returncode == 0
    assert shell(run_script("python2.6"), tmp_path).returncode == 2
    assert (out / "refused").read_text().startswith("there is no python2.6 on the machine")


def test_a_python_that_is_too_old_is_named(tmp_path: Path) -> None:
    (tmp_path / "old").write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 2.7.18 && exit\nexit 1\n')
    (tmp_path / "old").chmod(0o755)
    out = place(tmp_path, "raise SystemExit(9)")
    assert shell(run_script(str(tmp_path / "old")), tmp_path).returncode == 2
    assert "the machine's Python is Python 2.7.18, and a call needs 3.6 or later" in (out / "refused").read_text()
