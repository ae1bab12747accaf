"""One command on one channel of a connection: send, receive, and tell its end from a cut."""

import contextlib
import time
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import paramiko

from gpujobs.clock import StopToken
from gpujobs.errors import RemoteFailure
from gpujobs.shell_connection import Connection

SEND_BYTES = 32 * 1024  # larger sends make paramiko slower
RECEIVE_BYTES = 2 * 1024 * 1024
OUTPUT_KEPT_BYTES = 64 * 1024
TAIL_BYTES = 600
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.01, 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A command that has ended, with its own exit code; `stderr` holds its last 64 KiB."""

    code: int
    stdout: bytes
    stderr: bytes

    def require(self, what: str) -> Self:
        """Return itself, or raise RemoteFailure saying that `what` failed, if the code is not 0."""
        if self.code == 0:
            return self
        tail = readable(self.stderr[-TAIL_BYTES:]) or "it said nothing"
        raise RemoteFailure(f"{what} failed on the machine with exit code {self.code}: {tail}")


def readable(text: bytes | str) -> str:
    """Turn what a machine said into text safe for a terminal or a log: no control characters but newline and tab.

    Nor any that turn the reading order.
    """
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) != "Cc" and c not in _TURNS)).strip()


class Exchange:
    """One command on one channel. Both outputs are drained all the time, or the peer would block on a full window."""

    def __init__(
        self,
        connection: Connection,
        *,
        sink: Callable[[bytes], object],
        stop: StopToken | None,
        timeout_s: float | None,
    ) -> None:
        """Prepare; `timeout_s` counts from now, None means as long as the connection lives."""
        self._connection = connection
        self._sink = sink
        self._stop = stop
        self._timeout_s = timeout_s
        self._ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        self._stderr = bytearray()

    def run(self, command: str, source: Iterable[bytes]) -> Completed:
        """Run `command` with `source` as its standard input; its standard output goes to the sink."""
        channel = self._connection.execute(command)
        channel.settimeout(LONGEST_WAIT_S)
        try:
            self._send(channel, source)
            self._receive(channel)
            code = self._exit_code(channel)
        finally:
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                channel.close()
        return Completed(code=code, stdout=b"", stderr=bytes(self._stderr))

    def _send(self, channel: paramiko.Channel, source: Iterable[bytes]) -> None:
        for piece in source:
            for start in range(0, len(piece), SEND_BYTES):
                if not self._send_all(channel, piece[start : start + SEND_BYTES]):
                    return
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            self._connection.send_eof(channel)

    def _send_all(self, channel: paramiko.Channel, data: bytes) -> bool:
        while data:
            self._between(channel)
            try:
                sent = self._connection.send_data(channel, data)
            except TimeoutError:
                continue
            except (paramiko.SSHException, EOFError, OSError):
                return False  # the command has ended or the connection is gone: the exit code will tell
            if sent == 0:
                return False
            data = data[sent:]
        return True

    def _between(self, channel: paramiko.Channel) -> None:
        self._look_at_the_clock()
        while channel.recv_ready():
            self._sink(self._take(channel.recv))
        self._drain_stderr(channel)

    def _receive(self, channel: paramiko.Channel) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            channel.settimeout(wait_s)
            try:
                data = self._take(channel.recv)
            except TimeoutError:
                wait_s = FIRST_WAIT_S if self._drain_stderr(channel) else min(LONGEST_WAIT_S, wait_s * 2)
            else:
                if not data:
                    break
                wait_s = FIRST_WAIT_S
                self._sink(data)
                self._drain_stderr(channel)
            self._look_at_the_clock()
        self._drain_stderr(channel)

    def _take(self, receive: Callable[[int], bytes]) -> bytes:
        """Receive; it also sends, to open the window again, and that too meets a connection that is gone."""
        try:
            return receive(RECEIVE_BYTES)
        except TimeoutError:
            raise
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._connection.refusal(error) from error

    def _drain_stderr(self, channel: paramiko.Channel) -> bool:
        any_came = False
        while channel.recv_stderr_ready():
            self._stderr += self._take(channel.recv_stderr)
            del self._stderr[:-OUTPUT_KEPT_BYTES]
            any_came = True
        return any_came

    def _look_at_the_clock(self) -> None:
        if self._stop is not None:
            self._stop.raise_if_stopped()
        if self._ends_at is not None and time.monotonic() > self._ends_at:
            self._connection.check_heard()  # else the command may well have ended there, and its answer never come
            raise RemoteFailure(f"{self._connection.where}: a command of ours did not end within {self._timeout_s:g} s")

    def _exit_code(self, channel: paramiko.Channel) -> int:
        while not channel.status_event.wait(LONGEST_WAIT_S):
            self._look_at_the_clock()
        code = channel.recv_exit_status()
        if code >= 0:
            return code
        # No exit status: the connection was cut, which may show a moment later, or a signal killed the command.
        self._connection.execute("true").close()
        raise RemoteFailure(f"{self._connection.where}: a command of ours was killed there by a signal")
