"""The network in front of each machine's SSH server: every byte passes here, and faults cut, freeze or slow it.

The proxy sits on the connection's own socket, between the loop and the SSH server, so the address that a cloud tells is
the proxy's, a fault also strikes connections that stand already, and a line without faults costs one call a chunk.
"""

import array
import asyncio
import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fake_server.fault_rules import FaultRule, Strike
from fake_server.trouble import Trouble

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_FULL_BYTES = 64 * 1024
_PIECES_PER_S = 20
_CUT_LOOK_S = 0.005  # between two looks whether all that passed before a cut has arrived
_CUT_LOOKS = 1000  # a client that takes nothing is cut all the same

Factory = Callable[[], asyncio.BaseProtocol]


def listener(reserved: socket.socket) -> socket.socket:
    """Return a socket to listen with, where another is bound that never listens; closing it makes the port refuse."""
    sock = socket.socket(reserved.family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(reserved.getsockname())
    except OSError:
        sock.close()
        raise
    return sock


class ProxyLoop(asyncio.SelectorEventLoop):
    """An event loop that puts a proxy in front of the listening sockets for which one was announced."""

    def __init__(self) -> None:
        super().__init__()
        self.proxies: dict[socket.socket, Proxy] = {}

    async def create_server(
        self, protocol_factory: Factory, *args: Any, sock: socket.socket | None = None, **options: Any
    ) -> asyncio.Server:
        """Listen; connections to an announced socket go through its proxy."""
        proxy = None if sock is None else self.proxies.pop(sock, None)
        factory = protocol_factory if proxy is None else proxy.in_front_of(protocol_factory)
        return await super().create_server(factory, *args, sock=sock, **options)


class Proxy:
    """All connections of one machine. On the loop's thread alone."""

    def __init__(self, trouble: Trouble | None) -> None:
        self._trouble = trouble
        self._lines: dict[Line, None] = {}  # oldest first
        self._made = 0

    def in_front_of(self, factory: Factory) -> Factory:
        """Return a factory whose protocols stand between the loop and those of this one."""
        return lambda: Line(factory(), self)

    def reconsider(self) -> None:
        """Look again at the rules, the oldest connection first."""
        for line in tuple(self._lines):
            line.reconsider()

    def close(self) -> None:
        """Drop every connection, frozen ones too."""
        for line in tuple(self._lines):
            line.drop()

    def enter(self, line: "Line") -> str:
        """Count a connection in; return the key that tells it from all others."""
        self._lines[line] = None
        self._made += 1
        return f"{id(self)}:{self._made}"

    def leave(self, line: "Line") -> None:
        """Count a connection out."""
        self._lines.pop(line, None)

    def strike(self, kind: str, key: str) -> Strike | None:
        """Return what strikes a connection."""
        return None if self._trouble is None else self._trouble.of_connection(kind, key)


class Way:
    """One direction of a slowed or frozen line: keeps what may not pass yet. None in place of bytes is their end."""

    def __init__(self, deliver: Callable[[bytes | None], None], on_change: Callable[[], None]) -> None:
        self._deliver, self._on_change = deliver, on_change
        self._waiting: deque[tuple[float, bytes | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._free_at = 0.0
        self.frozen, self.slow = False, _NOT_SLOW
        self.waiting_bytes = 0

    @property
    def empty(self) -> bool:
        """Say whether nothing waits."""
        return not self._waiting

    def send(self, data: bytes | None) -> None:
        """Let the data pass, now or when its time has come."""
        self._waiting.append((self._loop.time() + self.slow.latency_s, data))
        self.waiting_bytes += len(data or b"")
        self.pump()

    def pump(self) -> None:
        """Let pass what may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and not self.frozen:
            due_at, data = self._waiting[0]
            if (wait_until := max(due_at, self._free_at)) > self._loop.time():
                self._timer = self._loop.call_at(wait_until, self.pump)
                break
            self._pass(due_at, data)
        self._on_change()

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        self.waiting_bytes = 0
        if self._timer is not None:
            self._timer.cancel()

    def _pass(self, due_at: float, data: bytes | None) -> None:
        self._waiting.popleft()
        rate = self.slow.bytes_per_s
        if data is not None and rate is not None:
            size = max(1, rate // _PIECES_PER_S)
            if len(data) > size:
                self._waiting.appendleft((due_at, data[size:]))
                data = data[:size]
            self._free_at = self._loop.time() + len(data) / rate
        self.waiting_bytes -= len(data or b"")
        self._deliver(data)


_NOT_SLOW = FaultRule(kind="ssh_slow", latency_s=1.0).model_copy(update={"latency_s": 0.0})


class Line(asyncio.Protocol):
    """One connection: a protocol to the loop, a transport to the server behind it."""

    def __init__(self, inner: asyncio.BaseProtocol, proxy: Proxy) -> None:
        self._inner: Any = inner
        self._proxy = proxy
        self._limits: dict[int, int] = {}  # by rule: how many bytes may have passed when it strikes
        self._thawed: set[int] = set()
        self._passed = 0
        self._clear = True
        self._watching = False
        self._closing: Callable[[], None] | None = None
        self._cutting = False

    # To the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Meet the client, and introduce it to the server."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 -- for the type checker: loops make no other here
        self._outside = transport
        self._inward = Way(self._hand_in, self._mind)
        self._outward = Way(self._hand_out, self._mind)
        self._key = self._proxy.enter(self)
        self.reconsider()
        self._inner.connection_made(Inside(self, transport))

    def data_received(self, data: bytes) -> None:
        """Pass what the client sends."""
        if self._clear:
            self._inner.data_received(data)
        else:
            self._take(data, self._inward)

    def eof_received(self) -> bool:
        """Pass the client's end after all that it sent; the socket stays until the server closes it."""
        if self._clear:
            return bool(self._inner.eof_received())
        self._inward.send(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the server that the client is gone."""
        self._proxy.leave(self)
        self._inward.clear()
        self._outward.clear()
        self._inner.connection_lost(exc)

    # To the server

    def write(self, data: bytes) -> None:
        """Pass what the server sends."""
        if self._clear:
            self._outside.write(data)
        else:
            self._take(bytes(data), self._outward)

    def close(self, how: Callable[[], None]) -> None:
        """End the connection once all is sent; a frozen one shows the client nothing of it."""
        self._closing = how
        self._mind()

    # To the proxy

    def reconsider(self) -> None:
        """Look again at what the rules have in store."""
        slow = self._proxy.strike("ssh_slow", self._key)
        for way in (self._inward, self._outward):
            way.slow = _NOT_SLOW if slow is None else slow.rule
        self._clear = False
        self._take(b"", None)

    def drop(self) -> None:
        """End the connection at once."""
        self._outside.abort()

    def _take(self, data: bytes, way: Way | None) -> None:
        """Let the data pass up to where a cut or a freeze is due, and the rest after it."""
        if self._cutting:
            return
        cut, freeze = (self._proxy.strike(kind, self._key) for kind in ("ssh_cut", "ssh_half_open"))
        if freeze is not None and freeze.rule_id in self._thawed:
            freeze = None
        room = min((self._limit(each) - self._passed for each in (cut, freeze) if each), default=len(data) + 1)
        before, after = data[: max(0, room)], data[max(0, room) :]
        if way is not None and before:
            self._passed += len(before)
            way.send(before)
        if cut is not None and self._passed >= self._limit(cut):
            self._cut()
            return
        self._freeze(freeze if freeze is not None and self._passed >= self._limit(freeze) else None)
        if way is not None and after:
            self._passed += len(after)
            way.send(after)
        self._watching = cut is not None or freeze is not None
        self._mind()

    def _limit(self, strike: Strike) -> int:
        return self._limits.setdefault(strike.rule_id, self._passed + strike.rule.bytes)

    def _cut(self) -> None:
        """Let nothing more pass, and reset the connection once what passed has arrived: a reset drops what has not."""
        self._cutting = True
        self._outside.pause_reading()
        self._reset_when_arrived(_CUT_LOOKS)

    def _reset_when_arrived(self, looks: int) -> None:
        if self._outside.is_closing():
            return
        if looks and not self._arrived():
            asyncio.get_running_loop().call_later(_CUT_LOOK_S, self._reset_when_arrived, looks - 1)
            return
        with suppress(OSError):
            sock = self._outside.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._outside.abort()

    def _arrived(self) -> bool:
        """Say whether the client's kernel has all that passed."""
        unacknowledged = array.array("i", [0])
        with suppress(OSError):
            fcntl.ioctl(self._outside.get_extra_info("socket").fileno(), termios.TIOCOUTQ, unacknowledged)
        return self._outward.empty and self._outside.get_write_buffer_size() == 0 and unacknowledged[0] == 0

    def _freeze(self, strike: Strike | None) -> None:
        was, frozen = self._outward.frozen, strike is not None
        self._inward.frozen = self._outward.frozen = frozen
        if strike is not None and not was and strike.rule.seconds:
            rule_id = strike.rule_id
            asyncio.get_running_loop().call_later(strike.rule.seconds, lambda: self._thaw(rule_id))
        if was and not frozen:
            self._inward.pump()
            self._outward.pump()

    def _thaw(self, rule_id: int) -> None:
        self._thawed.add(rule_id)
        self.reconsider()

    def _mind(self) -> None:
        """Take more from the client or not, end what is to be ended, and get out of the way where nothing is wrong."""
        if self._outside.is_closing() or self._cutting:
            return
        frozen = self._outward.frozen
        if self._closing is not None and self._outward.empty and not frozen:
            self._closing()
        elif frozen or self._inward.waiting_bytes >= _FULL_BYTES:
            self._outside.pause_reading()
        else:
            self._outside.resume_reading()
        slow = self._outward.slow is not _NOT_SLOW
        self._clear = not (slow or frozen or self._watching) and self._inward.empty and self._outward.empty

    def _hand_in(self, data: bytes | None) -> None:
        if data is not None:
            self._inner.data_received(data)
        elif not self._inner.eof_received():
            self._outside.close()

    def _hand_out(self, data: bytes | None) -> None:
        if data is not None and not self._outside.is_closing():
            self._outside.write(data)


class Inside(asyncio.Transport):
    """What the server behind the proxy takes for its connection."""

    def __init__(self, line: Line, outside: asyncio.Transport) -> None:
        super().__init__()
        self._line, self._outside = line, outside

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Tell of the real connection."""
        return self._outside.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Say whether the real connection is being closed."""
        return self._outside.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send to the client."""
        self._line.write(bytes(data) if not isinstance(data, bytes) else data)

    def close(self) -> None:
        """End the connection in order."""
        self._line.close(self._outside.close)

    def abort(self) -> None:
        """End the connection now."""
        self._line.close(self._outside.abort)

    def pause_reading(self) -> None:
        """Take no more from the client."""
        self._outside.pause_reading()

    def resume_reading(self) -> None:
        """Take from the client again."""
        self._outside.resume_reading()
