"""How a reply is bent by a fault while it is being made: what it hides, repeats or shuffles."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Distortion:
    """What is wrong with a list: it hides everything, repeats events, or deals them in any order."""

    hide_all: bool = False
    repeat_events: int = 1
    shuffle_events: random.Random | None = None


_NOW: ContextVar[Distortion] = ContextVar("distortion", default=Distortion())  # noqa: B039 -- it is frozen


@contextmanager
def distorted(how: Distortion) -> Iterator[None]:
    """Bend the lists that are made in this block, on this thread."""
    before = _NOW.set(how)
    try:
        yield
    finally:
        _NOW.reset(before)


def shown(created_at: float, *, now: float, lag_s: float) -> bool:
    """Say whether a list knows yet of what was created then; `lag_s` is how long it takes to learn of things."""
    return not _NOW.get().hide_all and (not lag_s or created_at + lag_s <= now)


def events_as_told(events: Sequence[_Row]) -> list[_Row]:
    """Return the events as a list tells them: rightly, unless it repeats or shuffles them."""
    how = _NOW.get()
    told = [event for event in events for _ in range(how.repeat_events)]
    if how.shuffle_events is not None:
        how.shuffle_events.shuffle(told)
    return told
