"""A real `gpujobs submit --here`, killed by kill -9 at a place of its own: a real cloud and real SSH are the judges."""

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpujobs import reaper
from gpujobs.clock import StopToken, SystemClock
from gpujobs.errors import Busy
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED
from gpujobs.lifecycle import execute
from gpujobs.run_folder import RunFolder
from gpujobs.settings import Settings
from tests.cloud import BACKENDS, GPUS, Control, Memory
from tests.conftest import QUICK

KILLED = """
import os, re, signal, sys
from gpujobs import crash
from gpujobs.cli.entry import main

wanted = re.compile(sys.argv.pop(1))

def strike(name):
    if wanted.search(name):
        os.kill(os.getpid(), signal.SIGKILL)

with crash.armed(strike):
    sys.exit(main())
"""
PLACES = {
    "the intent is written, nothing is asked for": r"^before http \w+ POST create",
    "it is made, and the reply is lost": r"^after http \w+ POST create",
    "it is made, and that is written down": r"^after ledger machine update .*settled",
    "boot: logging in": r"^before dial log in",
    "push: the runner is on its way": r"^before ssh umask 077 && mkdir",
    "run: the work is to be started": r"^before ssh .*runner\.sh start$",
    "run: the work has been started": r"^after ssh .*runner\.sh start$",
    "run: output has come": r"^after file add to output\.log",
    "pull: an output is to be put in its place": r"^before file put in place kept",
    "release: it is asked for": r"^after http \w+ DELETE",
}
RECIPE = """
name: t
resources: {{infra: {backend}, accelerators: "{gpu}"}}
run: |
  echo begun
  echo started >> ~/starts
  cp ~/starts kept
  sleep 0.3
  echo done
outputs: {{kept: kept}}
max_duration: 10m
"""


class Later(SystemClock):
    """The machine's own clock, some time from now: the dead process's lease has run out."""

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(hours=1)


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
    assert outcome.log.read_bytes() == b"begun\ndone\n"
    attempt = later.ledger.attempts(run.id)[-1]
    assert attempt.log_sha256 == hashlib.sha256(b"begun\ndone\n").hexdigest()
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
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(backend=backend, gpu=GPUS[backend]), encoding="utf-8")
    command = [sys.executable, "-c", KILLED, place, "submit", str(path), "--here", "--yes"]
    done = subprocess.run(command, env=os.environ, cwd=folder, capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
