"""A run killed at every place, and at a slice of all pairs of places, with and without faults of the provider's API.

Two kills that leave the same state have the same future, so each state that a kill leaves is tried once.
Everything is in this thread and on a clock that only waiting moves, so that each case is the same every time. What
a failure names is a place: `live(world, dies_at=...)` in a test of its own shows it again.
"""

from collections.abc import Container, Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import pytest

from tests.cloud import BACKENDS
from tests.crash.durable import durable, repeatable
from tests.crash.faults import FAULTS, Fault, begin_fault
from tests.crash.lives import (
    RUN,
    killed_and_reaped,
    killed_and_resumed,
    live,
    place,
    reaped_and_checked,
    recover,
    strangers_of,
    tell,
)
from tests.crash.pairs import states_of
from tests.crash.world import World, world_of

CHUNKS = 4
EVERY = 10  # with a fault, every so manieth place, another one for each fault


@pytest.fixture
def world(backend: str) -> Iterator[World]:
    in_memory = Path("/dev/shm")  # else each of 100,000 writes would wait for a disk
    with (
        TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as folder,
        world_of(backend, Path(folder)) as world,
    ):
        yield world


def begin(world: World, fault: Fault | None = None) -> None:
    world.new()
    if fault:
        begin_fault(world, fault)


def judge(found: Sequence[str], *, what: str) -> None:
    """Say how many cases there were, and fail with those that broke a promise."""
    print(f"{what}: {len(found)} cases")  # noqa: T201 - the count is the figure that this proves
    assert found, "no case"
    assert [each for each in found if each] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_every_place_and_left_to_the_reaper(world: World) -> None:
    with repeatable(world) as again:

        def begin_beside_others() -> None:
            again()
            strangers_of(world)

        states, found = states_of(world, begin_beside_others), []
        for places in states.values():
            begin_beside_others()
            found.append(tell(f"{places[0]}", partial(killed_and_reaped, world, places[0])))
    judge(found, what=f"{world.backend}, each state that is left by a kill at {sum(map(len, states.values()))} places")


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_every_place_resumed_and_killed_again(world: World, chunk: int) -> None:
    """Each recovery is killed at a place where no other was yet; all pairs are the work of `tools/pairs.py`."""
    struck: set[str] = set()
    found = []
    with repeatable(world) as again:
        states = states_of(world, again)
        for state, places in list(states.items())[chunk::CHUNKS]:
            again()
            names = _died_and_recovered(world, places[0], state)
            found.append(tell(f"{places[0]}", partial(reaped_and_checked, world)))
            second = min(range(len(names)), key=partial(_rank, names, struck, chunk))
            struck.add(names[second])
            again()
            case = f"{places[0]}, then {second} {names[second]}"
            found.append(tell(case, partial(_killed_twice, world, places[0], second)))
    judge(found, what=f"{world.backend}, chunk {chunk} of {len(states)} states that a kill leaves")


def _died_and_recovered(world: World, dies_at: int, state: str) -> Sequence[str]:
    assert live(world, dies_at=dies_at)[0].dead
    assert durable(world) == state, f"{dies_at}: what a process does after its death counts"
    return [place(name) for name in recover(world).passed]


def _rank(names: Sequence[str], struck: Container[str], chunk: int, number: int) -> tuple[bool, bool]:
    """Prefer a place that was not struck, and of those one of this chunk's own share."""
    return names[number] in struck, crc32(names[number].encode()) % CHUNKS != chunk


def _killed_twice(world: World, first: int, second: int) -> None:
    live(world, dies_at=first)
    assert recover(world, dies_at=second).dead
    recover(world)
    reaped_and_checked(world)


@pytest.mark.parametrize("number", range(len(FAULTS)))
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_a_place_while_the_provider_fails(world: World, number: int) -> None:
    fault = FAULTS[number]
    begin(world, fault)
    names = live(world)[0].passed
    found = []
    for at in range(number % EVERY, len(names), EVERY):
        begin(world, fault)
        after = killed_and_resumed if at // EVERY % 2 else killed_and_reaped
        found.append(tell(f"{at} {place(names[at])}", lambda n=at, act=after: act(world, n)))
    judge(found, what=f"{world.backend}, {' '.join(fault[:2])}, every {EVERY}th of {len(names)} places")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_list_that_lacks_a_new_machine_for_a_moment_fails_no_run(world: World) -> None:
    begin(world, ("list", "stale_list", {"count": 3}))
    outcome = live(world)[1]
    assert outcome is not None
    assert (outcome.state, outcome.error) == ("succeeded", "")


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_never_made_is_known_to_cost_nothing_once_its_run_is_resumed(world: World) -> None:
    begin(world)
    names = live(world)[0].passed
    create = next(
        number for number, name in enumerate(names) if place(name).startswith("before http") and "create" in name
    )
    begin(world)
    live(world, dies_at=create)
    recover(world)
    assert [(one.attempt, one.settled, one.id is None) for one in world.ledger.machines(RUN)] == [
        (1, True, True),
        (2, True, False),
    ]
    assert world.ledger.machines_alive() == []
