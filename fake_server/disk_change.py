"""What a machine writes to its disks, told by the kernel's own change times, which nothing in a machine can set."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fake_server.truth import DiskChange

_MARK = ".booted"  # beside what is mounted into the machine, so unseen by it
_MOST_FILES = 200_000


def mark(disk: Path, name: str) -> None:
    """Note that the machine's own changes begin now; done once a machine, whose disk may come from another."""
    place = disk / _MARK
    if not place.exists() or place.read_text() != name:
        place.write_text(name)


def measure(disk: Path, folders: Sequence[Path]) -> DiskChange | None:
    """Return what changed in these folders since the mark on the disk; None for a disk that never booted.

    Beyond 200,000 files it counts no further.
    """
    try:
        since_ns = (disk / _MARK).stat().st_ctime_ns
    except FileNotFoundError:
        return None
    files = size_bytes = 0
    for entry in _files(folders):
        if files == _MOST_FILES:
            break
        info = entry.stat(follow_symlinks=False)
        if info.st_ctime_ns > since_ns:
            files += 1
            size_bytes += info.st_size
    return DiskChange(files=files, size_bytes=size_bytes)


def _files(folders: Sequence[Path]) -> Iterator["os.DirEntry[str]"]:
    waiting = [str(folder) for folder in folders if folder.is_dir()]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.name != _MARK:
                    yield entry
