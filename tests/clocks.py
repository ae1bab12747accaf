"""Clocks that tests move."""

import threading
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta

REAL_LIMIT_S = 90.0  # how long a helper here may wait in real time before it calls a test stuck
_GLANCE_S = 0.002
_NAP_S = 0.02


class ManualClock:
    """A Clock that stands still until a test moves it; with `runs_by_itself`, a wait moves it and does not block.

    Still: `wait` blocks its thread until the event is set or `advance` has passed its deadline, and
    `until_waiting(n)` lets a test know that n threads are parked there. Running by itself: fit for one thread.
    """

    def __init__(self, *, start: datetime = datetime(2026, 1, 1, 12, tzinfo=UTC), runs_by_itself: bool = False) -> None:
        self._start = start
        self._runs_by_itself = runs_by_itself
        self._moved = threading.Condition()
        self._passed_s = 0.0
        self._parked: list[tuple[float, threading.Event]] = []
        self.waits: list[float] = []  # every time-out that was asked for, in seconds

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        with self._moved:
            return self._passed_s

    def advance(self, seconds: float) -> None:
        """Move time forward and wake whoever has waited long enough."""
        with self._moved:
            self._passed_s += seconds
            self._moved.notify_all()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        with self._moved:
            self.waits.append(timeout_s)
        if event.is_set() or timeout_s <= 0:
            return event.is_set()
        if self._runs_by_itself:
            self.advance(timeout_s)
            return event.wait(_GLANCE_S)  # lets other threads go on
        return self._park(event, timeout_s)

    def until_waiting(self, threads: int = 1) -> None:
        """Return once `threads` threads are parked in `wait`; fails where that does not come about."""
        self._until(lambda: self._still_parked() >= threads)

    def _park(self, event: threading.Event, timeout_s: float) -> bool:
        with self._moved:
            deadline = self._passed_s + timeout_s
            self._parked.append((deadline, event))
            self._moved.notify_all()
            try:
                while not event.is_set() and self._passed_s < deadline:
                    self._moved.wait(_GLANCE_S)  # an event has no way to wake a condition
            finally:
                self._parked.remove((deadline, event))
        return event.is_set()

    def _still_parked(self) -> int:
        # One whose event is set, or whose time has come, is on its way out though it has not noticed yet.
        return len([event for deadline, event in self._parked if deadline > self._passed_s and not event.is_set()])

    def _until(self, reached: Callable[[], bool]) -> None:
        ends = time.monotonic() + REAL_LIMIT_S
        with self._moved:
            while not reached():
                if time.monotonic() > ends:
                    raise AssertionError(f"not reached in {REAL_LIMIT_S} real seconds")
                self._moved.wait(_GLANCE_S)


class ShiftedClock:
    """The machine's own clock, and as much further as a test has moved it, which wakes whoever waits for that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._further_s = 0.0
        self._waiting: dict[int, float] = {}  # by thread: until when

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._further_s)

    def monotonic(self) -> float:
        return time.monotonic() + self._further_s

    def advance(self, seconds: float, *, threads: Collection[int]) -> None:
        """Move time forward, once all of `threads` (their idents) wait for it to pass."""
        eventually(lambda: self._all_wait(threads), what="they wait")
        with self._lock:
            self._further_s += seconds

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        deadline, thread = self.monotonic() + timeout_s, threading.get_ident()
        with self._lock:
            self._waiting[thread] = deadline
        while not event.is_set() and (left_s := deadline - self.monotonic()) > 0:
            event.wait(min(left_s, _NAP_S))
        with self._lock:
            del self._waiting[thread]
        return event.is_set()

    def _all_wait(self, threads: Collection[int]) -> bool:
        with self._lock:
            return all(self._waiting.get(thread, 0.0) > self.monotonic() for thread in threads)


def eventually(reached: Callable[[], object], *, what: str) -> None:
    """Wait in real time until `reached()` is true, for what other threads and processes bring about."""
    ends = time.monotonic() + REAL_LIMIT_S
    while not reached():
        if time.monotonic() > ends:
            raise AssertionError(f"{what}: not in {REAL_LIMIT_S} real seconds")
        threading.Event().wait(_GLANCE_S)
