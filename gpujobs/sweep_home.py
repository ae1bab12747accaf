"""What a task of a recipe left on its machine, brought home: checked, unpacked by hand, and put in place as a whole."""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpujobs.crash import Point
from gpujobs.errors import BadResult, TransferFailed
from gpujobs.remote import IN_WORKDIR
from gpujobs.transfer_place import discard, fresh_folder, swap, tidy
from gpujobs.transfer_unpack import Limits, Unpacker

METRICS = "metrics.json"
_LENGTH = struct.Struct(">I")  # as remote/cell.py writes it
_RECORD_BYTES = 2**20
_PIECE_BYTES = 2**18
_METRICS_BYTES, _METRICS_MOST, _TEXT_CHARS = 2**16, 50, 200
_TOLD_CHARS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """How a task's command ended, by the machine's own record."""

    code: int | None  # None: it was not run
    signal: int | None
    missing: tuple[str, ...]  # outputs that it did not write
    trouble: str  # what kept it from being run, or brought home
    size: int
    sha256: str

    @property
    def failure(self) -> str:
        """Say why it counts as failed; "" where it does not."""
        if self.trouble:
            return self.trouble
        if self.signal:
            return f"the command was killed by signal {self.signal}"
        if self.code != 0:
            return f"the command ended with exit code {self.code}"
        return f"outputs that the command did not write: {', '.join(self.missing)}" if self.missing else ""


def bring_home(left: BinaryIO, place: Path) -> Record:
    """Put what a task left into the folder `place`, in the place of what stood there.

    Raises:
        BadResult: it is not what remote/cell.py leaves.
        UnsafeArchive: it holds what must not be written here.
        TransferFailed: it is not as the machine hashed it, or does not fit here.
    """
    record = _record(left)
    if not record.size:
        return record
    tidy(place)
    fresh = fresh_folder(place)
    try:
        new = fresh / "new"
        with Point("file", "make folder", new.name):
            new.mkdir(mode=0o700)
        _unpack(left, record, new)
        swap(new, place)
    except OSError as error:
        raise TransferFailed(f"{place} could not be written: {error.strerror or error}") from error
    finally:
        discard(fresh)
    return record


def left_there(number: int, outputs: Mapping[str, str]) -> Mapping[str, str]:
    """Say by name where in the work's folder that is which a task has written by now."""
    cell = f"{IN_WORKDIR}/cells/{number}"
    paths = {METRICS: METRICS, **outputs}
    return {"output.log": f"{cell}.log", **{name: f"{cell}/{path}" for name, path in paths.items()}}


def read_metrics(place: Path) -> str:
    """Give as JSON the numbers and short texts of a task's metrics.json, its own or one in an output; else none."""
    path = next((path for path in (place / METRICS, *sorted(place.glob(f"*/{METRICS}"))) if path.is_file()), None)
    try:
        if path is None or path.stat().st_size > _METRICS_BYTES:
            return "{}"
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return "{}"
    if not isinstance(found, dict):
        return "{}"
    told = {name: value for name, value in found.items() if _can_be_shown(name) and _is_metric(value)}
    return json.dumps(dict(list(told.items())[:_METRICS_MOST]), ensure_ascii=False)


def _is_metric(value: Any) -> bool:
    if isinstance(value, bool | int | float):
        return abs(value) < float("inf") and value == value and abs(value) < 2**63  # noqa: PLR0124 - NaN
    return isinstance(value, str) and _can_be_shown(value)


def _can_be_shown(text: str) -> bool:
    return text.isprintable() and len(text) <= _TEXT_CHARS


def _record(left: BinaryIO) -> Record:
    total = left.seek(0, 2)
    try:
        left.seek(total - _LENGTH.size)
        (length,) = _LENGTH.unpack(left.read(_LENGTH.size))
        left.seek(total - _LENGTH.size - min(length, _RECORD_BYTES))
        found = json.loads(left.read(length))
        record = Record(
            code=_count(found["code"]),
            signal=_count(found["signal"]),
            missing=tuple(_shown(name) for name in found["missing"]),
            trouble=_shown(found["trouble"]),
            size=_size(found["size"]),
            sha256=str(found["sha256"]),
        )
    except (OSError, ValueError, TypeError, KeyError, struct.error, RecursionError) as error:
        raise BadResult(f"what the machine left of it cannot be read: {error}") from error
    if record.size != total - _LENGTH.size - length:
        raise BadResult(f"what the machine left of it has not the size that it recorded ({record.size})")
    return record


def _count(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= 255:  # noqa: PLR2004 - what a process can end with
        raise ValueError(f"{value!r} is no exit code")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _shown(value: Any) -> str:
    return "".join(one if one.isprintable() else " " for one in str(value)[:_TOLD_CHARS]).strip()


def _unpack(left: BinaryIO, record: Record, folder: Path) -> None:
    unpacker, total, to_come = Unpacker(folder, Limits()), hashlib.sha256(), record.size
    left.seek(0)
    try:
        while to_come:
            piece = left.read(min(_PIECE_BYTES, to_come))
            total.update(piece)
            unpacker.feed(piece)
            to_come -= len(piece)
        unpacker.finish()
    finally:
        unpacker.close()
    if total.hexdigest() != record.sha256:
        raise TransferFailed("what came home is not as the machine hashed it")
