"""How much a machine may keep on its disks. A watch over plain folders: it needs no root, no mount and no kernel quota.

A machine that holds more than its share cannot let any file grow (EFBIG, by its processes' file size limit) until it
has removed enough. The watch looks only while the host's own disk gets fuller, so that machines at rest cost nothing.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PERIOD_S = 0.25
_REST = 10.0  # a round is followed by a pause of so many times what it took
_NOTICED_BYTES = 8 * 2**20


@dataclass(slots=True, kw_only=True)
class _Share:
    folders: Sequence[Path]
    limit_bytes: int
    tell: Callable[[bool], None]
    full: bool = False


class Quota:
    """Watches the disks of machines on a thread of its own, which the first machine starts. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._shares: dict[str, _Share] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self, name: str, folders: Sequence[Path], *, limit_bytes: int, tell: Callable[[bool], None]) -> None:
        """Watch a machine's folders; `tell` hears on the watch's thread when they become too full, and when not."""
        with self._lock:
            self._shares[name] = _Share(folders=folders, limit_bytes=limit_bytes, tell=tell)
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._watch, name="fake-quota", daemon=True)
                self._thread.start()

    def leave(self, name: str) -> None:
        """Watch a machine no more. Idempotent."""
        with self._lock:
            self._shares.pop(name, None)

    def close(self) -> None:
        """End the watch. Idempotent."""
        with self._lock:
            self._ended.set()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _watch(self) -> None:
        noticed, pause_s = 0, _PERIOD_S
        while not self._ended.wait(pause_s):
            used = self._used_on_host()
            with self._lock:
                shares = list(self._shares.values())
            if abs(used - noticed) < _NOTICED_BYTES and not any(share.full for share in shares):
                continue
            noticed, begun = used, time.monotonic()
            for share in shares:
                self._judge(share)
            pause_s = max(_PERIOD_S, _REST * (time.monotonic() - begun))

    def _judge(self, share: _Share) -> None:
        full = any(total > share.limit_bytes for total in _running_total(share.folders, self._ended))
        if full != share.full:
            share.full = full
            share.tell(full)

    def _used_on_host(self) -> int:
        host = os.statvfs(self._folder)
        return (host.f_blocks - host.f_bfree) * host.f_frsize


def _running_total(folders: Sequence[Path], ended: threading.Event) -> Iterator[int]:
    """Yield the blocks that the folders hold, in bytes, as they are counted; links are not followed."""
    total, waiting = 0, [str(folder) for folder in folders]
    while waiting and not ended.is_set():
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue  # what vanishes while it is counted holds nothing
        yield total
