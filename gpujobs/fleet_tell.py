"""Ends futures, and so runs their callbacks, off the thread that deals; one that stays soon holds nobody else up."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

End = Callable[[], None]
_STAYS_S = 0.5


class Teller:
    """Calls what ends futures, one after another on a thread; behind a call that stays, the next get another thread."""

    def __init__(self, name: str, *, stays_s: float = _STAYS_S) -> None:
        """Start no thread yet; `name` is what they are called, and a call of more than `stays_s` is one that stays."""
        self._name, self._stays_s = name, stays_s
        self._changed = threading.Condition()
        self._ends: deque[End] = deque()
        self._begun_s: dict[threading.Thread, float] = {}  # when each thread's present call began
        self._idle = 0
        self._over = False

    @property
    def is_here(self) -> bool:
        """Whether this is one of its threads: a callback must not wait for what comes after it."""
        return threading.current_thread() in self._begun_s

    def tell(self, ends: Iterable[End]) -> None:
        """Have them called soon; waits for none."""
        with self._changed:
            self._ends.extend(ends)
            self._help()
            self._changed.notify_all()

    def look(self) -> None:
        """Give what waits behind a call that stays a thread of its own; to be called now and then."""
        with self._changed:
            self._help()

    def close(self) -> None:
        """Wait until all were called, and end the threads; not to be called from one of them."""
        with self._changed:
            self._over = True
            while self._ends or self._begun_s:
                self._help()
                self._changed.wait(self._stays_s)
            self._changed.notify_all()

    def _help(self) -> None:
        now_s = time.monotonic()
        if self._ends and not self._idle and all(now_s - begun_s > self._stays_s for begun_s in self._begun_s.values()):
            self._idle += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        me = threading.current_thread()
        while (end := self._next(me)) is not None:
            whole = False
            try:
                end()
                whole = True
            finally:  # what is no Exception ends the thread, and another takes its place
                with self._changed:
                    del self._begun_s[me]
                    self._idle += whole
                    self._changed.notify_all()

    def _next(self, me: threading.Thread) -> End | None:
        with self._changed:
            while not self._ends and not self._over and self._idle == 1:
                self._changed.wait()
            self._idle -= 1
            if not self._ends:
                return None
            self._begun_s[me] = time.monotonic()
            return self._ends.popleft()
