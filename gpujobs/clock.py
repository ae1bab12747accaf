"""Time and stopping as arguments, so that tests move the one and pull the other."""

import random
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Protocol

from gpujobs.errors import GpujobsError


class Clock(Protocol):
    """What time it is, and waiting for it to pass."""

    def now(self) -> datetime:
        """Give the wall clock's time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Give seconds that never go back."""
        ...

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until `event` is set or `timeout_s` has passed; True when it is set."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Give the wall clock's time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Give seconds that never go back."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until `event` is set or `timeout_s` has passed; True when it is set."""
        return event.wait(max(0.0, timeout_s))


class StopToken:
    """Tells one run, from any thread, to end; the first reason given stays."""

    def __init__(self) -> None:
        """Start not stopped."""
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._error: GpujobsError | None = None

    @property
    def event(self) -> threading.Event:
        """The event that is set once stopped: what a wait should wake for."""
        return self._event

    @property
    def stopped(self) -> bool:
        """Whether somebody has asked."""
        return self._event.is_set()

    @property
    def error(self) -> GpujobsError | None:
        """Why, or None while nobody has asked."""
        return self._error

    def stop(self, error: GpujobsError) -> None:
        """Ask the run to end with `error` (Cancelled, OverLimit, LetGo); later calls change nothing."""
        with self._lock:
            if self._error is None:
                self._error = error
        self._event.set()

    def raise_if_stopped(self) -> None:
        """Raise the reason, if somebody has asked."""
        if self._error is not None:
            raise self._error

    def sleep(self, clock: Clock, seconds: float) -> None:
        """Wait `seconds` on `clock`, or raise the reason as soon as somebody asks."""
        clock.wait(self._event, seconds)
        self.raise_if_stopped()


def backoff(first_s: float, cap_s: float, *, dice: random.Random) -> Iterator[float]:
    """Give waits in seconds with full jitter, each drawn from 0 to a bound that doubles from `first_s` to `cap_s`."""
    bound = first_s
    while True:
        yield dice.uniform(0, bound)
        bound = min(cap_s, bound * 2)
