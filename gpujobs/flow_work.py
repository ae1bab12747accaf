"""Blocking work of which an event loop waits for the end."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of some work."""

    value: Any = None
    error: Exception | None = None


class Work:
    """Blocking work, done once, in a daemon thread of its own.

    No pool: a pool's threads are joined when the process ends, so that one that hangs would keep it from ending.
    """

    def __init__(self, call: Callable[[], Any], *, name: str) -> None:
        """Do nothing yet; `name` is the thread's."""
        self._call, self._name = call, name
        self._future: asyncio.Future[Done] | None = None

    def begun(self) -> "asyncio.Future[Done]":
        """Begin, unless it has begun; the future never raises, and cancelling it does not end the work."""
        if self._future is None:
            self._future = self._begin()
        return self._future

    def _begin(self) -> "asyncio.Future[Done]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Done] = loop.create_future()
        context = copy_context()

        def work() -> None:
            try:
                done = Done(value=context.run(self._call))
            except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
                done = Done(error=error)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any longer
                loop.call_soon_threadsafe(_settle, future, done)

        threading.Thread(target=work, name=self._name, daemon=True).start()
        return future


async def in_thread(call: Callable[[], Any], *, name: str) -> Any:
    """Do blocking work in a daemon thread called `name`, and give what it gives or raise what it raises."""
    done = await Work(call, name=name).begun()
    if done.error is not None:
        raise done.error
    return done.value


def _settle(future: "asyncio.Future[Done]", done: Done) -> None:
    if not future.done():
        future.set_result(done)
