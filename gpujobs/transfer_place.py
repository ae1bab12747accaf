"""Puts what was fetched in the place of what stood there, so that a kill at any line leaves one of the two whole."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from gpujobs.crash import Point
from gpujobs.errors import TransferFailed


def fresh_folder(local: Path) -> Path:
    """Make an empty folder (0700) beside `local`, to fetch into; `tidy` finds it if this process is killed."""
    with Point("file", "make fresh folder for", local.name):
        return Path(tempfile.mkdtemp(prefix=f".{local.name}.pull-{os.getpid()}-", dir=local.parent))


def swap(fetched: Path, local: Path) -> None:
    """Put `fetched` at `local`, on the same file system; a folder that stood there is replaced as a whole.

    Raises:
        TransferFailed: a file was fetched, and a folder stands there.
    """
    before = _before(local)
    if fetched.is_file() and local.is_dir():
        raise TransferFailed(f"{local} is a folder, and what was pulled is a file; move one of them away")
    if fetched.is_file():
        with Point("file", "put in place", local.name):
            fetched.replace(local)
        return
    if os.path.lexists(local):
        with Point("file", "set aside", local.name):
            local.rename(before)
    try:
        with Point("file", "put in place", local.name):
            fetched.rename(local)
    except OSError:
        if os.path.lexists(before):
            _put_back(before, local)
        raise
    discard(before)


def _before(local: Path) -> Path:
    return local.with_name(f".{local.name}.before-pull")


def tidy(local: Path) -> None:
    """Undo what a pull that was killed left beside `local`."""
    before = _before(local)
    if os.path.lexists(before) and not os.path.lexists(local):
        _put_back(before, local)
    discard(before)
    pattern = re.compile(re.escape(f".{local.name}.pull-") + r"([0-9]+)-\w+")
    for neighbour in local.parent.iterdir():
        if (match := pattern.fullmatch(neighbour.name)) and not _lives(int(match[1])):
            discard(neighbour)


def discard(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or nothing."""
    with Point("file", "remove", path.name):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _put_back(before: Path, local: Path) -> None:
    with Point("file", "put back", local.name):
        before.rename(local)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
