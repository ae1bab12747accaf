"""Runs of every kind, each killed at the places that a plain run does not pass, then taken up again or reaped.

Where a plain run is killed stands in test_simulation.py; what is the same in both is not done twice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cloud import BACKENDS
from tests.crash.kinds import KINDS, Kind
from tests.crash.lives import DEAD_S, check, live, place, reap, recover
from tests.crash.test_points import PLACES
from tests.crash.world import World, world_of

HOURS_S = 2 * 3600.0
SOME = 24  # of all places, each so manieth


@pytest.fixture
def world(backend: str) -> Iterator[World]:
    memory = Path("/dev/shm")
    with (
        TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
        world_of(backend, Path(folder)) as world,
    ):
        yield world


def own_places(backend: str, passed: Sequence[str]) -> Mapping[int, str]:
    """Give, by number, the first passing of each place that a plain run does not pass."""
    plain = (PLACES / f"{backend}.txt").read_text(encoding="utf-8").splitlines()
    first: dict[str, int] = {}
    for number, name in enumerate(passed):
        first.setdefault(place(name), number)
    return {number: name for name, number in first.items() if name not in plain}


def killed_and_resumed(world: World, kind: Kind, dies_at: int) -> None:
    kind.begin(world)
    life = live(world, dies_at=dies_at)[0]
    assert life.dead or not kind.lasts, "it was not killed"  # one that waits long may pass a place less than before
    recover(world)
    reap(world)
    check(world)
    kind.check(world)


def killed_and_reaped(world: World, kind: Kind, dies_at: int) -> None:
    kind.begin(world)
    life = live(world, dies_at=dies_at)[0]
    assert life.dead or not kind.lasts, "it was not killed"  # one that waits long may pass a place less than before
    reap(world)
    check(world, ended=False)


def act_at(backend: str, name: str) -> Callable[[World, Kind, int], None]:
    """Resume before an act and reap after it on one backend, and the other way round on the other."""
    return killed_and_resumed if name.startswith("before") == (backend == "autodl") else killed_and_reaped


def judge(world: World, kind: Kind, numbers: Mapping[int, str]) -> None:
    """Kill it at each place; fail with all that break a promise."""
    broken = []
    for at, name in numbers.items():
        for act in ACTS if len(kind.backends) == 1 else (act_at(world.backend, name),):
            try:
                act(world, kind, at)
            except AssertionError as error:
                broken.append(f"{act.__name__} at {at} {name}: {str(error).splitlines()[0]}")
    print(f"{world.backend}: {len(numbers)} places")  # noqa: T201 - the count is the figure that this proves
    assert broken == []


ACTS = (killed_and_resumed, killed_and_reaped)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_the_places_of_its_own(world: World, name: str) -> None:
    kind = KINDS[name]
    if world.backend not in kind.backends:
        return
    kind.begin(world)
    passed = live(world)[0].passed
    kind.check(world)
    judge(world, kind, own_places(world.backend, passed))
    killed_and_resumed(world, kind, len(passed) - 6)  # the attempt is over, and the run does not know it yet


@pytest.mark.parametrize("backend", BACKENDS)
def test_machine_that_waited_for_hours_has_ended_itself_where_it_can(world: World) -> None:
    """Its linger is over before anybody takes the run up; what is lost with it is done again, by the recipe's retry."""
    kind = KINDS["left to itself"]
    kind.begin(world)
    passed = live(world)[0].passed
    ended = 0
    for dies_at in range(0, len(passed), SOME):
        kind.begin(world)
        live(world, dies_at=dies_at)
        rented = world.alive()
        world.clock.move(HOURS_S)
        ended += bool(rented and not world.alive())
        world.clock.move(DEAD_S)
        live(world)
        reap(world)
        check(world)
        kind.check(world)
    assert ended == 0 or world.backend == "autodl", "only a container on AutoDL can end itself"
    assert ended > 0 or world.backend == "matrixdc", "none has ended itself"


@pytest.mark.parametrize("backend", ["matrixdc"])
def test_killed_after_its_disk_was_not_saved_it_says_so_all_the_same(world: World) -> None:
    kind = KINDS["its disk cannot be saved"]
    kind.begin(world)
    passed = live(world)[0].passed
    release = next(number for number, name in enumerate(passed) if "DELETE" in name)
    for dies_at in range(release, len(passed), 12):
        killed_and_resumed(world, kind, dies_at)
