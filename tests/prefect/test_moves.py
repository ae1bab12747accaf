"""Which waits and transfers have a progress artifact, and how seldom Prefect is told of them."""

import asyncio
import uuid
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from gpujobs.flow_moves import Moves

WAIT = "waiting for the machine"


@dataclass
class Shelf:
    """Keeps what it is told, as a Prefect server would."""

    told: list[tuple[float, str]] = field(default_factory=list)
    removed: bool = False

    async def create_artifact(self, artifact: Any) -> Any:
        self.told.append((artifact.data, artifact.description))
        return SimpleNamespace(id=uuid.uuid4())

    async def update_artifact(self, _: uuid.UUID, artifact: Any) -> None:
        if self.removed:
            request = httpx.Request("PATCH", "http://127.0.0.1/api/artifacts/x")
            raise PrefectHTTPStatusError("404", request=request, response=httpx.Response(404, request=request))
        self.told.append((artifact.data, artifact.description))


@dataclass
class Hand:
    """A clock that is moved by hand."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """Say what time it is, in seconds."""
        return self.now_s


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def moves(shelf: Shelf, hand: Hand) -> Moves:
    client: Any = shelf
    return Moves(client, uuid.uuid4(), now=hand)


def wait_for(moves: Moves, hand: Hand, seconds: int) -> None:
    """Wait with news each second, and as often ask whether something is to be told."""
    for second in range(seconds):
        hand.now_s += 1
        moves.progress(WAIT, second + 1, 600)
        asyncio.run(moves.tell())


def test_what_is_over_in_a_moment_is_not_shown(moves: Moves, hand: Hand, shelf: Shelf) -> None:
    moves.progress("uploading workdir", 1, 10)
    hand.now_s = 1.5
    moves.progress("uploading workdir", 10, 10)
    asyncio.run(moves.tell())
    assert shelf.told == []


def test_long_wait_is_told_ever_more_seldom_and_ends_full(moves: Moves, hand: Hand, shelf: Shelf) -> None:
    wait_for(moves, hand, 10)
    assert [share for share, _ in shelf.told] == [0.5, 0.8, 1.2, 1.5]
    wait_for(moves, hand, 590)
    assert len(shelf.told) < 40
    moves.end_all()
    asyncio.run(moves.tell())
    assert shelf.told[-1] == (100.0, f"{WAIT}: 9m50s, over")
    told = len(shelf.told)
    asyncio.run(moves.tell())
    assert len(shelf.told) == told


def test_another_move_is_the_end_of_the_one_before(moves: Moves, hand: Hand, shelf: Shelf) -> None:
    wait_for(moves, hand, 3)
    moves.progress("waiting for SSH", 0, 900)
    asyncio.run(moves.tell())
    assert shelf.told == [(0.5, f"{WAIT}: 3s of at most 10m00s"), (100.0, f"{WAIT}: 3s, over")]


def test_artifact_that_somebody_removed_is_no_trouble(moves: Moves, hand: Hand, shelf: Shelf) -> None:
    wait_for(moves, hand, 3)
    shelf.removed = True
    wait_for(moves, hand, 5)
    moves.end_all()
    asyncio.run(moves.tell())
    assert [share for share, _ in shelf.told] == [0.5, 0.8]
