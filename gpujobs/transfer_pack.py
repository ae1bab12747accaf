"""What of a local folder goes up, and as which tar stream."""

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from gpujobs.errors import BadInput, TransferFailed

IGNORE_FILES = (".gitignore", ".gpujobsignore")  # in each folder; a later line, and a deeper file, decides
BLOCK_BYTES = 512
READ_BYTES = 256 * 1024
MAX_LINK_BYTES = 4096

_Rules = tuple[tuple[str, GitIgnoreSpec], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file, folder or link that goes up; `path` is relative, with slashes."""

    path: str
    mode: int  # as os.stat gives it
    size: int  # bytes of content
    modified_at: int  # epoch seconds
    link: str = ""  # where a symbolic link points

    @property
    def stream_bytes(self) -> int:
        """How much of the tar stream it takes: header and padded content (names over 100 bytes take a little more)."""
        return BLOCK_BYTES + self.size + -self.size % BLOCK_BYTES


def survey(root: Path) -> tuple[Entry, ...]:
    """List what goes up from the folder `root`: all but `.git`, what ignore files name, sockets, pipes and devices.

    Raises:
        BadInput: `root` is no folder, or a link in it points out of it.
    """
    if not root.is_dir():
        raise BadInput(f"{root} is not a folder")
    return tuple(_visit(root, "", (), Path(os.path.realpath(root))))


def tar_stream(root: Path, entries: tuple[Entry, ...]) -> Iterator[bytes]:
    """Write `entries` as one GNU tar stream, in pieces of about 256 KiB.

    Raises:
        TransferFailed: a file went away or became shorter meanwhile.
    """
    piece = bytearray()
    for entry in entries:
        piece += _header(entry)
        if stat.S_ISREG(entry.mode):
            for data in _content(root, entry):
                piece += data
                if len(piece) >= READ_BYTES:
                    yield bytes(piece)
                    piece.clear()
            piece += bytes(-entry.size % BLOCK_BYTES)
    yield bytes(piece + bytes(2 * BLOCK_BYTES))


def _visit(folder: Path, prefix: str, outer: _Rules, root: Path) -> Iterator[Entry]:
    rules = (*outer, *_rules_in(folder, prefix))
    with os.scandir(folder) as listing:
        items = sorted(listing, key=lambda item: item.name)
    for item in items:
        path = prefix + item.name
        is_folder = item.is_dir(follow_symlinks=False)
        if item.name == ".git" or _ignored(f"{path}/" if is_folder else path, rules):
            continue
        info = item.stat(follow_symlinks=False)
        if is_folder:
            yield Entry(path=path, mode=info.st_mode, size=0, modified_at=int(info.st_mtime))
            yield from _visit(folder / item.name, f"{path}/", rules, root)
        elif stat.S_ISREG(info.st_mode):
            yield Entry(path=path, mode=info.st_mode, size=info.st_size, modified_at=int(info.st_mtime))
        elif stat.S_ISLNK(info.st_mode):
            link = _inner_link(folder / item.name, root)
            yield Entry(path=path, mode=info.st_mode, size=0, modified_at=int(info.st_mtime), link=link)


def _rules_in(folder: Path, prefix: str) -> Iterator[tuple[str, GitIgnoreSpec]]:
    for name in IGNORE_FILES:
        file = folder / name
        if file.is_file():
            lines = file.read_text("utf-8", "surrogateescape").splitlines()
            try:
                yield prefix, GitIgnoreSpec.from_lines(lines)
            except ValueError as error:
                raise BadInput(f"{file}: a line is not a pattern as git has them: {error}") from error


def _ignored(path: str, rules: _Rules) -> bool:
    for prefix, spec in reversed(rules):
        verdict = spec.check_file(path.removeprefix(prefix)).include
        if verdict is not None:
            return verdict
    return False


def _inner_link(path: Path, root: Path) -> str:
    target = str(path.readlink())
    inside = Path(os.path.realpath(path.parent / target)).is_relative_to(root)
    if os.path.isabs(target) or not inside or len(os.fsencode(target)) > MAX_LINK_BYTES:  # noqa: PTH117  # of a str
        raise BadInput(
            f"{path} is a link to {target}, which does not go up with its folder; "
            "make it a relative link inside the folder, or name it in .gpujobsignore"
        )
    return target


def _header(entry: Entry) -> bytes:
    member = tarfile.TarInfo(f"./{entry.path}")
    member.mode = stat.S_IMODE(entry.mode) & 0o777
    member.mtime = entry.modified_at
    member.size = entry.size
    if stat.S_ISDIR(entry.mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(entry.mode):
        member.type, member.linkname = tarfile.SYMTYPE, entry.link
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _content(root: Path, entry: Entry) -> Iterator[bytes]:
    left = entry.size
    try:
        with (root / entry.path).open("rb", buffering=0) as file:
            while left > 0 and (data := file.read(min(left, READ_BYTES))):
                left -= len(data)
                yield data
    except OSError as error:
        raise TransferFailed(f"{root / entry.path} could not be read: {error.strerror}; nothing was started") from error
    if left > 0:
        raise TransferFailed(f"{root / entry.path} became shorter while it was sent; try again when it is at rest")
