"""A real `gpujobs submit --here` of a recipe with tasks, killed by kill -9: each task is done, and none twice.

Its tasks are dealt by threads, so that no simulation in one thread can drive it.
"""

import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gpujobs import reaper
from gpujobs.clock import StopToken
from gpujobs.errors import Busy
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED, TaskRecord
from gpujobs.lifecycle import execute
from gpujobs.settings import Settings
from tests.cloud import Control, Memory
from tests.conftest import QUICK
from tests.crash.killed import Later, submit_and_die

RECIPE = """
name: t
resources: {{infra: {backend}, accelerators: "{gpu}"}}
tasks: 3
run: echo "$GPUJOBS_TASK_INDEX on $GPUJOBS_MACHINE" | tee kept
outputs: {{kept: kept}}
max_duration: 5h
"""
KILLS = {  # where, on which backend, and how many tasks are done by then, at the least
    "the tasks are to be written down": (r"^before ledger tasks insert", "autodl", 0),
    "its machine is made, and the reply is lost": (r"^after http \w+ POST create", "matrixdc", 0),
    "the first task is at a machine": (r"^after ledger task update .*began_at", "autodl", 0),
    "what the second left is to be put in place": (r"^before file put in place task-1$", "matrixdc", 1),
    "what the second left is in place, and nobody knows": (r"^after file put in place task-1$", "autodl", 1),
    "its machine is released": (r"^after http \w+ DELETE", "matrixdc", 0),
}


@pytest.fixture
def later(cloud_settings: Settings) -> Iterator[Host]:
    with Host.open(cloud_settings, clock=Later(), dice=random.Random(2), timing=QUICK) as host:
        yield host


def killed(place: str, backend: str, folder: Path, host: Host) -> tuple[str, Sequence[TaskRecord]]:
    """Submit and kill; give the run's id, and those of its tasks that are recorded as done."""
    died = submit_and_die(place, backend, folder, recipe=RECIPE)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    (run,) = host.ledger.list_runs()
    assert run.state == "running"
    return run.id, [row for row in host.ledger.tasks(run.id) if row.state == "succeeded"]


@pytest.mark.parametrize("where", KILLS)
def test_killed_there_each_task_is_done_and_none_that_was_recorded_is_done_again(
    where: str, control: Control, later: Host, tmp_path: Path
) -> None:
    place, backend, least = KILLS[where]
    run_id, done = killed(place, backend, tmp_path, later)
    assert len(done) >= least
    outcome = execute(later, run_id, stop=StopToken(), reporter=Memory(), unended=True)
    assert (outcome.state, outcome.error, outcome.machines_alive) == ("succeeded", "", 0)
    rows = later.ledger.tasks(run_id)
    assert [(row.number, row.state, row.exit_code) for row in rows] == [(number, "succeeded", 0) for number in range(3)]
    assert [row for row in rows if row in done] == done, "a task that was recorded was done again"
    for row in rows:
        home = outcome.outputs[f"task-{row.number}"]
        assert sorted(path.name for path in home.iterdir()) == ["kept", "output.log"]
        assert (home / "kept").read_text() == f"{row.number} on {row.machine}\n", "not what the recorded machine left"
        assert (home / "output.log").read_bytes() == (home / "kept").read_bytes()
    assert control.left() == []
    with pytest.raises(Busy):
        execute(later, run_id, stop=StopToken(), reporter=Memory(), unended=True)
    assert reaper.reap(later, yes=False, reporter=Memory()).released == []


def test_killed_amid_its_tasks_and_never_taken_up_it_is_reaped_and_what_was_done_stays(
    control: Control, later: Host, tmp_path: Path
) -> None:
    run_id, done = killed(r"^before file put in place task-1$", "autodl", tmp_path, later)
    reaper.reap(later, yes=False, reporter=Memory())
    assert control.left() == []
    assert later.ledger.get_run(run_id).state in ENDED
    rows = later.ledger.tasks(run_id)
    assert [row.state for row in rows] == ["succeeded", "cancelled", "cancelled"]
    assert [row for row in rows if row.state == "succeeded"] == done
