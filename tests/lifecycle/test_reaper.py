"""The reaper: it releases what no living run owns, asks for what it does not know, and touches nobody else's."""

import random
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from gpujobs import reaper
from gpujobs.backends import load
from gpujobs.clock import StopToken, SystemClock
from gpujobs.errors import Busy, Detached
from gpujobs.host import Host
from gpujobs.lifecycle import execute, new_run_id, open_run
from gpujobs.run_folder import RunFolder
from gpujobs.settings import Settings
from tests.cloud import BACKENDS, Control, Memory, recipe_for
from tests.conftest import QUICK

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


class Later(SystemClock):
    """The machine's own clock, some time from now."""

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def later(cloud_settings: Settings) -> Host:
    return Host.open(cloud_settings, clock=Later(), dice=random.Random(2), timing=QUICK)


def rent_by_hand(control: Control, settings: Settings, backend: str, name: str) -> None:
    door = load(backend, settings, clock=SystemClock())
    recipe = recipe_for(backend)
    door.create(recipe, door.offers(recipe)[0], name=name, image="")
    deadline = time.monotonic() + 60
    while not control.alive() and time.monotonic() < deadline:
        time.sleep(0.02)  # AutoDL finds a host some moments after it accepted the deployment


def test_a_machine_unknown_to_the_ledger_is_released_only_when_told_to(
    backend: str, later: Host, control: Control, cloud_settings: Settings
) -> None:
    rent_by_hand(control, cloud_settings, backend, "gj-tester-aaaa111111-1")
    assert [found.action for found in reaper.survey(later, later.backend(backend))] == ["ask"]
    assert reaper.reap(later, yes=False, reporter=Memory()).released == []
    assert control.alive() == ["gj-tester-aaaa111111-1"]
    result = reaper.reap(later, yes=True, reporter=Memory())
    assert [machine.name for machine in result.released] == ["gj-tester-aaaa111111-1"]
    assert control.left() == []


def test_a_young_unknown_machine_is_left_alone(
    backend: str, host: Host, control: Control, cloud_settings: Settings
) -> None:
    rent_by_hand(control, cloud_settings, backend, "gj-tester-aaaa111111-1")
    assert reaper.reap(host, yes=True, reporter=Memory()).released == []
    assert len(control.alive()) == 1


@pytest.mark.parametrize(
    "name", ["gj-other-aaaa111111-1", "gj-testertoo-aaaa111111-1", "gj-tester-notebook", "my own box"]
)
def test_machines_that_are_not_ours_are_never_touched(
    backend: str, name: str, later: Host, control: Control, cloud_settings: Settings
) -> None:
    rent_by_hand(control, cloud_settings, backend, name)
    assert reaper.survey(later, later.backend(backend)) == []
    reaper.reap(later, yes=True, reporter=Memory())
    assert control.alive() == [name]


def test_a_run_at_work_keeps_its_machine(backend: str, host: Host, control: Control, cloud_settings: Settings) -> None:
    def reap_meanwhile(phase: str) -> None:
        if phase == "run":
            with Host.open(cloud_settings, timing=QUICK) as rival:
                assert [found.action for found in reaper.survey(rival, rival.backend(backend))] == ["leave"]
                assert reaper.reap(rival, yes=True, reporter=Memory()).released == []

    run_id = new_run_id()
    open_run(host, recipe_for(backend), run_id=run_id)
    assert execute(host, run_id, stop=StopToken(), reporter=Memory(on_phase=reap_meanwhile)).exit_code == 0
    assert control.left() == []


@pytest.mark.parametrize("died", [True, False])
def test_a_run_that_nobody_drives_is_ended_and_its_outputs_come_home(
    backend: str, died: bool, host: Host, later: Host, control: Control
) -> None:
    run_id, reporter, stop = new_run_id(), Memory(), StopToken()
    recipe = recipe_for(backend, run="echo kept > kept; echo begun; sleep 60; echo never", outputs={"kept": "kept"})
    open_run(host, recipe, run_id=run_id)
    threading.Thread(target=lambda: reporter.wrote.wait(30) and stop.stop(Detached("as if killed"))).start()
    execute(host, run_id, stop=stop, reporter=reporter)
    assert len(control.alive()) == 1
    if died:
        assert host.ledger.claim_run(run_id, "elsewhere:1:dead", lease_s=1, now=host.clock.now())
    else:  # it was left to itself, which a pass that was not told to leaves alone
        assert [found.action for found in reaper.survey(later, later.backend(backend))] == ["ask"]
        assert reaper.reap(later, yes=False, reporter=reporter).released == []
        assert len(control.alive()) == 1
    assert reaper.recover(later) == [run_id]
    reaper.reap(later, yes=not died, reporter=reporter)
    assert control.left() == []
    assert later.ledger.get_run(run_id).state == "cancelled"
    folder = RunFolder(later.settings.runs / run_id)
    assert folder.log.read_bytes() == b"begun\n"
    assert (folder.outputs / "kept").read_text() == "kept\n"


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_a_run_that_came_to_its_end_under_the_reaper_stays_as_it_ended(
    backend: str, state: str, host: Host, control: Control
) -> None:
    run_id = new_run_id()
    open_run(host, recipe_for(backend), run_id=run_id)
    host.ledger.update_run(run_id, state=state)
    reaper._end_run(host, run_id, Memory())
    assert (host.ledger.get_run(run_id).state, control.machines()) == (state, [])


def test_a_run_that_another_has_taken_under_the_reaper_is_left_to_it(
    backend: str, host: Host, control: Control
) -> None:
    run_id = new_run_id()
    open_run(host, recipe_for(backend), run_id=run_id)
    host.ledger.claim_run(run_id, "elsewhere:1:alive", lease_s=60, now=host.clock.now())
    with pytest.raises(Busy):
        reaper._end_run(host, run_id, Memory())
    assert (host.ledger.get_run(run_id).state, control.machines()) == ("submitted", [])


def test_what_the_provider_lists_no_longer_is_marked_gone(
    backend: str, host: Host, later: Host, control: Control
) -> None:
    run_id, stop = new_run_id(), StopToken()
    open_run(host, recipe_for(backend), run_id=run_id)
    execute(host, run_id, stop=stop, reporter=Memory(on_phase=lambda name: name == "push" and stop.stop(Detached(""))))
    control.ask("POST", "reset")
    assert len(later.ledger.machines_alive("tester")) == 1
    reaper.reap(later, yes=False, reporter=Memory())
    assert later.ledger.machines_alive("tester") == []
