"""A run killed at every place, and at sampled pairs of places, with and without faults of the provider's API.

Everything is in this thread and on a clock that only waiting moves, so that each case is the same every time. What
a failure names is a place: `live(world, dies_at=...)` in a test of its own shows it again.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cloud import BACKENDS
from tests.crash.faults import FAULTS, Fault, begin_fault
from tests.crash.lives import RUN, check, check_promises, live, place, reap, recover, strangers_of
from tests.crash.world import World, world_of

CHUNKS = 4
PAIRS = 120  # of each backend
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


def tell(case: str, act: Callable[[], object]) -> str:
    """Do a case; give "" or what it breaks."""
    try:
        act()
    except AssertionError as error:
        return f"{case}: {str(error).splitlines()[0]}"
    return ""


def judge(found: Sequence[str], *, what: str) -> None:
    """Say how many cases there were, and fail with those that broke a promise."""
    print(f"{what}: {len(found)} cases")  # noqa: T201 - the count is the figure that this proves
    assert found, "no case"
    assert [each for each in found if each] == []


def killed_and_resumed(world: World, dies_at: int) -> None:
    assert live(world, dies_at=dies_at)[0].dead
    recover(world)
    reap(world)
    check(world, succeeded=True)


def killed_and_reaped(world: World, dies_at: int) -> None:
    strangers = world.alive()
    assert live(world, dies_at=dies_at)[0].dead
    reap(world)
    check(world, ended=False, strangers=strangers)


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("after", [killed_and_resumed, killed_and_reaped])
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_every_place(world: World, after: Callable[[World, int], None], chunk: int) -> None:
    begin(world)
    names = live(world)[0].passed
    found = []
    step = CHUNKS if after is killed_and_resumed else 2 * CHUNKS
    for number in range(chunk, len(names), step):
        begin(world)
        if after is killed_and_reaped:
            strangers_of(world)
        found.append(tell(f"{number} {place(names[number])}", lambda n=number: after(world, n)))
    judge(found, what=f"{world.backend}, {after.__name__}, every {step}th of {len(names)} places")


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


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_two_places_and_recovered(world: World, chunk: int) -> None:
    """The second kill strikes the process that recovers from the first; which pairs, a fixed seed draws."""
    begin(world)
    names = live(world)[0].passed
    dice, found = random.Random(f"{world.backend} {chunk}"), []
    for first in sorted(dice.choices(range(len(names)), k=PAIRS // CHUNKS)):
        begin(world)
        second = dice.randrange(len(names) - first + 20)  # it passes about as many as are left, and some again
        case = f"{first} {place(names[first])}, then {second}"
        found.append(tell(case, lambda f=first, s=second: _twice(world, f, s)))
    judge(found, what=f"{world.backend}, pairs of {len(names)} places, chunk {chunk}")


def _twice(world: World, first: int, second: int) -> None:
    live(world, dies_at=first)
    recover(world, dies_at=second)
    recover(world)
    reap(world)
    check_promises(world, succeeded=True)


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
