"""Machines in memory: they run nothing, and answer the commands that gpujobs sends as a real one with a runner would.

The work writes a line, some seconds later another, and ends. What a machine holds dies with it.
"""

import base64
import hashlib
import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from gpujobs.clock import StopToken
from gpujobs.errors import Unreachable
from gpujobs.shell_exchange import Completed
from tests.crash import sim_files
from tests.crash.sim_files import Send, SimFiles
from tests.crash.sim_network import SimNetwork, Time

WORK_S = 2.0
KEPT = "kept"  # the file that the work leaves in its folder
MADE = "made"  # the folder that it leaves there
LEFT: Mapping[str, bytes] = {KEPT: b"kept\n", f"{MADE}/one": b"1\n", f"{MADE}/deep/two": b"22\n"}
_RUNNER = re.compile(r"sh (?P<folder>\S+)/runner\.sh (?P<words>start|pulled|heartbeat|cancel \d+|tail \d+)")
_STATUS = re.compile(r"if \[ -f (?P<folder>\S+)/runner\.sh \]; then answer=")
_INSTALL = re.compile(r"umask 077 && mkdir -p (?P<folder>\S+)/work && cd \S+ && if \[ -d started \]")
_LIMIT = re.compile(rb"max_duration_s=(\d+)")
_PAYLOAD = re.compile(r"echo (\S+) \| base64 -d")
_TIMES = re.compile(r"^(boot_grace_s|linger_s|hard_limit_s)=(\d+)$", re.MULTILINE)
PURPOSES: Mapping[str, "re.Pattern[str]"] = {  # of every command that a run sends
    "install the runner": _INSTALL,
    "ask for the status": _STATUS,
    "install our key": re.compile(r"sh -c .*authorized_keys", re.DOTALL),
    **sim_files.PURPOSES,
}


def first_line(name: str) -> bytes:
    return f"begun on {name}\n".encode()


def whole_log(name: str) -> bytes:
    """What the work on the machine of an attempt writes, in all."""
    return first_line(name) + b"done\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What the work does: how long it takes, and the exit code that it ends with."""

    seconds: float = WORK_S
    code: int = 0


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
    script: Script
    installed: bool = False
    limit_s: float = float("inf")
    started_at: float | None = None
    cancelled_at: float | None = None
    pulled: bool = False
    heartbeat_at: float = float("-inf")

    def end(self) -> tuple[float, str]:
        """Say when the work ends, and for what reason; at infinity where it has not begun."""
        infinity = float("inf")
        began_at = infinity if self.started_at is None else self.started_at
        ends = [(began_at + self.script.seconds, "exit"), (began_at + self.limit_s, "max_duration")]
        ends.append((infinity if self.cancelled_at is None else self.cancelled_at, "cancelled"))
        return min(ends, key=lambda one: one[0])

    def log(self, now: float) -> bytes:
        if self.started_at is None:
            return b""
        at, reason = self.end()
        return whole_log(self.name) if reason == "exit" and now >= at else first_line(self.name)

    def exit_record(self, now: float) -> dict[str, object] | None:
        at, reason = self.end()
        if not self.installed or now < at:
            return None
        log = self.log(now)
        return {
            "code": self.script.code if reason == "exit" else 143,
            "signal": None if reason == "exit" else 15,
            "reason": reason,
            "started_at": None if self.started_at is None else int(self.started_at),
            "ended_at": int(at),
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
    network: SimNetwork
    keeper: Mapping[str, int] | None = None  # the times of the command that keeps it alive; None: it has none
    script: Script = field(default_factory=Script)
    alive: bool = True
    keys: set[bytes] = field(default_factory=set)
    works: dict[str, Work] = field(default_factory=dict)
    disks: SimFiles = field(default_factory=SimFiles)

    def __post_init__(self) -> None:
        self._booted_at = self.time.monotonic()

    def run(self, command: str, stdin: bytes, send: Send) -> int:
        """Do a command; give its exit code."""
        if match := _RUNNER.fullmatch(command):
            return self._runner(match["folder"], match["words"].split(), send)
        if (code := self.disks.do(command, stdin, send)) is not None:
            return code
        if match := _STATUS.match(command):
            send(self._work(match["folder"]).status(self.time.monotonic()))
        elif match := _INSTALL.match(command):
            self._install(self._work(match["folder"]), stdin)
        elif "authorized_keys" in command:
            self.keys.add(stdin)
        else:
            raise AssertionError(f"a machine in memory does not know this command: {command}")
        return 0

    def is_needed(self) -> bool:
        """Say whether its keeper goes on, as remote/keeper.sh does."""
        if self.keeper is None:
            return True
        now, works = self.time.monotonic(), list(self.works.values())
        begun = [one for one in works if one.started_at is not None]
        ends = [one.end()[0] for one in begun if one.end()[0] <= now]
        quiet_s = now - max([self._booted_at, *ends, *(one.heartbeat_at for one in works)])
        if now - self._booted_at >= self.keeper["hard_limit_s"]:
            return False
        if not begun:
            return quiet_s < self.keeper["boot_grace_s"]
        if len(ends) < len(begun):
            return True
        return not all(one.pulled for one in begun) and quiet_s < self.keeper["linger_s"]

    def _work(self, folder: str) -> Work:
        folder = folder.strip("'")
        return self.works.setdefault(folder, Work(name=PurePosixPath(folder).name, script=self.script))

    def _runner(self, folder: str, words: Sequence[str], send: Send) -> int:
        work, now = self._work(folder), self.time.monotonic()
        if not work.installed:
            return 127
        match words[0]:
            case "start":
                already = work.started_at is not None or work.cancelled_at is not None
                if not already:
                    self._start(work, folder, now)
                send(b"already\n" if already else b"started\n")
            case "cancel":
                work.cancelled_at = now if work.cancelled_at is None else work.cancelled_at
            case "heartbeat":
                work.heartbeat_at = now
            case "pulled":
                work.pulled = True
            case "tail":
                self._tail(work, int(words[1]), send)
        return 0

    def _start(self, work: Work, folder: str, now: float) -> None:
        work.started_at = now
        self.disks.content |= {f"{folder.strip(chr(39))}/work/{path}": data for path, data in LEFT.items()}
        self.on_start(self.id, work.name)

    def _tail(self, work: Work, offset: int, send: Send) -> None:
        while True:
            log = work.log(self.time.monotonic())
            if log[offset:]:
                send(log[offset:])
                offset = len(log)
            if work.exit_record(self.time.monotonic()):
                return
            self.time.move(0.5)
            send(b"")  # whoever reads looks at the clock, too
            if not self.alive:
                raise Unreachable("the machine ended under its reader")

    def _install(self, work: Work, stdin: bytes) -> None:
        if work.started_at is not None or work.cancelled_at is not None:
            return
        with tarfile.open(fileobj=io.BytesIO(stdin)) as bundle:
            assert {"runner.sh", "run.sh", "env", "limits"} <= set(bundle.getnames())
            limits = bundle.extractfile("limits")
            found = _LIMIT.search(limits.read()) if limits else None
        assert found is not None
        work.installed, work.limit_s = True, float(found[1])


def keeper_times(command: str) -> Mapping[str, int]:
    """Read the times out of the command that keeps a container alive."""
    payload = _PAYLOAD.search(command)
    assert payload is not None
    text = base64.b64decode(payload[1]).decode()
    return {name: int(value) for name, value in _TIMES.findall(text)}


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
            code = self._machine.run(command, b"".join(source), lambda data: self._send(carry(data) if data else b""))
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
