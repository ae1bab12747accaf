"""One SSH session channel: a command, a shell or sftp in the machine, with the manners of OpenSSH's server."""

import fcntl
import os
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncssh
from asyncssh.constants import MSG_CHANNEL_REQUEST
from asyncssh.packet import Boolean, String, UInt32

from fake_server.output import OutputSum
from fake_server.processes import Command, Processes
from fake_server.pump import CHUNK_BYTES, Sink, Source
from fake_server.spec import CommandKind, CommandRecord

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
SIGNALS = ("ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What a session needs of its machine: where it starts, with what environment, and whom it tells of its end."""

    name: str
    home: str
    env: Mapping[str, str]
    processes: Processes
    record: Callable[[CommandRecord], None]


class Session(asyncssh.SSHServerSession[bytes]):
    """One channel. A command outlives it, as under OpenSSH: it gets EPIPE, or SIGHUP if it has a terminal."""

    def __init__(self, inside: Inside, connection_env: Mapping[str, str]) -> None:
        self._inside, self._connection_env = inside, connection_env
        self._chan: asyncssh.SSHServerChannel[bytes] | None = None
        self._kind: CommandKind = "shell"
        self._command = ""
        self._terminal_env: dict[str, str] | None = None
        self._size = (24, 80, 0, 0)
        self._master = -1
        self._number = 0
        self._sources: set[Source] = set()
        self._sink: Sink | None = None
        self._early: list[bytes] = []
        self._started_at = self._ended_at = 0.0
        self._exit_code: int | None = None
        self._output = OutputSum()
        self._recorded = False

    # What the client asks for

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        """Keep the channel."""
        self._chan = chan

    def pty_requested(
        self, term_type: str, term_size: tuple[int, int, int, int], term_modes: Mapping[int, int]
    ) -> bool:
        """Promise a terminal; it is opened inside the machine when the command starts."""
        del term_modes  # a fresh terminal's own modes are what OpenSSH's clients ask for
        self._terminal_env = {"TERM": term_type}
        self.terminal_size_changed(*term_size)
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """Resize the terminal; the kernel tells the foreground process."""
        self._size = (height, width, pixwidth, pixheight)
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", *self._size))

    def shell_requested(self) -> bool:
        """Accept a login shell."""
        return True

    def exec_requested(self, command: str) -> bool:
        """Accept a command for ``bash -c``."""
        self._kind, self._command = "exec", command
        return "\0" not in command

    def subsystem_requested(self, subsystem: str) -> bool:
        """Accept sftp where OpenSSH's own server for it is installed."""
        server = next((path for path in SFTP_SERVERS if Path(path).exists()), None)
        self._kind, self._command = "sftp", server or ""
        return subsystem == "sftp" and server is not None

    def session_started(self) -> None:
        """Start what was asked for."""
        self._started_at = time.time()
        terminal = None if self._terminal_env is None else self._size
        command = Command(
            program="/bin/bash",
            argv=["bash", "-c", self._command] if self._command else ["-bash"],
            env=self._environment(),
            cwd=self._inside.home,
            terminal=terminal,
        )
        fds = [] if terminal else self._open_pipes()
        self._number = self._inside.processes.spawn(command, fds, on_exit=self._on_exit, on_terminal=self._on_terminal)

    def signal_received(self, signal: str) -> None:
        """Pass the signal on to the command's process group."""
        if signal in SIGNALS:
            self._inside.processes.signal(self._number, signal_number(signal))

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Feed the command's standard input."""
        del datatype
        if self._sink is not None:
            self._sink.feed(data)
        else:
            self._early.append(data)

    def eof_received(self) -> bool:
        """End the command's input; its output goes on. A terminal takes no notice, as under OpenSSH."""
        if self._sink is not None and self._terminal_env is None:
            self._sink.end()
        return True

    def pause_writing(self) -> None:
        """Let the command wait: the client does not take its output."""
        for source in self._sources:
            source.pause()

    def resume_writing(self) -> None:
        """Take the command's output again."""
        for source in self._sources:
            source.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the command, which lives on."""
        del exc
        self._chan = None
        for source in tuple(self._sources):
            source.close()
        self._sources.clear()
        if self._sink is not None:
            self._sink.close()
        self._master = -1
        self._finish_if_over()

    # What the command does

    def _environment(self) -> dict[str, str]:
        chan = self._open_channel()
        asked = {name: value for name, value in chan.get_environment().items() if name.startswith(("LANG", "LC_"))}
        return {**self._inside.env, **self._connection_env, **(self._terminal_env or {}), **asked}

    def _open_channel(self) -> asyncssh.SSHServerChannel[bytes]:
        if self._chan is None:
            raise ConnectionResetError("the channel is closed")
        return self._chan

    def _open_pipes(self) -> list[int]:
        """Make the three streams; return the command's ends of them."""
        chan = self._open_channel()
        (stdin, feed), (out, stdout), (err, stderr) = big_pipe(), big_pipe(), big_pipe()
        self._open_sink(feed)
        self._add_source(out, lambda data: self._write(chan, data, None))
        self._add_source(err, lambda data: self._write(chan, data, asyncssh.EXTENDED_DATA_STDERR))
        return [stdin, stdout, stderr]

    def _on_terminal(self, master: int) -> None:
        if self._chan is None:
            os.close(master)
            return
        chan = self._chan
        self._master = master
        self._open_sink(os.dup(master))
        self._add_source(master, lambda data: self._write(chan, data, None))
        # the client may have resized since the terminal was asked for
        self.terminal_size_changed(self._size[1], self._size[0], self._size[2], self._size[3])

    def _open_sink(self, fd: int) -> None:
        chan = self._open_channel()
        self._sink = Sink(fd, on_full=chan.pause_reading, on_room=chan.resume_reading)
        for data in self._early:
            self._sink.feed(data)
        self._early.clear()

    def _add_source(self, fd: int, deliver: Callable[[bytes], None]) -> None:
        source = Source(fd, deliver=deliver, on_end=lambda: self._on_output_end(source))
        self._sources.add(source)

    def _write(self, chan: asyncssh.SSHServerChannel[bytes], data: bytes, kind: int | None) -> None:
        with suppress(OSError):
            chan.write(data, kind)
            self._output.add(data)

    def _on_output_end(self, source: Source) -> None:
        self._sources.discard(source)
        self._master = -1
        self._finish_if_over()

    def _on_exit(self, exit_code: int) -> None:
        self._exit_code, self._ended_at = exit_code, time.time()
        if self._chan is not None:
            send_exit(self._chan, exit_code)
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        """Close the channel once the command has ended and all that holds its output has let go of it."""
        if self._exit_code is None or self._sources or self._recorded:
            return
        self._recorded = True
        if self._sink is not None:
            self._sink.close()
        if self._chan is not None:
            self._chan.write_eof()
            self._chan.close()
        self._inside.record(
            CommandRecord(
                machine=self._inside.name,
                kind=self._kind,
                command=self._command,
                started_at=self._started_at,
                ended_at=self._ended_at,
                exit_code=self._exit_code,
                bytes_written=self._output.size_bytes,
                sha256=self._output.sha256,
                output_head=self._output.head,
            )
        )


def send_exit(chan: asyncssh.SSHServerChannel[bytes], exit_code: int) -> None:
    """Report the end at once, as OpenSSH does: output may still follow, and the channel stays open for it."""
    if exit_code >= 0:
        chan.send_packet(MSG_CHANNEL_REQUEST, String("exit-status"), Boolean(value=False), UInt32(exit_code & 0xFF))
        return
    name = signal_name(-exit_code)
    parts = (String(name), Boolean(value=False), String(""), String(""))
    chan.send_packet(MSG_CHANNEL_REQUEST, String("exit-signal"), Boolean(value=False), *parts)


def signal_number(name: str) -> int:
    """Return the number of a signal named without its SIG."""
    return signal.Signals[f"SIG{name}"]


def signal_name(number: int) -> str:
    """Return the name that SSH gives a signal; one that it does not know is named as OpenSSH does."""
    try:
        name = signal.Signals(number).name[3:]
    except ValueError:
        name = ""
    return name if name in SIGNALS else f"SIG{number}@openssh.com"


def big_pipe() -> tuple[int, int]:
    """Return a pipe with as much room as one read takes, where the host grants it."""
    ends = os.pipe()
    with suppress(PermissionError):
        fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, CHUNK_BYTES)
    return ends
