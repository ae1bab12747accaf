"""Unpacks a tar stream that a machine sends, by hand: nothing in it can write outside its folder or run here."""

import contextlib
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gpujobs.crash import Point
from gpujobs.errors import UnsafeArchive

BLOCK_BYTES = 512
MAX_META_BYTES = 64 * 1024
MAX_NAME_BYTES = 255
MAX_TRAILER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may come down; a machine that sends more is cut off."""

    max_bytes: int = 500 * 1000**3
    max_files: int = 1_000_000  # files and folders together
    max_path_bytes: int = 2048


class Unpacker:
    """Takes a tar stream piece by piece and writes its files and folders under one fresh folder.

    Formats: ustar, with GNU long names and pax `path` and `size`. Anything but a regular file or a folder is refused,
    as is a name that is absolute, climbs, repeats, or holds a control character or a backslash.
    Source: POSIX.1-2024, pax, "ustar Interchange Format" and "pax Extended Header".
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        """Write under `folder`, which must be empty and nobody else's."""
        self.hashes: dict[str, str] = {}  # relative path to sha256
        self._folder = folder
        self._limits = limits
        self._folders: set[str] = {""}
        self._bytes = 0
        self._block = bytearray()
        self._body_left = 0
        self._skip_left = 0
        self._file: BinaryIO | None = None
        self._path = ""
        self._modified_at = 0
        self._hash = hashlib.sha256()
        self._meta_kind = b""
        self._meta = bytearray()
        self._meta_came = False
        self._next_name: bytes | None = None
        self._next_size: int | None = None
        self._zero_blocks = 0
        self._trailer = 0

    @property
    def bytes_written(self) -> int:
        """Bytes of file content announced so far."""
        return self._bytes

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream; UnsafeArchive names what is wrong with it."""
        view = memoryview(data)
        while view:
            view = view[self._take(view) :]

    def finish(self) -> None:
        """Check that the stream came to its end."""
        if self._zero_blocks < 2:  # noqa: PLR2004  # POSIX: two blocks of zeros
            raise UnsafeArchive("the archive ends in the middle")

    def close(self) -> None:
        """Close what is open; idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, view: memoryview) -> int:
        if self._body_left:
            return self._take_body(view[: self._body_left])
        if self._skip_left:
            taken = min(self._skip_left, len(view))
            self._skip_left -= taken
            return taken
        if self._zero_blocks >= 2:  # noqa: PLR2004
            return self._take_trailer(view)
        piece = view[: BLOCK_BYTES - len(self._block)]
        self._block += piece
        if len(self._block) == BLOCK_BYTES:
            block, self._block = bytes(self._block), bytearray()
            self._begin(block)
        return len(piece)

    def _take_body(self, piece: memoryview) -> int:
        self._body_left -= len(piece)
        if self._meta_kind:
            self._meta += piece
        elif self._file is not None:
            self._file.write(piece)
            self._hash.update(piece)
        if not self._body_left:
            self._end_body()
        return len(piece)

    def _take_trailer(self, view: memoryview) -> int:
        self._trailer += len(view)
        if self._trailer > MAX_TRAILER_BYTES:
            raise UnsafeArchive("the archive goes on after its end")
        return len(view)

    def _begin(self, block: bytes) -> None:
        if not any(block):
            self._zero_blocks += 1
            return
        if self._zero_blocks or _number(block[148:156]) != _checksum(block):
            raise UnsafeArchive("the archive is damaged: a header's checksum is wrong")
        kind = block[156:157]
        size = _number(block[124:136])
        if kind in {b"L", b"x"}:
            self._begin_meta(kind, size)
            return
        name = _name(block) if self._next_name is None else self._next_name
        size = size if self._next_size is None else self._next_size
        self._next_name = self._next_size = None
        self._meta_came = False
        self._begin_entry(kind, name, size, mode=_number(block[100:108]), modified_at=_moment(block[136:148]))

    def _begin_meta(self, kind: bytes, size: int) -> None:
        if not 0 < size <= MAX_META_BYTES or self._meta_came:
            raise UnsafeArchive("the archive holds an extended header that no tar writes")
        self._meta_came = True
        self._meta_kind = kind
        self._expect(size)

    def _begin_entry(self, kind: bytes, raw: bytes, size: int, *, mode: int, modified_at: int) -> None:
        if kind not in {b"0", b"\0", b"5"}:
            raise UnsafeArchive(f"{_shown(raw)} is a link, a device or the like (type {kind!r}): only files come down")
        path = self._checked(raw.rstrip(b"/") if kind == b"5" else raw)
        if kind == b"5":
            if size:
                raise UnsafeArchive(f"{_shown(raw)} is a folder with content of its own")
            self._make_folder(path)
            return
        self._bytes += size
        if self._bytes > self._limits.max_bytes:
            raise UnsafeArchive(
                f"the archive holds more than {self._limits.max_bytes} bytes; raise the limit if it may"
            )
        self._open(path, mode)
        self._modified_at = modified_at
        self._expect(size)

    def _expect(self, size: int) -> None:
        self._body_left = size
        self._skip_left = -size % BLOCK_BYTES
        if not size:
            self._end_body()

    def _checked(self, raw: bytes) -> str:
        path = os.fsdecode(raw)
        path = "" if path == "." else path.removeprefix("./")
        parts = path.split("/") if path else []
        if (
            len(raw) > self._limits.max_path_bytes
            or any(part in {"", ".", ".."} or len(os.fsencode(part)) > MAX_NAME_BYTES for part in parts)
            or any(character == "\\" or unicodedata.category(character) == "Cc" for character in path)
        ):
            raise UnsafeArchive(f"{_shown(raw)} is not a name that may be written here")
        return path

    def _make_folder(self, path: str) -> None:
        if path in self._folders:
            return
        parent = path.rpartition("/")[0]
        self._make_folder(parent)
        self._count()
        if path in self.hashes:
            raise UnsafeArchive(f"{path!r} is in the archive as a file and as a folder")
        with self._no_clash(path), Point("file", "unpack a folder"):
            (self._folder / path).mkdir(mode=0o700)
        self._folders.add(path)

    def _open(self, path: str, mode: int) -> None:
        if path in self.hashes or path in self._folders:
            raise UnsafeArchive(f"{path!r} is in the archive twice")
        self._make_folder(path.rpartition("/")[0])
        self._count()
        permissions = 0o700 if mode & 0o100 else 0o600
        with self._no_clash(path), Point("file", "unpack a file"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(self._folder / path, flags, permissions), "wb")
        self._path = path
        self._hash = hashlib.sha256()

    def _count(self) -> None:
        if len(self.hashes) + len(self._folders) > self._limits.max_files:
            raise UnsafeArchive(
                f"the archive holds more than {self._limits.max_files} files; raise the limit if it may"
            )

    @contextlib.contextmanager
    def _no_clash(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, NotADirectoryError) as error:
            raise UnsafeArchive(f"{path!r} and another name are the same on this file system") from error

    def _end_body(self) -> None:
        if self._meta_kind:
            self._read_meta()
        elif self._file is not None:
            os.utime(self._file.fileno(), (self._modified_at, self._modified_at))
            self.close()
            self.hashes[self._path] = self._hash.hexdigest()

    def _read_meta(self) -> None:
        meta, kind = bytes(self._meta), self._meta_kind
        self._meta, self._meta_kind = bytearray(), b""
        if kind == b"L":
            self._next_name = meta.rstrip(b"\0")
            return
        records = _pax_records(meta)
        self._next_name = records.get(b"path")
        if b"size" in records:
            self._next_size = _decimal(records[b"size"])


def _checksum(block: bytes) -> int:
    return sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # noqa: PLR2004  # GNU: a binary number, for sizes over 8 GiB
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise UnsafeArchive("the archive is damaged: a header holds no number where one belongs")
    return int(digits or b"0", 8)


def _moment(field: bytes) -> int:
    return 0 if field[0] == 0xFF else min(_number(field), 2**33)  # noqa: PLR2004  # GNU: before 1970


def _decimal(digits: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,18}", digits):
        raise UnsafeArchive("the archive is damaged: an extended header's size is no number")
    return int(digits)


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(meta: bytes) -> dict[bytes, bytes]:
    records = {}
    while meta:
        length = _decimal(meta.partition(b" ")[0])
        record, meta = meta[:length], meta[length:]
        key, equals, value = record.partition(b" ")[2].partition(b"=")
        if not equals or not value.endswith(b"\n") or key.startswith(b"GNU.sparse"):
            raise UnsafeArchive("the archive holds an extended header that cannot be read")
        records[key] = value[:-1]
    return records


def _shown(raw: bytes) -> str:
    return repr(os.fsdecode(raw[:200]))
