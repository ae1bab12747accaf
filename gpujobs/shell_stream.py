"""A command on a channel of its own that is read and written without waiting: for one thread over many machines."""

import contextlib

import paramiko

from gpujobs.errors import Unreachable
from gpujobs.shell_connection import Connection

SEND_BYTES = 32 * 1024  # larger sends make paramiko slower
RECEIVE_BYTES = 256 * 1024


class Stream:
    """One command's standard input and output; used from one thread at a time."""

    def __init__(self, connection: Connection, command: str) -> None:
        """Start `command`; raises Unreachable."""
        self._connection, self._channel = connection, connection.execute(command)
        self._channel.setblocking(0)

    def fileno(self) -> int:
        """Give a number for `select`, readable while there is something to receive, the end included."""
        return self._channel.fileno()

    def receive(self) -> bytes | None:
        """Give what has come: None for nothing now, empty at the end; raises Unreachable."""
        try:
            return self._channel.recv(RECEIVE_BYTES)
        except TimeoutError:
            return None
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._connection.refusal(error) from error

    def send(self, data: bytes) -> int:
        """Send what there is room for, and say how many bytes that was; raises Unreachable where nobody listens."""
        try:
            sent = self._connection.send_data(self._channel, data[:SEND_BYTES])
        except TimeoutError:
            return 0
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._connection.refusal(error) from error
        if sent == 0 and data:
            raise Unreachable(f"{self._connection.where}: the command there takes no more")
        return sent

    def close(self) -> None:
        """End the channel; idempotent."""
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            self._channel.close()
