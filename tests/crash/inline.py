"""What stands in the place of threads, in ours and in the fake: the same work, done while the one thread waits."""

import concurrent.futures
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self

from fake_server.world import World as FakeWorld
from gpujobs.clock import Clock
from gpujobs.host import Guard, Lease
from gpujobs.models import Machine
from gpujobs.watch import Watch, Watcher

_POLL_S = 0.5


class InlineGuard(Guard):
    """A guard without a thread: it looks after the leases whenever time has moved."""

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases.append(lease)

    def look_after(self) -> None:
        for lease in list(self._leases):
            self._look(lease)


class InlineWatcher(Watcher):
    """A watcher without a thread: who waits for news asks for them himself."""

    @contextmanager
    def watch(self, machine: Machine) -> Iterator[Watch]:
        asking = _Asking(self, self._clock)
        watch = Watch(machine, clock=asking)
        asking.watch = watch
        yield watch


class _Asking:
    watch: Watch

    def __init__(self, watcher: InlineWatcher, clock: Clock) -> None:
        self._watcher, self._clock = watcher, clock
        self._asked_at = float("-inf")

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def now(self) -> datetime:
        return self._clock.now()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        if self.monotonic() - self._asked_at >= _POLL_S:
            self._asked_at = self.monotonic()
            self._watcher._ask([self.watch])
            if event.is_set():
                return True
        return self._clock.wait(event, timeout_s)


class InlineExecutor:
    """Does what is submitted at once, in the same thread."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, act: Callable[[Any], Any], items: Iterable[Any]) -> Sequence[Any]:
        return [act(item) for item in items]

    def submit(self, act: Callable[[], Any]) -> "concurrent.futures.Future[Any]":
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(act())
        except Exception as error:  # noqa: BLE001 - as an executor does; whoever asks for the result gets it
            future.set_exception(error)
        return future


class QueueLanes:
    """The fake's slow work, done in order when time is given to it."""

    def __init__(self, *, workers: int) -> None:
        del workers
        self._jobs: deque[Callable[[], object]] = deque()
        self.done = 0

    def submit(self, lane: str, job: Callable[[], object]) -> None:
        del lane
        self._jobs.append(job)

    def wait(self, timeout_s: float) -> bool:
        del timeout_s
        while self._jobs:
            self._jobs.popleft()()
            self.done += 1
        return True

    def end(self) -> None:
        self._jobs.clear()

    def join(self) -> None:
        """Nothing runs by itself."""


def act_later(world: FakeWorld, seconds: float, action: Callable[[], object]) -> None:
    """Do as the fake's own `later`, without a thread."""
    world.ground.timeline.after(seconds, lambda: world.ground._lanes.submit("late", action))
