"""The simulated clock and what is due on it."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

Action = Callable[[], None]
_log = logging.getLogger(__name__)


class Timeline:
    """Simulated time = manual offset + real time × speed, in seconds since 1970.

    Actions run on the timeline's own thread, in order of their due time, with the world's lock held, so they must be
    quick. `advance` runs those that fall due on the way, each at its own simulated time.
    """

    def __init__(self, lock: threading.RLock, *, start_at: float, speed: float) -> None:
        self._changed = threading.Condition(lock)
        self._at = start_at
        self._anchor = time.monotonic()
        self._speed = speed
        self._due: list[tuple[float, int, Action]] = []
        self._order = itertools.count()
        self._closed = False
        self.acts = 0
        """How many actions have run."""
        self._thread = threading.Thread(target=self._run, name="fake-timeline", daemon=True)

    def start(self) -> None:
        """Let due actions run."""
        self._thread.start()

    def close(self) -> None:
        """Drop all that is still due, and join the thread."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def speed(self) -> float:
        """Simulated seconds a real second; 0 is a clock that only `advance` moves."""
        return self._speed

    def now(self) -> float:
        """Return the simulated time."""
        with self._changed:
            return self._at + (time.monotonic() - self._anchor) * self._speed

    def real_s(self, simulated_s: float) -> float:
        """Return how many real seconds a simulated duration takes at the present speed; 0 for a standing clock."""
        return simulated_s / self._speed if self._speed else 0.0

    def at(self, due_at: float, action: Action) -> None:
        """Run the action once the clock shows due_at, or at once if it already does."""
        with self._changed:
            if not self._closed:
                heapq.heappush(self._due, (due_at, next(self._order), action))
                self._changed.notify_all()

    def after(self, delay_s: float, action: Action) -> None:
        """Run the action delay_s simulated seconds from now."""
        self.at(self.now() + delay_s, action)

    def advance(self, seconds: float) -> None:
        """Move the clock forward; what falls due on the way runs before this returns, on the caller's thread."""
        with self._changed:
            target = self.now() + seconds
            while self._due and self._due[0][0] <= target:
                due_at, _, action = heapq.heappop(self._due)
                self._set(max(due_at, self.now()))
                self._act(action)
            self._set(max(target, self.now()))
            self._changed.notify_all()

    def set_speed(self, speed: float) -> None:
        """Change the speed from now on."""
        with self._changed:
            self._set(self.now())
            self._speed = speed
            self._changed.notify_all()

    def _set(self, now: float) -> None:
        self._at = now
        self._anchor = time.monotonic()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                if self._due and self._due[0][0] <= self.now():
                    self._act(heapq.heappop(self._due)[2])
                else:
                    self._changed.wait(self._pause_s())

    def _pause_s(self) -> float | None:
        if not self._due or not self._speed:
            return None
        return max(0.0, (self._due[0][0] - self.now()) / self._speed)

    def _act(self, action: Action) -> None:
        self.acts += 1
        try:
            action()
        except Exception:  # noqa: BLE001 -- one broken transition must not stop the clock
            _log.exception("a transition of the fake failed")
