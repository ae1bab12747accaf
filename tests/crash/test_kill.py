"""A real `gpujobs submit --here`, killed by kill -9 at a place of its own: a real cloud and real SSH are the judges."""

import hashlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpujobs import reaper
from gpujobs.clock import StopToken
from gpujobs.errors import Busy
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED
from gpujobs.lifecycle import execute
from gpujobs.run_folder import RunFolder
from gpujobs.settings import Settings
from tests.cloud import BACKENDS, Control, Memory
from tests.conftest import QUICK
from tests.crash.killed import LOG, PLACES, Later, submit_and_die


@pytest.fixture
def later(cloud_settings: Settings) -> Iterator[Host]:
    with Host.open(cloud_settings, clock=Later(), dice=random.Random(2), timing=QUICK) as host:
        yield host


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_there_it_is_taken_up_and_nothing_is_lost_or_left(
    backend: str, place: str, control: Control, later: Host, tmp_path: Path
) -> None:
    kill_at(PLACES[place], backend, tmp_path)
    (run,) = later.ledger.list_runs()
    assert run.state == "running"
    outcome = execute(later, run.id, stop=StopToken(), reporter=Memory(), unended=True)
    assert (outcome.state, outcome.error, outcome.machines_alive) == ("succeeded", "", 0)
    assert outcome.log.read_bytes() == LOG
    attempt = later.ledger.attempts(run.id)[-1]
    assert attempt.log_sha256 == hashlib.sha256(LOG).hexdigest()
    assert outcome.outputs["kept"].read_text() == "started\n", "not started exactly once"
    assert control.left() == []
    with pytest.raises(Busy):
        execute(later, run.id, stop=StopToken(), reporter=Memory(), unended=True)
    assert reaper.reap(later, yes=False, reporter=Memory()).released == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_when_the_reply_was_lost_and_never_taken_up_it_is_reaped(
    backend: str, control: Control, later: Host, tmp_path: Path
) -> None:
    kill_at(PLACES["it is made, and the reply is lost"], backend, tmp_path)
    (run,) = later.ledger.list_runs()
    reaper.reap(later, yes=False, reporter=Memory())
    assert control.left() == []
    assert later.ledger.get_run(run.id).state in ENDED
    assert RunFolder(later.settings.runs / run.id).log_size() == 0


def kill_at(place: str, backend: str, folder: Path) -> None:
    """Submit the recipe in a process of its own, which kills itself at the first place that fits."""
    done = submit_and_die(place, backend, folder)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
