"""Keeps something on the loop's thread in step with the fault rules, which change on any thread."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress

from fake_server.fault_rules import Strike
from fake_server.trouble import Trouble

_TIMEOUT_S = 2.0


class Follower:
    """Calls ``mind`` at the start and after each change of the rules, never twice at a time."""

    def __init__(self, trouble: Trouble | None, mind: Callable[[], Awaitable[None]]) -> None:
        self._trouble, self._mind = trouble, mind
        self._loop = asyncio.get_running_loop()
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._unwatch: Callable[[], None] = lambda: None

    async def open(self) -> None:
        """Look for the first time, and follow from here on."""
        if self._trouble is not None:
            self._unwatch = self._trouble.watch(self._rules_changed)
        await self._look()

    def close(self) -> None:
        """Follow no more. Idempotent."""
        self._closed = True
        self._unwatch()

    def again_after(self, strike: Strike) -> None:
        """Look again when this is over, if it ends by itself."""
        if (left_s := strike.left_s()) is not None:
            self._loop.call_later(max(0.0, left_s) + 0.001, self._look_soon)

    def _rules_changed(self) -> None:
        """See to it that a rule is in force when whoever armed it goes on."""
        done: Future[None] = Future()
        with suppress(RuntimeError, TimeoutError):  # the loop may have ended meanwhile
            self._loop.call_soon_threadsafe(self._look_soon, done)
            done.result(_TIMEOUT_S)

    def _look_soon(self, done: "Future[None] | None" = None) -> None:
        def looked(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if done is not None:
                done.set_result(None)

        if not self._closed:
            task = self._loop.create_task(self._look())
            self._tasks.add(task)
            task.add_done_callback(looked)
        elif done is not None:
            done.set_result(None)

    async def _look(self) -> None:
        async with self._one:
            if not self._closed:
                await self._mind()
