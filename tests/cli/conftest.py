"""Fixtures of the command line's tests: folders and an environment of their own, with clouds and without."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_server.server import FakeServer
from tests.cli.command import Cli, Environment, Terminal
from tests.cli.forks import Forks, forking

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "AUTODL", "MATRIXDC"))}
    return {
        **kept,
        "GPUJOBS_HOME": str(tmp_path / "home"),
        "GPUJOBS_OWNER": "tester",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks | None]:
    """What spares the commands of these tests their imports; None gives each a process of its own."""
    with forking() as forks:
        yield forks


@pytest.fixture
def bare(tmp_path: Path, environment: Environment, forks: Forks | None) -> Iterator[Cli]:
    """The command where no cloud is set up."""
    folder = tmp_path / "work"
    folder.mkdir()
    cli = Cli(folder, environment, forks)
    yield cli
    cli.close()


@pytest.fixture
def cli(bare: Cli, fake: FakeServer) -> Cli:
    """The command where both clouds are the fake's."""
    bare.env.update(fake.env())
    return bare


@pytest.fixture
def terminal(cli: Cli) -> Iterator[Callable[..., Terminal]]:
    """Start commands on terminals; all end with the test."""
    opened: list[Terminal] = []

    def start(*args: str) -> Terminal:
        opened.append(Terminal(cli, *args))
        return opened[-1]

    yield start
    for one in opened:
        one.close()
