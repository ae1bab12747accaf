"""Whether the other end of an SSH connection still lives: asking it, noticing silence, ending what has frozen."""

import socket
import threading
import time
from typing import Protocol

import paramiko
from paramiko.common import cMSG_CHANNEL_DATA, cMSG_GLOBAL_REQUEST
from paramiko.packet import Packetizer

_GREETING_BYTES = 64 * 1024  # RFC 4253, 4.2: a line of 255 bytes, and before it what a server wants to say


class PulsePacketizer(Packetizer):
    """Notes when the peer was last heard, and asks for a sign of life when it has been silent.

    The question is asked on the transport's own thread, so that a blocked socket stops nobody else.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Start as just heard."""
        super().__init__(sock)
        self.heard_at = time.monotonic()
        self.transport: PulseTransport | None = None
        self.probe_every_s = 0.0
        self._probed_at = 0.0
        self._handshake_ends_at: float | None = None
        self._greeting_bytes = 0

    def read_message(self) -> tuple[int, paramiko.Message]:
        """Read one packet; any packet is a sign of life."""
        message = super().read_message()
        self.heard_at = time.monotonic()
        return message

    def start_handshake(self, timeout: float) -> None:
        """Bound the handshake without paramiko's timer thread, which keeps a process from ending."""
        self._handshake_ends_at = time.monotonic() + timeout

    def handshake_timed_out(self) -> bool:
        """Tell whether the handshake is over its time."""
        return self._handshake_ends_at is not None and time.monotonic() > self._handshake_ends_at

    def complete_handshake(self) -> None:
        """Lift the bound."""
        self._handshake_ends_at = None

    def _read_timeout(self, timeout: float) -> bytes:
        # Only the greeting is read so: paramiko would gather a line that never ends, slower and slower.
        piece: bytes = super()._read_timeout(timeout)  # type: ignore[misc]
        self._greeting_bytes += len(piece)
        if self._greeting_bytes > _GREETING_BYTES:
            raise paramiko.SSHException("its greeting does not end")
        return piece

    def _check_keepalive(self) -> None:
        now = time.monotonic()
        if self.transport is None or now - max(self.heard_at, self._probed_at) < self.probe_every_s:
            return
        self._probed_at = now
        self.transport.ask_for_life()


class _OfChannel(paramiko.Message):
    """A message that is of no use once its channel is closed."""

    def __init__(self, channel: paramiko.Channel, content: bytes = b"") -> None:
        super().__init__(content)
        self.channel = channel


class PulseTransport(paramiko.Transport):
    """A transport whose keepalive wants an answer, and that says nothing more on a closed channel.

    paramiko's own keepalive wants no answer, and so proves nothing. And where a command ends while another thread
    sends to it, paramiko may send data or an end of file after the channel's close: OpenSSH then ends the whole
    connection ("packet referred to nonexistent channel"), or takes it for the next command that got the number.
    """

    packetizer: PulsePacketizer

    def send_data(self, channel: paramiko.Channel, data: bytes) -> int:
        """Send what there is room for, as `paramiko.Channel.send` does: 0 where nothing more can be sent."""
        message = _OfChannel(channel)
        message.add_byte(cMSG_CHANNEL_DATA)
        message.add_int(channel.remote_chanid)
        return int(channel._send(data, message))  # type: ignore[attr-defined]  # noqa: SLF001 - see the class

    def send_eof(self, channel: paramiko.Channel) -> None:
        """Say that nothing more is sent, as `paramiko.Channel.shutdown_write` does."""
        with channel.lock:
            message = channel._send_eof()  # type: ignore[attr-defined]  # noqa: SLF001 - see the class
        if message is not None:
            self._send_user_message(_OfChannel(channel, message.asbytes()))  # type: ignore[attr-defined]

    def get_exception(self) -> Exception | None:
        """Give what ended the transport: whatever a peer sent that paramiko could not read, as an SSHException too."""
        error = super().get_exception()
        if error is None or isinstance(error, paramiko.SSHException | EOFError | OSError):
            return error
        told = paramiko.SSHException(f"it sent what is no SSH ({type(error).__name__})")
        told.__cause__ = error
        return told

    def _send_message(self, data: paramiko.Message) -> None:
        # Under the lock of all senders, and a channel is marked as closed before its close is sent.
        if not (isinstance(data, _OfChannel) and data.channel.closed):
            super()._send_message(data)  # type: ignore[misc]

    def ask_for_life(self) -> None:
        """Send a request that every SSH server answers, if only to refuse it; not while keys are exchanged."""
        if self.in_kex or not self.clear_to_send.is_set():
            return
        message = paramiko.Message()
        message.add_byte(cMSG_GLOBAL_REQUEST)
        message.add_string("keepalive@openssh.com")
        message.add_boolean(b=True)
        self._send_user_message(message)  # type: ignore[attr-defined]  # protected, and so not in the stubs


class Watched(Protocol):
    """What the watchdog looks at."""

    @property
    def alive(self) -> bool:
        """Whether there is still something to watch."""
        ...

    @property
    def tick_s(self) -> float:
        """How often to look, in seconds."""
        ...

    def check(self, now: float, *, awake_since: float) -> None:
        """End the connection if it has frozen; never waits."""
        ...


class Watchdog:
    """One thread for all connections; it never sends, so that none of them can hold it up."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._lock = threading.Lock()
        self._connections: set[Watched] = set()
        self._news = threading.Event()
        self._running = False

    def add(self, connection: Watched) -> None:
        """Watch `connection` from now on."""
        with self._lock:
            self._connections.add(connection)
            if not self._running:
                self._running = True
                threading.Thread(target=self._watch, name="gpujobs-ssh-watchdog", daemon=True).start()
        self._news.set()

    def remove(self, connection: Watched) -> None:
        """Watch `connection` no longer; idempotent."""
        with self._lock:
            self._connections.discard(connection)
        self._news.set()

    def _watch(self) -> None:
        looked_at = awake_since = time.monotonic()
        while connections := self._watched():
            tick_s = min(connection.tick_s for connection in connections)
            now = time.monotonic()
            if now - looked_at > 1 + 4 * tick_s:
                awake_since = now  # this process was stopped, so it is we who did not listen
            looked_at = now
            for connection in connections:
                connection.check(now, awake_since=awake_since)
            self._news.wait(tick_s)
            self._news.clear()

    def _watched(self) -> tuple[Watched, ...]:
        with self._lock:
            self._connections = {connection for connection in self._connections if connection.alive}
            self._running = bool(self._connections)
            return tuple(self._connections)


WATCHDOG = Watchdog()
