"""What a command costs before it does anything: import cost is a feature."""

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpujobs.ledger import open_ledger
from gpujobs.ledger_rows import Run
from tests.cli.command import Cli

HEAVY = {"pydantic", "requests", "urllib3", "rich", "sqlalchemy", "alembic", "paramiko", "prefect", "asyncio", "ruamel"}
ROUNDS = 7


def imported(cli: Cli, *args: str) -> set[str]:
    """Name the packages that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gpujobs", *args],
        capture_output=True,
        text=True,
        check=True,
        env=cli.env,
        cwd=cli.folder,
        timeout=60,
    )
    modules = (line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {module.partition(".")[0] for module in modules}


def children_s() -> float:
    """Give the processor time of all processes that ended, to the microsecond."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_s(command: Sequence[str], env: dict[str, str]) -> float:
    """Give the median processor time of a process, which a busy machine changes less than the wall clock's."""
    spent = []
    for _ in range(ROUNDS):
        before_s = children_s()
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, timeout=60)
        spent.append(children_s() - before_s)
    return statistics.median(spent)


@pytest.fixture
def forks() -> None:
    """Each command is a process of its own: its start is what is looked at."""


@pytest.fixture
def warm(bare: Cli, tmp_path: Path) -> Cli:
    """An installed command: its bytecode is compiled once."""
    bare.env.pop("PYTHONDONTWRITEBYTECODE", None)
    bare.env["PYTHONPYCACHEPREFIX"] = str(tmp_path / "pyc")
    return bare


@pytest.fixture
def thousand(warm: Cli) -> Cli:
    """A ledger with a thousand runs."""
    warm.home.mkdir(mode=0o700)
    began = datetime.now(UTC) - timedelta(days=1)
    with open_ledger(f"sqlite:///{warm.home}/ledger.db") as ledger:
        for number in range(1000):
            ledger.add_run(
                Run(
                    id=f"{number:010x}",
                    name="t",
                    owner="tester",
                    recipe_json="{}",
                    state="succeeded",
                    created_at=began + timedelta(seconds=number),
                    ended_at=began + timedelta(seconds=number + 5),
                    exit_code=0,
                    cost_cny=0.25,
                )
            )
    return warm


def test_help_imports_nothing_heavy(bare: Cli) -> None:
    assert imported(bare, "--help") & HEAVY == set()


def test_ls_imports_nothing_heavy(thousand: Cli) -> None:
    assert imported(thousand, "ls") & HEAVY == set()


def test_ls_shows_a_thousand_runs_newest_first(thousand: Cli) -> None:
    lines = thousand("ls").stdout.splitlines()
    assert len(lines) == 1001
    assert lines[1].split() == ["00000003e7", "t", "succeeded", "23h43m", "0.25", "CNY"]
    assert [run["id"] for run in json.loads(thousand("ls", "--json", "-n", "2").stdout)] == ["00000003e7", "00000003e6"]
    assert json.loads(thousand("ls", "--json", "--state", "failed").stdout) == []


def test_help_costs_at_most_8_and_ls_at_most_25_times_an_empty_python(thousand: Cli) -> None:
    gpujobs = [sys.executable, "-m", "gpujobs"]
    for args in (["--help"], ["ls"]):
        thousand(*args)  # compiles
    empty = cpu_s([sys.executable, "-c", "pass"], thousand.env)
    assert cpu_s([*gpujobs, "--help"], thousand.env) <= 8 * empty
    assert cpu_s([*gpujobs, "ls"], thousand.env) <= 25 * empty
