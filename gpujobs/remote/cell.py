"""Runs one task of a recipe after another in one process: `python slot.py TASKS_FD DONE_FD`. Python 3.6 or later.

It lies on the machine as slot.py, and foreman.py has it do tasks as it would have that one make calls. For each number
that it reads, it runs run.sh, which lies beside it, in a fresh copy of the work's folder, with the variables that
`tasks/NUMBER` names (JSON: {"envs", "outputs"}), leaves what came of it in `tasks/NUMBER.out`, and writes the number.
Who is told to end lets the task's folder be, as its command left it: `cells/NUMBER`, its output in `cells/NUMBER.log`.
What it leaves: a tar of output.log, metrics.json and the outputs; a record (JSON); and the record's size (4 bytes):

    {"code", "signal", "missing", "trouble", "size", "sha256"}: how the command ended (code is null where it was not
    run), which outputs are not there, what kept it from being run or brought home, and the tar's size and hash
"""

import hashlib
import json
import os
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
from contextlib import suppress
from typing import Any, BinaryIO, Dict, List, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
WORK = os.getcwd()
LENGTH = struct.Struct(">I")
MAX_BYTES = 4 * 2**30 - 2**20  # a frame's content has a limit of its own
LINE_BYTES = 2**13
PIECE_BYTES, PIECES = 2**16, 64
LOOK_EVERY_S = 0.1
SIGNALLED = 128  # and the signal's number: a shell's exit code for a command that was killed
METRICS, METRICS_BYTES = "metrics.json", 2**16
_running = []  # type: List[int]
_ending = []  # type: List[int]


class Unable(Exception):
    """Why a cell could not be run, or not be brought home."""


def main(tasks: int, done: int) -> None:
    """Answer until nobody asks any more; who is told to end hands that on to the command."""
    os.set_inheritable(tasks, False)
    os.set_inheritable(done, False)
    signal.signal(signal.SIGTERM, _hand_on)
    with os.fdopen(tasks, "r") as numbers:
        for line in numbers:
            number = line.strip()
            answer(number, os.path.join(HERE, "tasks", number))
            if _ending:  # whoever ends us fetches what is there
                return
            try:
                os.write(done, line.encode())
            except BrokenPipeError:  # who asked was ended
                return


def _hand_on(number: int, _frame: Any) -> None:
    _ending.append(number)
    for process in _running:
        _signal_group(process, signal.SIGTERM)


def answer(number: str, path: str) -> None:
    """Run one cell, and leave what came of it."""
    with open(path) as file:
        task = json.load(file)
    place = os.path.join(HERE, "cells", number)
    log = os.path.join(HERE, "cells", number + ".log")
    record = {"code": None, "signal": None, "missing": [], "trouble": ""}  # type: Dict[str, Any]
    with open(path + ".out", "wb") as out:
        try:
            shutil.rmtree(place, ignore_errors=True)
            copy_work(place)
            if _ending:
                return
            code = run(number, task["envs"], place, log)
            if _ending:
                return
            record.update(code=code, signal=code - SIGNALLED if code > SIGNALLED else None)
            record["missing"] = pack(task["outputs"], place, log, out)
        except (OSError, Unable, shutil.Error) as error:
            record["trouble"] = str(error)[:2000]
            out.seek(0)
            out.truncate()
        seal(out, path + ".out", record)
    if _ending:
        return
    shutil.rmtree(place, ignore_errors=True)
    for name in (log, path):
        with suppress(OSError):
            os.unlink(name)


def copy_work(place: str) -> None:
    """Copy the work's folder, without ourselves and without what is neither file nor folder nor link."""
    os.makedirs(os.path.dirname(place), exist_ok=True)

    def left_out(folder: str, names: List[str]) -> List[str]:
        paths = {name: os.path.join(folder, name) for name in names}
        return [name for name, path in paths.items() if path == HERE or not _goes_along(path)]

    shutil.copytree(WORK, place, symlinks=True, ignore=left_out)
    with suppress(OSError):  # one that came up with the folder is not this cell's
        os.unlink(os.path.join(place, METRICS))


def _goes_along(path: str) -> bool:
    mode = os.lstat(path).st_mode
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


def run(number: str, envs: Dict[str, str], place: str, log: str) -> int:
    """Run the command to its end, its output into `log` and, each line with the task's number, into ours."""
    shell = shutil.which("bash") or shutil.which("sh") or "/bin/sh"
    process = subprocess.Popen(
        [shell, "-e", os.path.join(HERE, "run.sh")],
        cwd=place,
        env=dict(os.environ, **envs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that what it leaves running can be ended with it
    )
    _running.append(process.pid)
    try:
        with open(log, "wb") as file:
            follow(process, file, "[{}] ".format(number).encode())
        code = process.wait()
        return code if code >= 0 else SIGNALLED - code
    finally:
        _running.remove(process.pid)
        _signal_group(process.pid, signal.SIGKILL)


def _signal_group(process: int, which: int) -> None:
    with suppress(OSError):
        os.killpg(process, which)


def follow(process: "subprocess.Popen[bytes]", log: BinaryIO, prefix: bytes) -> None:
    """Take what is written until the command has ended; what it leaves running is not waited for."""
    source = process.stdout.fileno() if process.stdout is not None else -1
    os.set_blocking(source, False)
    held, ended, open_yet = b"", False, True
    while open_yet and not ended:
        select.select([source], [], [], LOOK_EVERY_S)
        ended = process.poll() is not None
        data, open_yet = read_all(source)
        log.write(data)
        whole, line_end, held = (held + data).rpartition(b"\n")
        if line_end:
            tell(whole, prefix)
        if len(held) > LINE_BYTES:
            tell(held, prefix)
            held = b""
    if held:
        tell(held, prefix)
    if process.stdout is not None:
        process.stdout.close()


def read_all(source: int) -> Tuple[bytes, bool]:
    """Give what is there by now, up to a limit, and whether more may come."""
    pieces = []  # type: List[bytes]
    try:
        while len(pieces) < PIECES:
            data = os.read(source, PIECE_BYTES)
            if not data:
                return b"".join(pieces), False
            pieces.append(data)
    except BlockingIOError:
        pass
    return b"".join(pieces), True


def tell(lines: bytes, prefix: bytes) -> None:
    """Write lines into the machine's log."""
    sys.stdout.buffer.write(b"".join(prefix + line + b"\n" for line in lines.split(b"\n")))
    sys.stdout.buffer.flush()


def pack(outputs: Dict[str, str], place: str, log: str, out: BinaryIO) -> List[str]:
    """Write the tar, and name the outputs that are not there."""
    metrics = os.path.join(place, METRICS)
    wanted = {"output.log": log}
    if os.path.isfile(metrics) and os.path.getsize(metrics) <= METRICS_BYTES:
        wanted[METRICS] = metrics
    wanted.update({name: os.path.join(place, path) for name, path in outputs.items()})
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, dereference=True) as tar:
        for name, path in wanted.items():
            if os.path.exists(path):
                add(tar, name, path)
    return [name for name, path in outputs.items() if not os.path.exists(os.path.join(place, path))]


def add(tar: tarfile.TarFile, name: str, path: str) -> None:
    """Put a file, or a folder with what is in it, into the tar; links go as what they point at, if that is there."""
    if os.path.isdir(path):
        tar.addfile(tar.gettarinfo(path, name))
        for one in sorted(os.listdir(path)):
            add(tar, name + "/" + one, os.path.join(path, one))
    elif os.path.isfile(path):
        with open(path, "rb") as file:
            info = tar.gettarinfo(name, name, file)
            if tar.offset + info.size > MAX_BYTES:
                raise Unable(
                    "its outputs have more than {} bytes, which is what a task may bring home".format(MAX_BYTES)
                )
            tar.addfile(info, file)


def seal(out: BinaryIO, path: str, record: Dict[str, Any]) -> None:
    """Write the record behind the tar."""
    out.flush()
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(PIECE_BYTES), b""):
            total.update(piece)
    text = json.dumps(dict(record, size=out.tell(), sha256=total.hexdigest())).encode()
    out.write(text + LENGTH.pack(len(text)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
