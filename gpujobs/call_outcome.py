"""What came of a call: its value, its exception, or why there is neither; read from a run that has ended."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpujobs.call_decode import decode
from gpujobs.call_error import rebuild
from gpujobs.call_fit import fit
from gpujobs.errors import (
    BadInput,
    BadResult,
    Cancelled,
    GpujobsError,
    JobFailed,
    KilledRemotely,
    MachineLost,
    NoCapacity,
    OutOfMemory,
    OverLimit,
)
from gpujobs.ledger_rows import Run
from gpujobs.progress import clean

_HEAD = b"gpujobs call 1 "
_HEAD_BYTES = 64
_TOLD_BYTES = 4000
_NO_RESULT = 3  # call.py's exit code where the call was made, and what it returned cannot go
_BY_CODE: Mapping[int, type[GpujobsError]] = {
    kind.exit_code: kind for kind in (JobFailed, BadInput, NoCapacity, Cancelled, OverLimit, MachineLost)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a call's run ended, by the ledger; `code` is of the work's process, None where nobody saw it end."""

    state: str
    exit_code: int
    error: str
    code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the caller expects of a result."""

    hint: Any
    trust_remote: bool
    as_fields: bool = False  # objects of the caller's classes stay Fields: it is only looked at


def ending_of(run: Run, codes: Sequence[int | None]) -> Ending:
    """Give how a run ended; `codes` are the exit codes of its attempts."""
    code = codes[-1] if codes else None
    return Ending(state=run.state, exit_code=run.exit_code or 0, error=run.error, code=code)


def result_of(folder: Path, ending: Ending, wanted: Wanted) -> Any:
    """Give what the function returned, from the pulled folder `folder`; raises what it raised, or why there is nothing.

    Raises:
        BadResult: the result cannot come back, or what came is none.
        RemoteError: the function raised what cannot be made here.
        KilledRemotely, OutOfMemory: its process was ended.
        BadInput: the machine's Python will not do.
        Cancelled, OverLimit, MachineLost, NoCapacity, JobFailed: how the run ended.
    """
    told = _line(folder / "refused")
    if ending.exit_code == JobFailed.exit_code and told:
        raise BadResult(told) if ending.code == _NO_RESULT else BadInput(told)
    outcome = folder / "outcome"
    if ending.exit_code == JobFailed.exit_code and ending.code == 1 and outcome.exists():
        with outcome.open("rb") as file:
            if _kind(file) == b"error":
                raise rebuild(decode(file).value)
    if ending.state != "succeeded":
        raise _why_none(ending, _line(folder / "killed"))
    return _value(outcome, wanted)


def _value(path: Path, wanted: Wanted) -> Any:
    try:
        with path.open("rb") as file:
            return _value_in(file, _kind(file), wanted)
    except OSError as error:
        raise BadResult(f"the machine left no result that can be read ({error.strerror})") from error


def _value_in(file: BinaryIO, kind: bytes, wanted: Wanted) -> Any:
    if kind == b"pickle" and wanted.trust_remote:
        return pickle.load(file)  # noqa: S301 - what trust_remote=True asks for
    if kind != b"value":
        raise BadResult(f"what came for a result is no value, but {kind[:20]!r}")
    decoded = decode(file)
    return fit(decoded.value, wanted.hint) if decoded.has_fields and not wanted.as_fields else decoded.value


def result_in(file: BinaryIO, wanted: Wanted) -> Any:
    """Give what a task returned, from the one file that a slot left, read from its beginning; raises as `result_of`."""
    file.seek(0)
    kind = _kind(file)
    if kind == b"error":
        raise rebuild(decode(file).value)
    if kind in {b"refused", b"no-result"}:
        told = clean(str(file.read(_TOLD_BYTES), "utf-8", "replace")).strip()
        raise BadResult(told) if kind == b"no-result" else BadInput(told)
    return _value_in(file, kind, wanted)


def _kind(file: BinaryIO) -> bytes:
    head = file.readline(_HEAD_BYTES)
    return head.removeprefix(_HEAD).removesuffix(b"\n") if head.startswith(_HEAD) else b""


def _why_none(ending: Ending, killed: str) -> GpujobsError:
    if ending.exit_code == JobFailed.exit_code and ending.code is not None and ending.code > 128:  # noqa: PLR2004
        signal = ending.code - 128
        if _counted_more(killed):
            return OutOfMemory(
                f"the machine's memory was used up, so its Linux ended the function: {ending.error}", signal=signal
            )
        return KilledRemotely(ending.error, signal=signal)
    return _BY_CODE.get(ending.exit_code, GpujobsError)(ending.error)


def _counted_more(killed: str) -> bool:
    """Say whether Linux ended a process for its memory meanwhile: `killed` is an exit code and two counts."""
    counts = killed.split()[1:]
    return len(counts) == 2 and all(count.isdecimal() for count in counts) and int(counts[1]) > int(counts[0])  # noqa: PLR2004


def _line(path: Path) -> str:
    """Read a short text that the machine left; "" where it left none."""
    try:
        with path.open("rb") as file:
            return clean(str(file.read(_TOLD_BYTES), "utf-8", "replace")).strip()
    except OSError:
        return ""
