"""What a machine says of its own files: how many and how big, whether they rest, and their hashes, made meanwhile."""

import concurrent.futures
import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpujobs.clock import StopToken
from gpujobs.errors import Cancelled, Missing, RemoteFailure, TransferFailed
from gpujobs.shell import Shell, quote_path, readable
from gpujobs.transfer_unpack import Limits

MAX_LINE_BYTES = 16 * 1024
WAIT_S = 0.1

# Hashes its standard input. Where there is openssl it is several times faster than the sha256sum of most systems; a
# failure in the middle leaves sha256sum only the rest, which gives a hash that nothing matches.
HASH = "{ openssl dgst -sha256 -r 2>/dev/null || sha256sum; }"
# `find -L` follows links, since what points at a result is asked for too; sockets, pipes and dead links stay behind.
_FILES = "find -L . -type f -print0 2>/dev/null | xargs -0 -r"
_STAMP = "stat -L -c '%s %y'"

_HASH_LINE = re.compile(rb"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
_STAMP_LINE = re.compile(rb"([0-9]{1,18}) [0-9:. +-]+")

Hashes = dict[str, str]  # relative path to sha256; "" is the one file that was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was at a path on a machine at one moment; two that are equal mean that nothing was written between them."""

    kind: str  # "file" or "folder"
    total_bytes: int
    stamps: tuple[bytes, ...]  # size and time of the last write of each file, sorted

    @property
    def files(self) -> int:
        """How many files there are."""
        return len(self.stamps)


def look(shell: Shell, remote: str, limits: Limits) -> Look:
    """See what is at `remote`.

    Raises:
        Missing: nothing, or neither a file nor a folder.
        TransferFailed: more files than `limits` allow.
        RemoteFailure: it cannot be read.
        Unreachable: the connection was lost.
    """
    path = quote_path(remote)
    command = (
        f"if [ -d {path} ]; then echo folder; cd {path} && {_FILES} {_STAMP}; "
        f"elif [ -f {path} ]; then echo file; {_STAMP} {path}; else echo missing; fi"
    )
    kind, *stamps = _lines(shell, command, f"looking at {remote}", limits) or [b""]
    if kind not in {b"folder", b"file"}:
        raise Missing(f"{remote} does not exist on the machine")
    sizes = [_size(stamp) for stamp in stamps]
    return Look(kind=kind.decode(), total_bytes=sum(sizes), stamps=tuple(sorted(stamps)))


@contextlib.contextmanager
def hashes_meanwhile(
    shell: Shell, remote: str, kind: str, limits: Limits
) -> Iterator[Callable[[StopToken | None], Hashes]]:
    """Let the machine hash `remote` on a channel of its own while the block runs.

    Gives a function that waits for the hashes; its errors are those of `look` and the stop's own. Whatever still runs
    here at the end of the block is given up.
    """
    over = StopToken()
    path = quote_path(remote)
    command = f"{HASH} <{path}" if kind == "file" else f"cd {path} && {_FILES} sha256sum"

    def work() -> Hashes:
        lines = _lines(shell, command, f"hashing {remote}", limits, stop=over)
        return {"" if kind == "file" else name: digest for name, digest in map(_hash_line, lines)}

    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpujobs-hashes") as pool:
        hashing = pool.submit(work)
        try:
            yield lambda stop: _result(hashing, stop)
        finally:
            over.stop(Cancelled("nobody waits for the hashes any more"))


def compare(remote: str, wanted: Hashes, came: Hashes) -> None:
    """Raise TransferFailed unless exactly what the machine hashed has come."""
    differing = sorted(name for name in wanted.keys() | came.keys() if wanted.get(name) != came.get(name))
    if differing:
        raise TransferFailed(
            f"{remote}: {len(differing)} of {len(wanted)} files are not as the machine hashed them, first "
            f"{differing[0] or remote!r}; something wrote there meanwhile: pull again"
        )


def _result(hashing: "concurrent.futures.Future[Hashes]", stop: StopToken | None) -> Hashes:
    while not concurrent.futures.wait([hashing], WAIT_S).done:
        if stop is not None:
            stop.raise_if_stopped()
    return hashing.result()


def _size(stamp: bytes) -> int:
    match = _STAMP_LINE.fullmatch(stamp)
    if match is None:
        raise RemoteFailure(f"stat on the machine said {readable(stamp[:200])!r}")
    return int(match[1])


def _hash_line(line: bytes) -> tuple[str, str]:
    match = _HASH_LINE.fullmatch(line)
    if match is None:
        raise RemoteFailure(f"sha256sum on the machine said {readable(line[:200])!r}")
    name = match[3]
    if match[1]:  # GNU escapes a backslash and a newline in a name, and marks the line with a backslash
        name = name.replace(b"\\n", b"\n").replace(b"\\\\", b"\\")
    return os.fsdecode(name.removeprefix(b"./")), match[2].decode()


def _lines(shell: Shell, command: str, what: str, limits: Limits, *, stop: StopToken | None = None) -> list[bytes]:
    lines: list[bytes] = []
    rest = b""

    def feed(data: bytes) -> None:
        nonlocal rest
        *whole, rest = (rest + data).split(b"\n")
        lines.extend(whole)
        if len(lines) > limits.max_files + 1 or len(rest) > MAX_LINE_BYTES:
            raise TransferFailed(
                f"the machine lists more than {limits.max_files} files, or endless names; "
                "raise the limit or ask for less"
            )

    shell.stream_out(command, feed, stop=stop).require(what)
    return lines
