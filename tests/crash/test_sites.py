"""Which crash points the simulation passes: each call site that has one, or why none of its kinds of runs comes by."""

import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gpujobs.crash import Point
from tests.cloud import BACKENDS
from tests.crash.acts import SOURCE, pointed
from tests.crash.kinds import KINDS, Kind
from tests.crash.lives import live, reap, recover
from tests.crash.world import world_of

KILLED = range(96, 240, 24)  # some places of the plain run, for what only those do who go on with another's run
UNPASSED: Mapping[str, str] = {
    "controller.py _write": "the record of a local Prefect server; tests/prefect/test_controller.py",
    "notify.py _send": "on a thread of its own, while the run waits; tests/test_notify.py",
    "prefect_api.py _send": "the simulation has no Prefect; tests/prefect/test_restarts_phases.py",
    "run_folder.py RunFolder.drop_log": "a log that is not the machine's; tests/lifecycle/test_run.py",
    "shell.py Shell.open_stream": "tasks are dealt by threads; tests/crash/test_kill_tasks.py",
    "shell.py reachable": "the simulation has no sockets; tests/crash/test_kill.py and test_network.py",
    "store.py Store._get_file": "what a command reads of a run that is over; tests/test_store.py",
    "store_folder.py _fetch_pieces": "what a command reads of another host's run; tests/test_store.py",
    "sweep_home.py bring_home": "as open_stream",
    "transfer_place.py _put_back": "a pull over an older one that was cut amid its last rename; tests/test_transfer.py",
    "worker_slots.py LeasedSlots._write": "a team's limits are Prefect's; tests/prefect/test_limits.py",
}


def passed_sites(kinds: Mapping[str, Kind], patch: pytest.MonkeyPatch) -> set[str]:
    """Drive a run of each kind, and some that are killed; name the functions whose points were passed."""
    sites: set[str] = set()
    enter = Point.__enter__

    def noting(point: Point) -> None:
        code = sys._getframe(1).f_code
        path = Path(code.co_filename)
        if path.is_relative_to(SOURCE):
            sites.add(f"{path.relative_to(SOURCE).as_posix()} {code.co_qualname.replace('<locals>.', '')}")
        enter(point)

    patch.setattr(Point, "__enter__", noting)
    memory = Path("/dev/shm")
    for backend in BACKENDS:
        with (
            TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
            world_of(backend, Path(folder)) as world,
        ):
            for kind in kinds.values():
                if backend in kind.backends:
                    kind.begin(world)
                    live(world)
            for dies_at in KILLED:
                Kind().begin(world)
                live(world, dies_at=dies_at)
                if dies_at % 48:
                    recover(world)
                reap(world)
    return sites


def test_each_point_is_passed_in_the_simulation_or_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(pointed())
    unpassed = known - passed_sites(KINDS, monkeypatch)
    print(f"{len(known)} functions with points, {len(unpassed)} of them not simulated")  # noqa: T201 - the figure
    assert sorted(unpassed - UNPASSED.keys()) == [], "cover it by a kind of run, or say here why not"
    assert sorted(UNPASSED.keys() - unpassed) == [], "explained, and passed by now"
