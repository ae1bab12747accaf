"""The ledger on a PostgreSQL server that is restarted, or away, or has a client that was frozen."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fake_server.server import FakeServer
from gpujobs.clock import StopToken
from gpujobs.errors import LetGo
from gpujobs.host import Host
from gpujobs.ledger import Ledger, open_ledger
from gpujobs.ledger_database import AWAY_S
from gpujobs.lifecycle import execute, new_run_id, open_run
from gpujobs.settings import Settings
from tests.clocks import ManualClock
from tests.cloud import Control, Memory, recipe_for
from tests.conftest import QUICK
from tests.ledger_values import a_run
from tests.lifecycle.test_run import assert_nothing_left
from tests.servers import Postgresql, postgresql


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgresql]:
    """A server that tests may stop."""
    with postgresql() as server:
        yield server


@pytest.fixture
def server(own_server: Postgresql) -> Iterator[Postgresql]:
    yield own_server
    own_server.stop()
    own_server.start()


@pytest.fixture
def ledger(server: Postgresql) -> Iterator[Ledger]:
    with open_ledger(server.new_schema()) as opened:
        opened.add_run(a_run())
        yield opened


def test_what_is_asked_while_the_server_restarts_is_answered_once_it_is_back(
    ledger: Ledger, server: Postgresql, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    with ThreadPoolExecutor(2) as pool:
        written = pool.submit(ledger.update_run, "k3x9", phase="boot")
        token = pool.submit(ledger.claim_run, "k3x9", "a", lease_s=60, now=a_run().created_at)
        while len(caplog.records) < 2:
            threading.Event().wait(0.01)
        server.start()
        written.result(timeout=60)
        assert token.result(timeout=60) == 1
    assert ledger.get_run("k3x9").phase == "boot"


def test_a_server_that_stays_away_is_given_up_and_the_run_let_go(server: Postgresql) -> None:
    clock = ManualClock(runs_by_itself=True)
    with open_ledger(server.new_schema(), clock=clock) as ledger:
        server.stop()
        with pytest.raises(LetGo, match="has not answered for 30"):
            ledger.update_run("k3x9", phase="boot")
        assert AWAY_S <= clock.monotonic() < AWAY_S + 10


def test_a_ledger_that_is_closed_waits_for_no_server(ledger: Ledger, server: Postgresql) -> None:
    server.stop()
    ledger.close()
    with pytest.raises(LetGo):
        ledger.update_run("k3x9", phase="boot")


def test_a_client_that_is_frozen_in_a_transaction_is_cut_off_by_the_server(ledger: Ledger) -> None:
    with ledger._database.engine.connect() as connection:
        names = ("idle_in_transaction_session_timeout", "lock_timeout")
        found = {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names}
    assert found == {"idle_in_transaction_session_timeout": "15s", "lock_timeout": "30s"}


@pytest.mark.timeout(240)
def test_a_run_outlives_a_restart_of_the_database(
    server: Postgresql, cloud_settings: Settings, fake: FakeServer
) -> None:
    settings = replace(cloud_settings, database_url=server.new_schema())
    run_id, reporter = new_run_id(), Memory()
    with Host.open(settings, timing=QUICK) as host, ThreadPoolExecutor(1) as pool:
        recipe = recipe_for("autodl", run="echo begun; sleep 3; echo over; echo kept > kept", outputs={"k": "kept"})
        open_run(host, recipe, run_id=run_id)
        driven = pool.submit(execute, host, run_id, stop=StopToken(), reporter=reporter)
        assert reporter.wrote.wait(60)
        server.stop()
        threading.Event().wait(3)  # the job ends meanwhile, and its driver wants to write that down
        server.start()
        outcome = driven.result(timeout=120)
    assert (outcome.state, outcome.log.read_bytes(), outcome.machines_alive) == ("succeeded", b"begun\nover\n", 0)
    assert_nothing_left(Control(fake))
