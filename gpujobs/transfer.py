"""Folders and files up to a machine and down from it: one stream each, checked, and never half in place."""

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gpujobs.clock import StopToken
from gpujobs.crash import Point
from gpujobs.errors import BadInput, TransferFailed, UnsafeArchive
from gpujobs.shell import Shell, quote_path, readable
from gpujobs.transfer_check import HASH, Hashes, Look, compare, hashes_meanwhile, look
from gpujobs.transfer_pack import survey, tar_stream
from gpujobs.transfer_place import discard, fresh_folder, swap, tidy
from gpujobs.transfer_unpack import Limits, Unpacker

__all__ = ["Limits", "Progress", "pull", "push_file", "push_folder"]

Progress = Callable[[int, int | None], object]  # bytes done, bytes in all (None: not known)

READ_BYTES = 256 * 1024
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_DRAFTS = ".gj-" + "[0-9a-f]" * 8  # a pattern of the machine's shell: what follows a file's name in those of its drafts
TAR_SAW_A_CHANGE = 1  # GNU tar's exit code for "file changed as we read it"

_PACK = r"""if tar --version 2>/dev/null | grep -q 'GNU tar'; then
  find -L . \( -type f -o -type d \) -print0 2>/dev/null |
    tar --format=gnu --hard-dereference --no-recursion --null -chf - -T -
else
  find -L . \( -type f -o -type d \) -print 2>/dev/null | tar --no-recursion -chf - -T -
fi"""


def push_folder(
    shell: Shell, local: Path, remote: str, *, progress: Progress | None = None, stop: StopToken | None = None
) -> None:
    """Send what is in `local` into the folder `remote`, which is made if missing; what is there already may stay.

    `.gitignore` and `.gpujobsignore` are honoured in every folder, `.git` never goes. Links that point inside go as
    links.

    Args:
        shell: the machine.
        local: a folder here.
        remote: a path there; relative to the home folder, or `~/…`, or absolute.
        progress: told of bytes done and bytes in all, by the tar stream's count.
        stop: ends it early, with the stop's own error.

    Raises:
        BadInput: `local` is no folder, or a link points out of it.
        TransferFailed: a file changed meanwhile.
        RemoteFailure: the machine could not take it (full disk, no tar).
        Unreachable: the connection was lost; call again.
    """
    entries = survey(local)
    total = sum(entry.stream_bytes for entry in entries)
    source = _counted(tar_stream(local, entries), progress, total)
    command = f"mkdir -p {quote_path(remote)} && cd {quote_path(remote)} && tar -xof -"
    shell.stream_in(command, source, stop=stop).require(f"unpacking {local} in {remote}")


def push_file(
    shell: Shell,
    local: Path,
    remote: str,
    *,
    mode: int = 0o644,
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> None:
    """Send one file; at `remote` there is either what was there before, or all of the new file with its hash checked.

    What an earlier push to `remote` that was cut off left beside it is removed.

    Raises:
        BadInput: `local` cannot be read, or `remote` is a folder.
        TransferFailed: what arrived is not what was sent.
        RemoteFailure: the machine could not take it.
        Unreachable: the connection was lost; call again.
    """
    target, temporary = quote_path(remote), quote_path(f"{remote}.gj-{secrets.token_hex(4)}")
    hasher = hashlib.sha256()
    try:
        size = local.stat().st_size
        source = _counted(_hashed(_pieces(local), hasher), progress, size)
        command = (
            f"! [ -d {target} ] || {{ echo 'it is a folder' >&2; exit 1; }}; umask 077; "
            f'mkdir -p "$(dirname -- {target})" && rm -f {target}{_DRAFTS} && '
            f"tee {temporary} | {HASH} && wc -c <{temporary}"
        )
        sent = shell.stream_in(command, source, stop=stop).require(f"writing {remote}")
    except OSError as error:
        raise BadInput(f"{local} cannot be sent: {error.strerror}") from error
    if sent.stdout.split()[::2] != [hasher.hexdigest().encode(), b"%d" % size]:  # tee's own failure shows in the size
        shell.run(f"rm -f {temporary}")
        raise TransferFailed(f"{local} did not arrive whole as {remote}: {readable(sent.stderr) or 'send it again'}")
    shell.check(f"chmod {mode:o} {temporary} && mv -f {temporary} {target}", what=f"putting {remote} in place")


def pull(
    shell: Shell,
    remote: str,
    local: Path,
    *,
    limits: Limits | None = None,
    progress: Progress | None = None,
    stop: StopToken | None = None,
) -> None:
    """Fetch the file or folder `remote` as `local`: whole and with every hash checked, or not at all.

    What stood at `local` stays untouched until then, and is replaced as a whole: give it a place of its own. Links on
    the machine come as what they point at.

    Raises:
        Missing: there is nothing at `remote`.
        RemoteFailure: it cannot be read; the message names it.
        TransferFailed: it changed meanwhile, or does not fit here.
        UnsafeArchive: the machine sent what must not be written here.
        Unreachable: the connection was lost; call again.
    """
    limits = limits or Limits()
    local.parent.mkdir(parents=True, exist_ok=True)
    tidy(local)
    seen = look(shell, remote, limits)
    _check_room(seen, remote, local, limits)
    place = fresh_folder(local)
    try:
        new, step = place / "new", _steps(progress, seen.total_bytes)
        with hashes_meanwhile(shell, remote, seen.kind, limits) as hashes:
            fetch = _fetch_folder if seen.kind == "folder" else _fetch_file
            came = fetch(shell, remote, new, limits=limits, step=step, stop=stop)
            compare(remote, hashes(stop), came)
        if look(shell, remote, limits) != seen:  # else hash and stream could both hold half of a change
            raise TransferFailed(f"{remote}: files are not as the machine hashed them any more; pull again")
        swap(new, local)
    except OSError as error:
        raise TransferFailed(f"{remote} could not be written as {local}: {error.strerror or error}") from error
    finally:
        discard(place)


def _check_room(seen: Look, remote: str, local: Path, limits: Limits) -> None:
    if seen.files > limits.max_files or seen.total_bytes > limits.max_bytes:
        raise TransferFailed(
            f"{remote} holds {seen.total_bytes} bytes in {seen.files} files, over the limit of {limits.max_bytes} "
            f"bytes or {limits.max_files} files; raise the limit or ask for less"
        )
    if seen.total_bytes > (free := shutil.disk_usage(local.parent).free):
        raise TransferFailed(f"{remote} holds {seen.total_bytes} bytes, and {local.parent} has room for {free}")


def _fetch_folder(
    shell: Shell, remote: str, place: Path, *, limits: Limits, step: Callable[[int], None], stop: StopToken | None
) -> Hashes:
    with Point("file", "make folder", place.name):
        place.mkdir(mode=0o700)
    unpacker = Unpacker(place, limits)

    def take(data: bytes) -> None:
        unpacker.feed(data)
        step(len(data))

    try:
        packed = shell.stream_out(f"cd {quote_path(remote)} && {_PACK}", take, stop=stop)
        if packed.code != TAR_SAW_A_CHANGE:  # then the hashes decide whether it matters
            packed.require(f"packing {remote}")
        unpacker.finish()
    finally:
        unpacker.close()
    return unpacker.hashes


def _fetch_file(
    shell: Shell, remote: str, place: Path, *, limits: Limits, step: Callable[[int], None], stop: StopToken | None
) -> Hashes:
    hasher = hashlib.sha256()
    came = 0
    with Point("file", "write", place.name), os.fdopen(os.open(place, _NEW, 0o600), "wb") as file:

        def take(data: bytes) -> None:
            nonlocal came
            came += len(data)
            if came > limits.max_bytes:
                raise UnsafeArchive(f"{remote} goes on after {limits.max_bytes} bytes; raise the limit if it may")
            file.write(data)
            hasher.update(data)
            step(len(data))

        shell.stream_out(f"cat <{quote_path(remote)}", take, stop=stop).require(f"reading {remote}")
    return {"": hasher.hexdigest()}


def _pieces(local: Path) -> Iterator[bytes]:
    if not stat.S_ISREG(local.stat().st_mode):
        raise BadInput(f"{local} is not a regular file")
    with local.open("rb", buffering=0) as file:
        while data := file.read(READ_BYTES):
            yield data


def _hashed(source: Iterable[bytes], hasher: "hashlib._Hash") -> Iterator[bytes]:
    for data in source:
        hasher.update(data)
        yield data


def _counted(source: Iterable[bytes], progress: Progress | None, total: int) -> Iterator[bytes]:
    step = _steps(progress, total)
    for data in source:
        yield data
        step(len(data))


def _steps(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def step(size: int) -> None:
        nonlocal done
        done = min(done + size, total)
        if progress is not None:
            progress(done, total)

    return step
