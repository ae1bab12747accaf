"""Work that must not hold the world's lock: in order for each machine, side by side for many."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

Job = Callable[[], None]
_log = logging.getLogger(__name__)


class Lanes:
    """Jobs of one lane run one after the other in the order they came; lanes do not wait for each other."""

    def __init__(self, *, workers: int) -> None:
        self._lock = threading.Condition(threading.Lock())
        self._queues: dict[str, deque[Job]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fake-lane")
        self._closed = False
        self.done = 0
        """How many jobs have run."""

    def submit(self, lane: str, job: Job) -> None:
        """Queue the job and return at once. After `end` a job is dropped."""
        with self._lock:
            if self._closed:
                return
            queue = self._queues.setdefault(lane, deque())
            queue.append(job)
            if len(queue) == 1:
                self._pool.submit(self._drain, lane, queue)

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is queued; return whether that came in time."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._queues, timeout_s)

    def end(self) -> None:
        """Take no more jobs and drop those that have not begun."""
        with self._lock:
            self._closed = True

    def join(self) -> None:
        """Wait for the jobs that have begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _drain(self, lane: str, queue: deque[Job]) -> None:
        while True:
            if not self._closed:
                _attempt(lane, queue[0])
            with self._lock:
                queue.popleft()
                self.done += 1
                if not queue:
                    del self._queues[lane]
                    self._lock.notify_all()
                    return


def _attempt(lane: str, job: Job) -> None:
    try:
        job()
    except Exception:  # noqa: BLE001 -- the lane's next job still runs
        _log.exception("work on machine %s failed", lane)
