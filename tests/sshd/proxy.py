"""A TCP proxy that can cut, freeze and refuse, for faults between a client and a server."""

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Self

RESET = struct.pack("ii", 1, 0)  # SO_LINGER that makes close() a reset


class Proxy:
    """Forwards loopback connections to `port`; its faults hit all connections that it carries."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._cut_after: int | None = None
        self._freeze_after: int | None = None
        self._cut_at = b""
        self.carried = 0  # bytes from the server
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Carry nothing more, and keep every socket open: a half-open connection."""
        self._flows.clear()

    def thaw(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        """Reset every connection; new ones are served."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.shutdown(socket.SHUT_RD)  # wakes the pump that reads it
            sock.close()

    def cut_after(self, size: int) -> None:
        """Cut once, when the server has sent `size` more bytes."""
        self._cut_after = self.carried + size

    def cut_at(self, words: bytes) -> None:
        """Cut once, in place of carrying a piece from the client that holds these words."""
        self._cut_at = words

    @property
    def has_cut(self) -> bool:
        """Whether the words came."""
        return not self._cut_at

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.thaw()
        self.cut()

    def freeze_after(self, size: int) -> None:
        """Freeze once, when the server has sent `size` more bytes."""
        self._freeze_after = self.carried + size

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(self._to)
            with self._lock:
                self._sockets += [client, server]
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client), kwargs={"down": True}, daemon=True).start()

    def _pump(self, source: socket.socket, drain: socket.socket, *, down: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                if not down and self._cut_at and self._cut_at in data:
                    self._cut_at = b""
                    self.cut()
                drain.sendall(data)
                if down:
                    self._count(len(data))
        for sock in (source, drain):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _count(self, size: int) -> None:
        self.carried += size
        if self._freeze_after is not None and self.carried >= self._freeze_after:
            self._freeze_after = None
            self.freeze()
        if self._cut_after is not None and self.carried >= self._cut_after:
            self._cut_after = None
            self.cut()
