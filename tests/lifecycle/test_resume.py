"""A run whose driver died at any phase is taken up by the next: one machine, one start, one outcome."""

import pytest

from gpujobs.clock import StopToken
from gpujobs.errors import Detached
from gpujobs.host import Host
from gpujobs.lifecycle import execute, new_run_id, open_run
from tests.cloud import BACKENDS, Control, Memory, recipe_for
from tests.lifecycle.test_run import assert_nothing_left

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


class Killed(BaseException):
    """Ends a driver where it stands: no handler of ours may see it."""


def drive_until(phase: str, host: Host, run_id: str) -> None:
    """Drive a run up to the beginning of `phase`, and no further, as a kill would."""

    def die(name: str) -> None:
        if name == phase:
            raise Killed

    with pytest.raises(Killed):
        execute(host, run_id, stop=StopToken(), reporter=Memory(on_phase=die))


@pytest.mark.parametrize("phase", ["plan", "provision", "boot", "push", "run", "pull", "release"])
def test_killed_at_each_phase_it_goes_on_where_it_stood(backend: str, phase: str, host: Host, control: Control) -> None:
    run_id = new_run_id()
    recipe = recipe_for(backend, run="echo once; echo kept > kept", outputs={"kept": "kept"})
    open_run(host, recipe, run_id=run_id)
    drive_until(phase, host, run_id)
    outcome = execute(host, run_id, stop=StopToken(), reporter=Memory())
    assert (outcome.state, outcome.exit_code, outcome.error) == ("succeeded", 0, "")
    assert outcome.log.read_bytes() == b"once\n"
    assert outcome.outputs["kept"].read_text() == "kept\n"
    assert_nothing_left(control)


@pytest.mark.parametrize("phase", ["pull", "release"])
def test_killed_after_a_failure_it_ends_with_that_failure(
    backend: str, phase: str, host: Host, control: Control
) -> None:
    run_id = new_run_id()
    open_run(host, recipe_for(backend, run="echo begun; exit 3", outputs={"none": "none"}), run_id=run_id)
    drive_until(phase, host, run_id)
    outcome = execute(host, run_id, stop=StopToken(), reporter=Memory())
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert "the command ended with exit code 3" in outcome.error
    assert_nothing_left(control)


def test_a_run_that_had_succeeded_stays_so_although_its_machine_is_gone(
    backend: str, host: Host, control: Control
) -> None:
    run_id = new_run_id()
    open_run(host, recipe_for(backend), run_id=run_id)
    drive_until("release", host, run_id)
    control.ask("POST", "reset")
    outcome = execute(host, run_id, stop=StopToken(), reporter=Memory())
    assert (outcome.state, outcome.machines_alive) == ("succeeded", 0)
    assert control.machines() == []


def test_a_machine_lost_under_the_work_is_followed_by_another(backend: str, host: Host, control: Control) -> None:
    run_id, stop, first = new_run_id(), StopToken(), Memory()
    open_run(host, recipe_for(backend, run="echo begun; sleep 1"), run_id=run_id)
    first = Memory(on_phase=lambda name: name == "run" and stop.stop(Detached("as if killed")))
    execute(host, run_id, stop=stop, reporter=first)
    control.ask("POST", "reset")
    outcome = execute(host, run_id, stop=StopToken(), reporter=Memory())
    assert outcome.state == "succeeded"
    assert [attempt.number for attempt in host.ledger.attempts(run_id)] == [1, 2]
    assert_nothing_left(control)
