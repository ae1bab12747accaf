"""A shell on a rented machine: run commands there, stream bytes, never hang, never mistake a cut for an end."""

import contextlib
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gpujobs.clock import StopToken
from gpujobs.crash import Point
from gpujobs.errors import BadInput, RemoteFailure
from gpujobs.models import Access
from gpujobs.shell_connection import Connection, Timeouts, load_key, open_connection
from gpujobs.shell_exchange import OUTPUT_KEPT_BYTES, Completed, Exchange, readable
from gpujobs.shell_stream import Stream

__all__ = ["Completed", "Shell", "Timeouts", "connect", "make_key", "quote_path", "reachable", "readable"]

BANNER_BYTES = 4
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL

INSTALL_KEY = r"""
set -eu
umask 077
key=$(cat)
mkdir -p "$HOME/.ssh"
chmod 700 "$HOME/.ssh"
file=$HOME/.ssh/authorized_keys
touch "$file"
chmod 600 "$file"
grep -qxF -e "$key" "$file" && exit 0
[ -z "$(tail -c 1 "$file")" ] || echo >>"$file"
printf '%s\n' "$key" >>"$file"
"""


def reachable(host: str, port: int, timeout_s: float) -> bool:
    """Tell whether an SSH server greets at `host:port`; cheap (no key exchange), takes at most about `timeout_s`."""
    ends_at = time.monotonic() + timeout_s
    try:
        with Point("dial", "greet"), socket.create_connection((host, port), timeout=timeout_s) as sock:
            greeting = b""
            while len(greeting) < BANNER_BYTES and (left_s := ends_at - time.monotonic()) > 0:
                sock.settimeout(left_s)
                if not (piece := sock.recv(BANNER_BYTES - len(greeting))):
                    break
                greeting += piece
    except OSError:
        return False
    return greeting == b"SSH-"


def connect(
    access: Access, *, host_key: str | None, pkey_path: Path | None = None, timeouts: Timeouts | None = None
) -> "Shell":
    """Log in to a machine: with the key at `pkey_path` if given, else or if that is refused with its password.

    Args:
        access: where and as whom.
        host_key: what `shell.host_key` was when the machine was first seen ("ssh-ed25519 AAAA…"); None on first sight.
        pkey_path: a private key made by `make_key`.
        timeouts: how long each stage may take.

    Raises:
        Unreachable: not now; try again.
        AuthRefused: key and password are refused now; a machine that boots may accept them later.
        HostKeyChanged: another machine answers; nothing secret was sent.
        RemoteFailure: a server so old that it speaks only SHA-1.
    """
    with Point("dial", "log in"):
        return Shell(open_connection(access, host_key=host_key, pkey_path=pkey_path, timeouts=timeouts or Timeouts()))


def make_key(path: Path) -> str:
    """Make an ed25519 key at `path` (0600) unless one is there, and return its public line; idempotent."""
    if not path.exists():
        secret = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        with Point("file", "draft of", path.name), os.fdopen(os.open(temporary, _NEW, 0o600), "wb") as file:
            file.write(secret)
        with Point("file", path.name), contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # two runs that start at once agree on the first key
        with Point("file", "remove draft of", path.name):
            temporary.unlink()
    key = load_key(path)
    return f"{key.get_name()} {key.get_base64()}"


def quote_path(path: str) -> str:
    """Quote a path on the machine for its shell; `~` and `~/…` mean the home folder there.

    Raises:
        BadInput: empty, or with a NUL character.
    """
    if not path or "\0" in path:
        raise BadInput(f"{path!r} is no path: it is empty or holds a NUL character")
    if path == "~" or path.startswith("~/"):
        return f'"$HOME"{shlex.quote(path[1:]) if path[1:] else ""}'
    return shlex.quote("./" + path if path.startswith("-") else path)


class Shell:
    """An SSH connection to one machine; safe to use from several threads, each command on a channel of its own."""

    def __init__(self, connection: Connection) -> None:
        """Take over an authenticated connection; see `connect`."""
        self._connection = connection

    @property
    def host_key(self) -> str:
        """The machine's host key, "ssh-ed25519 AAAA…": keep it, and give it to the next `connect`."""
        return self._connection.host_key

    @property
    def where(self) -> str:
        """The machine's host:port, for messages."""
        return self._connection.where

    @property
    def by_password(self) -> bool:
        """Whether it was the password that let us in."""
        return self._connection.by_password

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as can be told without asking."""
        return self._connection.alive

    def run(
        self, command: str, *, stdin: bytes | None = None, timeout_s: float = 60.0, max_output: int = 1024 * 1024
    ) -> Completed:
        """Run `command` to its end and return what it said.

        Raises:
            Unreachable: the connection was lost: the command may have run, or may still run.
            RemoteFailure: it took longer than `timeout_s`, said over `max_output` bytes, or a signal killed it.
        """
        stdout = bytearray()

        def keep(data: bytes) -> None:
            stdout.extend(data)
            if len(stdout) > max_output:
                raise RemoteFailure(f"{self.where}: a command of ours said more than {max_output} bytes")

        pieces = [stdin] if stdin else []
        completed = self._exchange(command, source=pieces, sink=keep, stop=None, timeout_s=timeout_s)
        return Completed(code=completed.code, stdout=bytes(stdout), stderr=completed.stderr)

    def check(self, command: str, *, what: str, stdin: bytes | None = None, timeout_s: float = 60.0) -> bytes:
        """Run `command` and return its standard output; RemoteFailure says that `what` failed if its code is not 0."""
        return self.run(command, stdin=stdin, timeout_s=timeout_s).require(what).stdout

    def stream_out(self, command: str, sink: Callable[[bytes], object], *, stop: StopToken | None = None) -> Completed:
        """Run `command` and hand its standard output to `sink` piece by piece, up to 2 MiB each; errors as `run`."""
        return self._exchange(command, source=(), sink=sink, stop=stop, timeout_s=None)

    def stream_in(self, command: str, source: Iterable[bytes], *, stop: StopToken | None = None) -> Completed:
        """Run `command` with the pieces of `source` as its standard input; errors as `run`.

        A command that ends before it has read everything is no error here: its exit code says what happened.
        """
        stdout = bytearray()

        def keep(data: bytes) -> None:
            if len(stdout) < OUTPUT_KEPT_BYTES:
                stdout.extend(data)

        completed = self._exchange(command, source=source, sink=keep, stop=stop, timeout_s=None)
        return Completed(code=completed.code, stdout=bytes(stdout), stderr=completed.stderr)

    def open_stream(self, command: str) -> Stream:
        """Start `command` on a channel that is read and written without waiting; raises Unreachable."""
        with Point("ssh", command):
            return Stream(self._connection, command)

    def install_key(self, public_key: str) -> None:
        """Let the owner of `public_key` log in from now on; idempotent."""
        self.check(f"sh -c {shlex.quote(INSTALL_KEY)}", what="installing our key", stdin=public_key.encode())

    def close(self) -> None:
        """End the connection; what runs detached on the machine goes on. Idempotent."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _exchange(
        self,
        command: str,
        *,
        source: Iterable[bytes],
        sink: Callable[[bytes], object],
        stop: StopToken | None,
        timeout_s: float | None,
    ) -> Completed:
        exchange = Exchange(self._connection, sink=sink, stop=stop, timeout_s=timeout_s)
        with Point("ssh", command):
            return exchange.run(command, source)
