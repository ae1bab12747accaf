"""The owner's side of a machine's first process: start commands in the machine, signal them, hear how they ended."""

import asyncio
import itertools
import marshal
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fake_server import sandbox

LOST = -9  # the exit code of a command whose machine died under it


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start; with ``terminal`` (rows, columns, pixel width and height) it gets one of the machine's."""

    program: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    terminal: tuple[int, int, int, int] | None = None


@dataclass(slots=True)
class Watch:
    on_exit: Callable[[int], None]
    on_terminal: Callable[[int], None] | None


class Processes:
    """The commands of one machine. Everything here happens on the loop's thread."""

    def __init__(self, control: socket.socket, *, on_lost: Callable[[], None]) -> None:
        self._control = control
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._watches: dict[int, Watch] = {}
        self._outbox: deque[tuple[bytes, list[int]]] = deque()
        control.setblocking(False)
        self._loop.add_reader(control, self._on_readable)

    def spawn(
        self,
        command: Command,
        fds: list[int],
        *,
        on_exit: Callable[[int], None],
        on_terminal: Callable[[int], None] | None = None,
    ) -> int:
        """Start a command with these standard streams, which are closed here; never waits. Returns its number.

        ``on_exit`` gets the exit code, negative for a signal, and ``on_terminal`` the terminal's master descriptor.
        """
        number = next(self._numbers)
        if self._control.fileno() < 0:
            close_all(fds)
            self._loop.call_soon(on_exit, LOST)
            return number
        self._watches[number] = Watch(on_exit, on_terminal)
        self._send(
            {
                "id": number,
                "program": command.program,
                "argv": list(command.argv),
                "env": dict(command.env),
                "cwd": command.cwd,
                "terminal": command.terminal,
            },
            fds,
        )
        return number

    def signal(self, number: int, sign: int) -> None:
        """Send a signal to the command's process group; one that has ended is left alone."""
        self._send({"id": number, "signal": int(sign)}, [])

    def limit_files(self, size_bytes: int) -> None:
        """Let no file grow beyond so many bytes (-1: as it likes), for what runs and for what will run."""
        self._send({"file_limit": size_bytes}, [])

    def terminate(self) -> None:
        """Send TERM to everything; the machine ends once nothing is left in it."""
        self._send({"terminate": True}, [])

    def close(self) -> None:
        """Let the machine die: its first process kills everything when this end closes. Idempotent."""
        if self._control.fileno() < 0:
            return
        self._loop.remove_reader(self._control)
        self._loop.remove_writer(self._control)
        self._control.close()
        for _, fds in self._outbox:
            close_all(fds)
        self._outbox.clear()
        watches, self._watches = self._watches, {}
        for watch in watches.values():
            watch.on_exit(LOST)

    def _send(self, message: dict[str, object], fds: list[int]) -> None:
        if self._control.fileno() < 0:
            return
        self._outbox.append((marshal.dumps(message), fds))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._outbox:
                sandbox.send(self._control, *self._outbox[0])
                close_all(self._outbox.popleft()[1])
        except BlockingIOError:
            self._loop.add_writer(self._control, self._flush)
            return
        except OSError:
            self._lose()
            return
        self._loop.remove_writer(self._control)

    def _on_readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._lose()
            return
        kind, number, *code = data.split()
        if kind == b"exit":
            self._watches.pop(int(number)).on_exit(int(code[0]))
        elif (on_terminal := self._watches[int(number)].on_terminal) is not None:
            on_terminal(fds[0])

    def _lose(self) -> None:
        self._on_lost()
        self.close()


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)
