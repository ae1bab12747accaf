"""One task of a fleet, as those see it who deal it out: bytes that a slot reads, and a future that ends."""

import json
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpujobs.errors import (
    BadResult,
    Cancelled,
    JobFailed,
    KilledRemotely,
    MachineLost,
    OutOfMemory,
    OverLimit,
    RemoteFailure,
    Unreachable,
)

_PIECE_BYTES = 2**18
_COUNTS = {str(value): value for value in range(256)} | {"False": 0, "True": 1}  # what a process can end with


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which bytes of an attempt's log a task wrote; `end` is None while it is at work.

    They are its own where the machine has one slot; tasks that are at work together write into one log.
    """

    attempt: int
    begin: int
    end: int | None


_parts: "weakref.WeakKeyDictionary[Future[Any], Part]" = weakref.WeakKeyDictionary()


def part_of(future: Future[Any]) -> Part | None:
    """Say where the output of a fleet's task is, by its future; None before it was begun."""
    return _parts.get(future)


@dataclass(slots=True, kw_only=True, eq=False)
class Task(ABC):
    """Some work that waits, or is at a machine; `content` is what a slot reads, or the path of a file with it."""

    number: int
    future: Future[Any]
    content: bytes | Path
    size: int
    tries: int = 0

    def pieces(self) -> Iterator[bytes]:
        """Give the content piece by piece."""
        if isinstance(self.content, bytes):
            yield self.content
            return
        with self.content.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def wrote(self, part: Part) -> None:
        """Take note of where its output is."""
        _parts[self.future] = part

    def drop(self) -> None:
        """Let go of the content: it is not sent again."""
        if isinstance(self.content, Path):
            self.content.unlink(missing_ok=True)

    def begin(self, machine: str) -> None:  # noqa: B027 - few need to know
        """Hear that it goes to a machine; called by the thread that deals, which must not wait."""

    def put_back(self) -> None:  # noqa: B027 - as above
        """Hear that its machine was lost, and that it waits again."""

    def left_there(self) -> Mapping[Path, Mapping[str, str]]:
        """Say what to bring home of it where its machine is told to end: by a folder here, names and paths there."""
        return {}

    @abstractmethod
    def finish(self, outcome: BinaryIO) -> None:
        """End the future with what a slot left, and close that."""

    def fail(self, error: BaseException) -> None:
        """End the future with an exception, begun or not."""
        self.drop()
        if self.future.running() or self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def give_up(self) -> None:
        """Cancel the future if it has not begun, and tell those who wait for it."""
        if self.future.cancel():
            self.drop()
            with suppress(RuntimeError):  # it was told already
                self.future.set_running_or_notify_cancel()


def part_told(machine: str, text: bytes) -> Part:
    """Read where a task's output is in the log of `machine`, by the foreman's words; raises RemoteFailure."""
    try:
        told = json.loads(text)
        begin, end = told["from"], told["to"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RemoteFailure(f"{machine} does not say where a task's output is: {error}") from error
    if type(begin) is not int or type(end) not in {int, type(None)} or begin < 0:
        raise RemoteFailure(f"{machine} says that a task's output is from {begin!r:.40} to {end!r:.40}")
    return Part(attempt=int(machine.rpartition("-")[2]), begin=begin, end=end)


def state_after(error: BaseException) -> str:
    """Give the state in the ledger of a task that ended with this error."""
    if isinstance(error, Cancelled | OverLimit):
        return "cancelled"
    return "lost" if isinstance(error, MachineLost | Unreachable) else "failed"


def death(told: bytes) -> JobFailed:
    """Give the exception for a slot whose process ended under its task, by the foreman's words."""
    try:
        record = json.loads(told)
        signal, code, oom = (_COUNTS[str(record[key])] for key in ("signal", "code", "oom"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return BadResult(f"how the task's process ended cannot be read: {error}")
    if signal and oom:
        return OutOfMemory("the machine's memory was used up, so its Linux ended the task's process", signal=signal)
    if signal:
        return KilledRemotely(f"the task's process was killed by signal {signal}", signal=signal)
    return JobFailed(f"the task ended its process with exit code {code}")
