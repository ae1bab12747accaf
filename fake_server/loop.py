"""The two threads behind all machines: one runs an asyncio loop, one calls back whoever listens."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fake_server.proxy import ProxyLoop

LOG = logging.getLogger(__name__)
T = TypeVar("T")


class LoopThread:
    """An asyncio loop on a thread of its own, started by the first work given to it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._callbacks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fake-callbacks")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine on the loop and return what it returns; never from the loop's own thread."""
        with self._lock:
            if self._loop is None:
                self._loop = self._start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call_back(self, callback: Callable[[], None]) -> None:
        """Queue a callback for the other thread; never waits. One that fails is logged."""
        self._callbacks.submit(call_and_log, callback)

    def close(self) -> None:
        """End both threads; what was queued is still called. Idempotent."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
        self._callbacks.shutdown()

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = ProxyLoop()
        # asyncssh reads its options on the default executor; one thread does
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1, thread_name_prefix="fake-options"))
        self._thread = threading.Thread(target=serve, args=(loop,), name="fake-machines", daemon=True)
        self._thread.start()
        return loop


def serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until it is stopped, then cancel and close what is left of it."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def call_and_log(callback: Callable[[], None]) -> None:
    """Call, and log what goes wrong rather than lose it."""
    try:
        callback()
    except Exception:
        LOG.exception("a callback of the containers failed")
