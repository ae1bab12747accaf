"""One SSH connection: its stages, its pinned host key, and its end when the peer has frozen."""

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from gpujobs.errors import AuthRefused, BadInput, HostKeyChanged, RemoteFailure, Unreachable
from gpujobs.models import Access
from gpujobs.shell_pulse import WATCHDOG, PulsePacketizer, PulseTransport

LOG_CHANNEL = "gpujobs.paramiko"
CIPHERS = (
    "aes128-gcm@openssh.com",  # a third faster than the default order on bulk data
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
FULL_WAIT_S = 0.02
_SAID_CHARS = 300
_QUESTIONS = 3
# Every failure is raised as an error of ours; paramiko's own tracebacks would only repeat it on the user's terminal.
logging.getLogger(LOG_CHANNEL).setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long each stage may take, in seconds; `dead_after_s` is how long a peer may say nothing at all."""

    connect_s: float = 10.0
    banner_s: float = 15.0
    handshake_s: float = 20.0
    auth_s: float = 30.0
    channel_s: float = 20.0
    probe_every_s: float = 5.0
    dead_after_s: float = 30.0


class Connection:
    """An authenticated SSH connection that cannot hang: a silent peer or an overdue answer closes it."""

    def __init__(
        self, transport: PulseTransport, *, where: str, host_key: str, by_password: bool, timeouts: Timeouts
    ) -> None:
        """Start to watch `transport`; `where` is host:port, for messages."""
        self.where = where
        self.host_key = host_key
        self.by_password = by_password
        self._transport = transport
        self._timeouts = timeouts
        self._deadlines: dict[object, tuple[float, str]] = {}
        self._end = ""
        transport.packetizer.probe_every_s = timeouts.probe_every_s
        transport.packetizer.transport = transport
        WATCHDOG.add(self)

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as can be told without asking."""
        return self._transport.is_active()

    @property
    def tick_s(self) -> float:
        """How often the watchdog should look at this connection."""
        return min(1.0, self._timeouts.dead_after_s / 8)

    def execute(self, command: str) -> paramiko.Channel:
        """Start `command` on a new channel; never waits longer than `channel_s`."""
        if "\0" in command:
            raise BadInput("a command for the machine holds a NUL character")
        with self._within(self._timeouts.channel_s, "did not start a command"):
            try:
                channel = self._open_channel()
                channel.exec_command(command)
            except (paramiko.SSHException, EOFError, OSError) as error:
                raise self.refusal(error) from error
        return channel

    def send_data(self, channel: paramiko.Channel, data: bytes) -> int:
        """Send to a command what there is room for; 0 where it takes no more."""
        return self._transport.send_data(channel, data)

    def send_eof(self, channel: paramiko.Channel) -> None:
        """Tell a command that nothing more is sent."""
        self._transport.send_eof(channel)

    def _open_channel(self) -> paramiko.Channel:
        """Open a channel; wait a little where all sessions that the server allows (OpenSSH: 10) are in use."""
        ends_at = time.monotonic() + self._timeouts.channel_s / 2
        while True:
            try:
                return self._transport.open_session(timeout=self._timeouts.channel_s)
            except paramiko.SSHException as error:
                if time.monotonic() > ends_at or not self._is_full(error):
                    raise
            time.sleep(FULL_WAIT_S)

    def _is_full(self, error: paramiko.SSHException) -> bool:
        # paramiko keeps one reason for all threads, so that one of two refused at once is left with this text alone
        nameless = str(error) == "Unable to open channel." and self._transport.is_active()
        return isinstance(error, paramiko.ChannelException) or nameless

    def refusal(self, error: Exception | None = None) -> Unreachable:
        """Say why the connection is of no use now."""
        reason = self._end or (_said(error) if error is not None and str(error) else "the connection was lost")
        return Unreachable(f"{self.where}: {reason}; connect again")

    def check_heard(self) -> None:
        """Raise Unreachable where the peer has not answered the last questions after its life: it may be gone."""
        silent_s = time.monotonic() - self._transport.packetizer.heard_at
        if silent_s > _QUESTIONS * self._timeouts.probe_every_s:
            self._kill(f"no sign of life for {silent_s:.0f} s")
            raise self.refusal()

    def check(self, now: float, *, awake_since: float) -> None:
        """Close the connection if its peer is silent or an answer is overdue; called by the watchdog."""
        silent_s = now - max(self._transport.packetizer.heard_at, awake_since)
        if silent_s > self._timeouts.dead_after_s:
            self._kill(f"no sign of life for {silent_s:.0f} s")
        for due_at, what in tuple(self._deadlines.values()):
            if now > due_at:
                self._kill(what + " in time")

    def close(self) -> None:
        """Close the connection; idempotent."""
        WATCHDOG.remove(self)
        self._end = self._end or "the connection was closed"
        self._transport.close()

    @contextlib.contextmanager
    def _within(self, seconds: float, what: str) -> Iterator[None]:
        token = object()
        self._deadlines[token] = (time.monotonic() + seconds, what)
        try:
            yield
        finally:
            del self._deadlines[token]

    def _kill(self, reason: str) -> None:
        self._end = self._end or reason
        with contextlib.suppress(OSError):
            self._transport.sock.shutdown(socket.SHUT_RDWR)
        self._transport.close()


def open_connection(access: Access, *, host_key: str | None, pkey_path: Path | None, timeouts: Timeouts) -> Connection:
    """Go through TCP, banner and key exchange, host key, authentication; each stage fails fast and by its own name.

    Raises:
        Unreachable: TCP refused, no banner, cut or too slow: try again later.
        AuthRefused: neither the key nor the password is accepted now.
        HostKeyChanged: the host's key is not `host_key`; no password was sent.
        RemoteFailure: the server speaks only algorithms that are no longer safe.
    """
    where = f"{access.host}:{access.port}"
    refusals = []
    for log_in, by_password in _logins(access, pkey_path):
        # Each on a connection of its own: paramiko asks for the login service twice, which strict servers do not bear.
        transport = PulseTransport(_dial(access.host, access.port, timeouts), packetizer_class=PulsePacketizer)
        try:
            found = _negotiate(transport, where=where, host_key=host_key, timeouts=timeouts)
            refusal = _attempt(log_in, transport, where)
        except BaseException:
            transport.close()
            raise
        if transport.is_authenticated():
            return Connection(transport, where=where, host_key=found, by_password=by_password, timeouts=timeouts)
        transport.close()
        host_key = found
        refusals.append(refusal)
    reasons = "; ".join(refusals) or "no key and no password to offer"
    raise AuthRefused(f"{where}: user {access.user!r} is refused now ({reasons})")


def _logins(access: Access, pkey_path: Path | None) -> Iterator[tuple[Callable[[PulseTransport], object], bool]]:
    """Give each way to log in, and whether it is by password."""
    if pkey_path is not None:
        key = load_key(pkey_path)
        yield lambda transport: transport.auth_publickey(access.user, key), False
    if access.password:
        yield lambda transport: transport.auth_password(access.user, access.password), True


def _dial(host: str, port: int, timeouts: Timeouts) -> socket.socket:
    try:
        sock = socket.create_connection((host, port), timeout=timeouts.connect_s)
    except OSError as error:
        raise Unreachable(f"{host}:{port}: {error.strerror or error}") from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a bare channel waits 40 ms
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeouts.dead_after_s * 1000))
    return sock


def _negotiate(transport: PulseTransport, *, where: str, host_key: str | None, timeouts: Timeouts) -> str:
    transport.set_log_channel(LOG_CHANNEL)
    transport.banner_timeout = timeouts.banner_s
    transport.handshake_timeout = timeouts.handshake_s
    transport.auth_timeout = timeouts.auth_s
    options = transport.get_security_options()
    options.ciphers = CIPHERS
    if host_key is not None:
        options.key_types = _key_types(host_key)
    try:
        transport.start_client(timeout=timeouts.banner_s + timeouts.handshake_s)
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise _incompatible(where, error, pinned=host_key is not None) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise Unreachable(f"{where}: no SSH there yet: {_said(error)}") from error
    if not transport.initial_kex_done:  # start_client returns in silence when its time is up
        raise Unreachable(f"{where}: the SSH handshake did not end in time")
    return _pinned(transport, where=where, host_key=host_key)


def _key_types(host_key: str) -> tuple[str, ...]:
    kind = host_key.split(" ", 1)[0]
    return ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)


def _incompatible(where: str, error: Exception, *, pinned: bool) -> HostKeyChanged | RemoteFailure:
    if pinned and "host key" in str(error):
        return HostKeyChanged(f"{where}: this host no longer has the kind of key that it was first seen with; stop")
    return RemoteFailure(
        f"{where}: its SSH server knows only algorithms that are no longer safe ({_said(error)}); "
        "use an image with OpenSSH 7.2 or newer"
    )


def _pinned(transport: PulseTransport, *, where: str, host_key: str | None) -> str:
    key = transport.get_remote_server_key()
    found = f"{key.get_name()} {key.get_base64()}"
    if host_key is not None and found != host_key:
        raise HostKeyChanged(
            f"{where}: the host key is not the one first seen ({key.fingerprint} now); another machine answers, stop"
        )
    return found


def load_key(path: Path) -> paramiko.PKey:
    """Read a private ed25519 key made by `make_key`."""
    try:
        return paramiko.Ed25519Key(filename=str(path))
    except (OSError, paramiko.SSHException, AssertionError) as error:
        raise BadInput(f"{path} is not an ed25519 private key that can be read ({error})") from error


def _attempt(log_in: Callable[[PulseTransport], object], transport: PulseTransport, where: str) -> str:
    try:
        log_in(transport)
    except paramiko.BadAuthenticationType as error:
        return f"it takes only {_plain(', '.join(error.allowed_types))}"
    except paramiko.AuthenticationException as error:
        if transport.is_active() and "timeout" not in str(error):
            return _said(error).rstrip(".").lower()
        raise Unreachable(f"{where}: cut while logging in: {_said(error)}") from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise Unreachable(f"{where}: cut while logging in: {_said(error)}") from error
    return "authentication needs another step"


def _said(error: Exception) -> str:
    """Give what an error says, which may be a peer's own words, as one short plain line."""
    return _plain(str(error) or type(error).__name__)


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:_SAID_CHARS])
