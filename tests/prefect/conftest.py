"""A real Prefect server and a real host, started once for these tests as `gpujobs up` starts them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from fake_server.server import FakeServer
from gpujobs import controller
from gpujobs import settings as gpujobs_settings
from gpujobs.controller_record import Controller
from gpujobs.ledger import open_ledger
from gpujobs.settings import Settings
from tests.cloud import Control
from tests.prefect.desk import Desk


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Run all tests of the one controller in one process: each more would start its own, and feed it to its end."""
    for item in items:
        if "up" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("desk"))


def clean_environment(home: Path, fake: FakeServer) -> Mapping[str, str]:
    """The variables of a shell that sees the fake cloud and no Prefect but its own."""
    return {
        **fake.env(),
        "GPUJOBS_HOME": str(home),
        "GPUJOBS_OWNER": "tester",
        "XDG_CONFIG_HOME": str(home / "config"),
        "PREFECT_HOME": str(home / "no-prefect"),
    }


@pytest.fixture(scope="session")
def cloud() -> Iterator[FakeServer]:
    with FakeServer(seed=1) as server:
        yield server


@pytest.fixture
def truth(cloud: FakeServer) -> Control:
    return Control(cloud)


@pytest.fixture(scope="session")
def at_home(cloud: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a new home, in an environment that holds for all tests of the session."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("PREFECT_", "GPUJOBS_"))]:
            patch.delenv(name)
        for name, value in clean_environment(tmp_path_factory.mktemp("home"), cloud).items():
            patch.setenv(name, value)
        yield gpujobs_settings.load()


@pytest.fixture(scope="session")
def up(at_home: Settings) -> Iterator[Controller]:
    try:
        yield controller.up(at_home)
    finally:
        controller.down(at_home)


@pytest.fixture(scope="session")
def desk(at_home: Settings, up: Controller) -> Iterator[Desk]:  # noqa: ARG001 - it must be up
    with open_ledger(at_home.database_url) as ledger:
        yield Desk(settings=at_home, ledger=ledger)
