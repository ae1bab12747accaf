"""A recipe that names a credential block runs, is reaped and resumed under that account, and no other is touched."""

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fake_server.server import FakeServer
from gpujobs import reaper
from gpujobs.clock import StopToken, SystemClock
from gpujobs.errors import Detached
from gpujobs.host import Host
from gpujobs.lifecycle import execute, new_run_id, open_run
from gpujobs.settings import Settings
from tests.cloud import Control, Memory, recipe_for
from tests.conftest import QUICK
from tests.kept import Kept


class Later(SystemClock):
    """The machine's own clock, some time from now."""

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def other() -> Iterator[Control]:
    """The cloud of another account."""
    with FakeServer(seed=2) as server:
        yield Control(server)


@pytest.fixture
def teamed(cloud_settings: Settings, other: Control) -> Settings:
    """Settings whose environment has one account with AutoDL, and a block another."""
    kept = Kept({"my-team": {"token": other.fake.env()["AUTODL_TOKEN"], "api_url": other.fake.url}})
    return replace(cloud_settings, blocks=kept)


@pytest.fixture
def both(teamed: Settings) -> Iterator[Host]:
    with Host.open(teamed, dice=random.Random(1), timing=QUICK) as host:
        yield host


@pytest.fixture
def later(teamed: Settings) -> Iterator[Host]:
    with Host.open(teamed, clock=Later(), dice=random.Random(2), timing=QUICK) as host:
        yield host


def left_at_push(host: Host, **parts: object) -> str:
    """A run whose driver has let go of it once its machine was there."""
    run_id, stop = new_run_id(), StopToken()
    open_run(host, recipe_for("autodl", **parts), run_id=run_id)
    execute(host, run_id, stop=stop, reporter=Memory(on_phase=lambda name: name == "push" and stop.stop(Detached(""))))
    return run_id


def test_each_run_of_one_host_rents_under_the_account_that_its_recipe_names(
    both: Host, control: Control, other: Control
) -> None:
    for credentials in ({}, {"autodl": "my-team"}):
        run_id = new_run_id()
        open_run(both, recipe_for("autodl", credentials=credentials), run_id=run_id)
        assert execute(both, run_id, stop=StopToken(), reporter=Memory()).exit_code == 0
    assert [len(cloud.machines()) for cloud in (control, other)] == [1, 1]
    assert [cloud.left() for cloud in (control, other)] == [[], []]


def test_run_is_resumed_under_its_own_account(both: Host, control: Control, other: Control) -> None:
    run_id = left_at_push(both, credentials={"autodl": "my-team"})
    assert execute(both, run_id, stop=StopToken(), reporter=Memory()).exit_code == 0
    assert (len(control.machines()), len(other.machines()), other.left()) == (0, 1, [])


def test_run_whose_block_is_gone_is_let_go_of_and_its_machine_works_on(
    both: Host, cloud_settings: Settings, other: Control
) -> None:
    run_id = left_at_push(both, credentials={"autodl": "my-team"})
    without = replace(cloud_settings, blocks=Kept())
    with Host.open(without, timing=QUICK) as host, pytest.raises(Detached, match="has no block autodl-credentials/my"):
        execute(host, run_id, stop=StopToken(), reporter=Memory())
    assert both.ledger.get_run(run_id).state == "running"
    assert len(other.alive()) == 1


def test_reaper_releases_machines_of_every_account(both: Host, later: Host, control: Control, other: Control) -> None:
    for credentials in ({}, {"autodl": "my-team"}):
        run_id = left_at_push(both, credentials=credentials)
        both.ledger.update_run(run_id, state="cancelled")
    result = reaper.reap(later, yes=False, reporter=Memory())
    assert (len(result.released), result.failed) == (2, [])
    assert [cloud.left() for cloud in (control, other)] == [[], []]


def test_reaper_does_not_take_a_machine_for_gone_that_another_accounts_list_lacks(both: Host, later: Host) -> None:
    left_at_push(both)
    left_at_push(both, credentials={"autodl": "my-team"})
    reaper.reap(later, yes=False, reporter=Memory())
    assert len(later.ledger.machines_alive("tester")) == 2


def test_reaper_tells_of_a_machine_under_a_block_that_it_cannot_read(both: Host, cloud_settings: Settings) -> None:
    run_id = left_at_push(both, credentials={"autodl": "my-team"})
    with Host.open(cloud_settings, clock=Later(), timing=QUICK) as alone:
        [(name, why)] = reaper.reap(alone, yes=False, reporter=Memory()).failed
        assert alone.ledger.machines_alive("tester")[0].name == name == f"gj-tester-{run_id}-1"
    assert "block autodl-credentials/my-team cannot be read, for no server is known" in why


def test_missing_secret_or_notice_url_ends_a_run_before_anything_is_rented(both: Host, control: Control) -> None:
    for parts, said in (({"secrets": ["NOWHERE"]}, "secret NOWHERE"), ({"notify": ["nobody"]}, "notify: nobody")):
        run_id = new_run_id()
        open_run(both, recipe_for("autodl", **parts), run_id=run_id)
        outcome = execute(both, run_id, stop=StopToken(), reporter=Memory())
        assert (outcome.state, outcome.exit_code, said in outcome.error) == ("failed", 2, True)
    assert control.machines() == []
