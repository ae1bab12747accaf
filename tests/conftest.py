"""Fixtures of the tests of whole runs: a fake cloud, settings that point at it, a host."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from fake_server.server import FakeServer
from gpujobs import settings as gpujobs_settings
from gpujobs.host import Host, Timing
from gpujobs.ledger import Ledger, open_ledger
from gpujobs.settings import Settings
from tests.cloud import Control
from tests.ledger_values import a_machine, a_run, an_attempt
from tests.servers import Postgresql, postgresql

for _sign in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_sign, signal.SIG_DFL)  # nohup, or a shell's &, has them ignored here and in all that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile(  # no verdict hangs on how busy this machine is, nor on dice
    "calm", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("calm")

QUICK = Timing(settle_s=2.0, stop_grace_s=1.0, release_s=20.0, stock_s=0.3, guard_s=0.2, reach_s=0.05, lost_s=20.0)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgresql]:
    """A real server, where one is installed; restart it only if you start it again."""
    with postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger that is not there yet, on each kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/home/ledger.db"
    return str(request.getfixturevalue("postgres").new_schema())


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    with open_ledger(database_url) as opened:
        yield opened


@pytest.fixture
def rented(ledger: Ledger) -> Ledger:
    ledger.add_run(a_run())
    ledger.add_attempt(an_attempt())
    ledger.intend(a_machine())
    return ledger


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer(seed=1) as server:
        yield server


@pytest.fixture
def control(fake: FakeServer) -> Control:
    return Control(fake)


@pytest.fixture
def cloud_settings(fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in fake.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPUJOBS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GPUJOBS_OWNER", "tester")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("GPUJOBS_DATABASE_URL", raising=False)
    return gpujobs_settings.load()


@pytest.fixture
def host(cloud_settings: Settings) -> Iterator[Host]:
    with Host.open(cloud_settings, dice=random.Random(1), timing=QUICK) as host:
        yield host
