"""Machines in memory: they run nothing, and answer the commands that gpujobs sends as a real one with a runner would.

The work writes a line, two seconds later another, and ends. What a machine holds dies with it.
"""

import hashlib
import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from gpujobs.clock import StopToken
from gpujobs.errors import Unreachable
from gpujobs.shell_exchange import Completed
from tests.crash.sim_network import SimNetwork, Time

WORK_S = 2.0
KEPT = "kept"  # the file that the work leaves in its folder
_RUNNER = re.compile(r"sh (?P<folder>\S+)/runner\.sh (?P<words>start|pulled|heartbeat|cancel \d+|tail \d+)")
_STATUS = re.compile(r"if \[ -f (?P<folder>\S+)/runner\.sh \]; then answer=")
_INSTALL = re.compile(r"umask 077 && mkdir -p (?P<folder>\S+)/work && cd \S+ && if \[ -d started \]")
_UPLOAD = re.compile(r"mkdir -p (?P<path>\S+) && cd \S+ && tar -xof -")
_LOOK = re.compile(r"if \[ -d (?P<path>\S+) \]; then echo folder")
_HASH = re.compile(r"\{ openssl .*\} <(?P<path>\S+)")
_READ = re.compile(r"cat <(?P<path>\S+)")
PURPOSES = {  # of every command that a run sends
    "install the runner": _INSTALL,
    "ask for the status": _STATUS,
    "upload a folder": _UPLOAD,
    "look at an output": _LOOK,
    "hash an output": _HASH,
    "read an output": _READ,
    "install our key": re.compile(r"sh -c .*authorized_keys", re.DOTALL),
}


def first_line(name: str) -> bytes:
    return f"begun on {name}\n".encode()


def whole_log(name: str) -> bytes:
    """What the work on the machine of an attempt writes, in all."""
    return first_line(name) + b"done\n"


@dataclass(frozen=True, slots=True)
class Start:
    """The work began: on which machine, as which attempt, and which other machines of the run lived then."""

    machine_id: str
    name: str
    beside: tuple[str, ...]


@dataclass
class Work:
    """One attempt's folder."""

    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    installed: bool = False
    started_at: float | None = None
    cancelled_at: float | None = None
    pulled: bool = False

    def ended_at(self) -> float | None:
        ends = [self.cancelled_at] if self.cancelled_at is not None else []
        ends += [self.started_at + WORK_S] if self.started_at is not None else []
        return min(ends, default=None)

    def log(self, now: float) -> bytes:
        if self.started_at is None:
            return b""
        ended_at = self.ended_at()
        until = now if ended_at is None else min(now, ended_at)
        return whole_log(self.name) if until >= self.started_at + WORK_S else first_line(self.name)

    def exit_record(self, now: float) -> dict[str, object] | None:
        ended_at = self.ended_at()
        if not self.installed or ended_at is None or now < ended_at:
            return None
        cut = self.started_at is None or ended_at < self.started_at + WORK_S
        log = self.log(now)
        return {
            "code": 143 if cut else 0,
            "signal": 15 if cut else None,
            "reason": "cancelled" if cut else "exit",
            "started_at": None if self.started_at is None else int(self.started_at),
            "ended_at": int(ended_at),
            "log_size": len(log),
            "sha256": hashlib.sha256(log).hexdigest(),
        }

    def status(self, now: float) -> bytes:
        record = self.exit_record(now)
        begun = "installed" if self.started_at is None else "running"
        phase = "ended" if record else begun if self.installed else "absent"
        lines = [f"phase {phase}", f"log_size {len(self.log(now))}", f"now {int(now)}"]
        lines += [f"exit {json.dumps(record)}"] if record else []
        return "\n".join(lines).encode() + b"\n"


@dataclass
class SimMachine:
    """One machine: alive until its provider ends it."""

    id: str
    time: Time
    on_start: Callable[[str, str], None]  # told the machine's id and the attempt's name, once the work has begun
    on_pulled: Callable[[str], None]
    network: SimNetwork
    alive: bool = True
    keys: set[bytes] = field(default_factory=set)
    works: dict[str, Work] = field(default_factory=dict)

    def run(self, command: str, stdin: bytes, send: Callable[[bytes], object]) -> int:
        """Do a command; give its exit code."""
        if match := _RUNNER.fullmatch(command):
            return self._runner(match["folder"], match["words"].split(), send)
        if match := _STATUS.match(command):
            send(self._work(match["folder"]).status(self.time.monotonic()))
        elif match := _INSTALL.match(command):
            self._install(self._work(match["folder"]), stdin)
        elif match := _UPLOAD.fullmatch(command):
            self._unpack(match["path"], stdin)
        elif match := _LOOK.match(command):
            content = self._read(match["path"])
            told = "missing\n" if content is None else f"file\n{len(content)} 2026-01-01 00:00:00.0 +0000\n"
            send(told.encode())
        elif match := _HASH.fullmatch(command) or _READ.fullmatch(command):
            return self._give(match["path"], send, hashed=command.startswith("{"))
        elif "authorized_keys" in command:
            self.keys.add(stdin)
        else:
            raise AssertionError(f"a machine in memory does not know this command: {command}")
        return 0

    def _work(self, folder: str) -> Work:
        folder = folder.strip("'")
        return self.works.setdefault(folder, Work(name=PurePosixPath(folder).name))

    def _runner(self, folder: str, words: Sequence[str], send: Callable[[bytes], object]) -> int:
        work, now = self._work(folder), self.time.monotonic()
        if not work.installed:
            return 127
        match words[0]:
            case "start":
                already = work.started_at is not None or work.cancelled_at is not None
                if not already:
                    work.started_at = now
                    self.on_start(self.id, work.name)
                send(b"already\n" if already else b"started\n")
            case "cancel":
                work.cancelled_at = now if work.cancelled_at is None else work.cancelled_at
            case "pulled":
                work.pulled = True
                self.on_pulled(self.id)
            case "tail":
                self._tail(work, int(words[1]), send)
        return 0

    def _tail(self, work: Work, offset: int, send: Callable[[bytes], object]) -> None:
        while True:
            log = work.log(self.time.monotonic())
            if log[offset:]:
                send(log[offset:])
                offset = len(log)
            if work.exit_record(self.time.monotonic()):
                return
            self.time.move(0.5)
            if not self.alive:
                raise Unreachable("the machine ended under its reader")

    def _install(self, work: Work, stdin: bytes) -> None:
        if work.started_at is None:
            with tarfile.open(fileobj=io.BytesIO(stdin)) as bundle:
                assert {"runner.sh", "run.sh", "env", "limits"} <= set(bundle.getnames())
            work.installed = True

    def _unpack(self, path: str, stdin: bytes) -> None:
        work = self._work(str(PurePosixPath(path.strip("'")).parent))
        with tarfile.open(fileobj=io.BytesIO(stdin)) as archive:
            for member in archive:
                if file := archive.extractfile(member):
                    work.files[member.name.removeprefix("./")] = file.read()

    def _read(self, path: str) -> bytes | None:
        inside = PurePosixPath(path.strip("'"))
        work = self._work(str(inside.parent.parent))
        if work.started_at is not None and inside.name == KEPT:
            return b"kept\n"
        return work.files.get(inside.name)

    def _give(self, path: str, send: Callable[[bytes], object], *, hashed: bool) -> int:
        content = self._read(path)
        if content is None:
            return 1
        send(hashlib.sha256(content).hexdigest().encode() + b" *stdin\n" if hashed else content)
        return 0


@dataclass(frozen=True)
class SimConnection:
    """A login on a machine in memory, in the place of a `shell_connection.Connection`."""

    machine: SimMachine
    host_key: str
    by_password: bool
    where: str = "127.0.0.1:22"

    @property
    def alive(self) -> bool:
        return self.machine.alive

    def close(self) -> None:
        """Nothing is to be ended."""


class SimExchange:
    """One command on a machine in memory, in the place of a `shell_exchange.Exchange`."""

    def __init__(
        self,
        connection: SimConnection,
        *,
        sink: Callable[[bytes], object],
        stop: StopToken | None,
        timeout_s: float | None,
    ) -> None:
        del timeout_s
        self._machine, self._sink, self._stop = connection.machine, sink, stop

    def run(self, command: str, source: Iterable[bytes]) -> Completed:
        if not self._machine.alive:
            raise Unreachable("the machine has ended")
        with self._machine.network.carrying(self._machine.time) as carry:
            code = self._machine.run(command, b"".join(source), lambda data: self._send(carry(data)))
        return Completed(code=code, stdout=b"", stderr=b"")

    def _send(self, data: bytes) -> None:
        if self._stop is not None:
            self._stop.raise_if_stopped()
        if data:
            self._sink(data)


def purpose(command: str) -> str:
    """Say what a command is for; fails for one that nobody has named."""
    if match := _RUNNER.fullmatch(command):
        return f"runner.sh {match['words'].split()[0]}"
    for name, pattern in PURPOSES.items():
        if pattern.match(command):
            return name
    raise AssertionError(f"say in PURPOSES what this command is for: {shlex.quote(command)}")
