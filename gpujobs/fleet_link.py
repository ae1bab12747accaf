"""One machine as its tasks see it: its slots, what is at it, and the stream of the moment, in frames."""

import json
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from gpujobs.errors import GpujobsError, RemoteFailure
from gpujobs.fleet_task import Task
from gpujobs.shell import Shell
from gpujobs.shell_stream import Stream

FRAME = struct.Struct(">cQQ")  # as remote/foreman.py has it


class Link:
    """One machine as tasks see it: its slots, the tasks that are at it, and the stream of the moment."""

    def __init__(self, name: str, slots: int, *, distrust: Callable[[GpujobsError], object]) -> None:
        """Be not connected yet; `distrust` is told where the machine sends what is no answer of ours."""
        self.name, self.slots, self.distrust = name, slots, distrust
        self.tasks: dict[int, Task] = {}
        self.ready = False  # the machine has said which tasks it knows
        self.served = False  # it ever was ready
        self.leaving = False  # it gets no more tasks
        self.shell: Shell | None = None
        self.stream: Stream | None = None
        self.broken_at: float | None = None
        self.breaks = 0  # of its streams, since it was ready
        self.heard = bytearray()
        self.out: deque[Iterator[bytes]] = deque()
        self.piece = b""
        self.result: tuple[bytes, int, int, BinaryIO] | None = None  # letter, number, bytes to come, what came
        self.told_at = time.monotonic()

    def put(self, letter: bytes, number: int = 0, content: bytes = b"") -> None:
        """Send a short frame."""
        self.out.append(iter([FRAME.pack(letter, number, len(content)) + content]))

    def put_task(self, task: Task) -> None:
        """Send a task."""
        self.out.append(_framed(task))

    def left_there(self) -> Mapping[Path, Mapping[str, str]]:
        """Say what its tasks may have written by now, as `Task.left_there` does."""
        return {place: names for task in list(self.tasks.values()) for place, names in task.left_there().items()}

    def renew(self, shell: Shell | None, stream: Stream | None) -> None:
        """Begin with another stream, or none."""
        self.shell, self.stream, self.ready, self.broken_at = shell, stream, False, None
        self.heard.clear()
        self.out.clear()
        self.piece, self.result = b"", None


def _framed(task: Task) -> Iterator[bytes]:
    pieces = task.pieces()
    yield FRAME.pack(b"t", task.number, task.size) + next(pieces, b"")
    yield from pieces


def known_told(text: bytes) -> frozenset[int]:
    """Read which tasks a machine knows, by the foreman's words; raises RemoteFailure."""
    try:
        numbers = json.loads(text)["tasks"]
        return frozenset(number for number in numbers if type(number) is int)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RemoteFailure(f"the machine does not say which tasks it knows: {error}") from error
