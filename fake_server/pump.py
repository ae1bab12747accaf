"""Moves bytes between a pipe or terminal and whoever speaks for the client, with back-pressure both ways."""

import asyncio
import os
from collections.abc import Callable

CHUNK_BYTES = 256 * 1024
FULL_BYTES = 1024 * 1024


class Source:
    """Reads a descriptor until its end and hands on what it reads; owns and closes the descriptor."""

    def __init__(self, fd: int, *, deliver: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd, self._deliver, self._on_end = fd, deliver, on_end
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def pause(self) -> None:
        """Stop reading until resumed; what writes to the other end then waits."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Go on reading."""
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        """Stop for good; what writes to the other end then gets EPIPE. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        try:
            data = os.read(self._fd, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a terminal reports EIO once its last process is gone
        if data:
            self._deliver(data)
        else:
            self.close()
            self._on_end()


class Sink:
    """Writes what it is fed to a descriptor as fast as that takes it; owns and closes the descriptor."""

    def __init__(self, fd: int, *, on_full: Callable[[], None], on_room: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd, self._on_full, self._on_room = fd, on_full, on_room
        self._waiting = bytearray()
        self._full = self._ending = False
        os.set_blocking(fd, False)

    def feed(self, data: bytes) -> None:
        """Write, or keep until there is room; bytes for a reader that is gone are dropped."""
        if self._fd < 0 or self._ending:
            return
        if not self._waiting:
            data = data[self._write(data) :]
        if data and self._fd >= 0:
            if not self._waiting:
                self._loop.add_writer(self._fd, self._drain)
            self._waiting += data
            self._mind_room()

    def end(self) -> None:
        """Close the descriptor once all is written."""
        self._ending = True
        if not self._waiting:
            self.close()

    def close(self) -> None:
        """Close the descriptor and drop what was not written. Idempotent."""
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._waiting.clear()
        self._mind_room()

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            self.close()
            return 0

    def _drain(self) -> None:
        del self._waiting[: self._write(self._waiting)]
        if not self._waiting and self._fd >= 0:
            self._loop.remove_writer(self._fd)
            if self._ending:
                self.close()
        self._mind_room()

    def _mind_room(self) -> None:
        full = len(self._waiting) >= FULL_BYTES
        if full and not self._full:
            self._full = True
            self._on_full()
        elif self._full and not self._waiting:
            self._full = False
            self._on_room()
