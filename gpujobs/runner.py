"""One attempt's folder on one machine: install the runner there, start the work at most once, follow it to its end."""

import io
import json
import re
import shlex
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast, get_args

from gpujobs.clock import StopToken
from gpujobs.errors import BadInput, RemoteFailure
from gpujobs.remote import runner_text
from gpujobs.shell import Shell, quote_path
from gpujobs.shell_exchange import readable
from gpujobs.variables import flaw_of

Phase = Literal["absent", "installed", "setup", "running", "ended", "lost"]
Reason = Literal["exit", "setup", "cancelled", "max_duration", "lease", "idle", "lost"]

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What one attempt runs; `setup` and `run` are scripts for `bash -e`, in the folder `work`."""

    run: str
    setup: str = ""
    envs: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_duration_s: int
    grace_s: int = 10  # between TERM and KILL at max_duration or the end of the lease
    lease_s: int = 0  # the work stops when no heartbeat has come for so long; 0: never
    idle_s: int = 0  # the work stops when no GPU was used for so long, set-up not counted; 0: never
    about: str = "{}"  # JSON that describes the run to whoever finds the machine; no secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitRecord:
    """How the work ended, in the machine's own words; the times are by the machine's clock, which may be wrong."""

    code: int  # of the last script, 128 + signal when a signal ended it
    signal: int | None
    reason: Reason
    started_at: datetime | None
    ended_at: datetime
    log_size: int  # bytes
    sha256: str  # of the whole log


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Where an attempt stands: `lost` means that its supervisor was killed, so that nobody knows how the work ended."""

    phase: Phase
    log_size: int  # bytes so far
    exit: ExitRecord | None


class Runner:
    """One attempt's folder on one machine; the head of remote/runner.sh is the contract of what lies in it."""

    def __init__(self, shell: Shell, *, base: str, name: str) -> None:
        """Speak of the folder `base`/`name`; nothing is sent yet."""
        self._shell = shell
        self.name = name
        self.folder = f"{base.rstrip('/')}/{name}"
        self._quoted = quote_path(self.folder)

    @property
    def work(self) -> str:
        """The work's current directory: push the workdir there, pull relative outputs from there."""
        return f"{self.folder}/work"

    def install(self, spec: RunSpec) -> None:
        """Send the runner, the scripts and the variables; idempotent, and without effect once the work has started.

        Raises:
            BadInput: a variable's name or value cannot be one.
            RemoteFailure: the machine could not take it (full disk, no tar).
        """
        command = (
            f"umask 077 && mkdir -p {self._quoted}/work && cd {self._quoted} && "
            "if [ -d started ]; then cat >/dev/null; else tar -xof - && chmod 755 work && touch installed; fi"
        )
        self._shell.check(command, what=f"installing the runner in {self.folder}", stdin=_bundle(spec))

    def start(self) -> bool:
        """Start the work; True if this call did, False if it had been started before (by whomever)."""
        answer = self._ask("start", timeout_s=60)
        if answer not in {b"started\n", b"already\n"}:
            raise RemoteFailure(f"{self.folder}: the runner answered {readable(answer[:80])!r} to start")
        return answer == b"started\n"

    def status(self) -> RunStatus:
        """Ask where the attempt stands; one quick exchange."""
        # The work may remove the folder at any moment, while we ask too.
        ask = f"answer=$(sh {self._script} status) || {{ [ -f {self._script} ] && exit 70; answer='phase absent'; }}"
        command = f"""if [ -f {self._script} ]; then {ask}; printf '%s\\n' "$answer"; else echo phase absent; fi"""
        return parse_status(self._shell.check(command, what="asking the runner for its status"))

    def follow(self, offset: int, sink: Callable[[bytes], object], *, stop: StopToken) -> int:
        """Hand the log from byte `offset` on to `sink`, as it grows, until the work has ended and all of it came.

        Returns:
            The offset behind the last byte; it is the log's size.

        Raises:
            Unreachable: the connection was lost; connect again and go on from the bytes that reached the sink.
            RemoteFailure: the log is shorter than `offset`, or the machine sends more or less than it says there is.
        """
        over = False
        while True:
            before = offset
            offset = self._follow_once(offset, sink, stop)
            status = self.status()
            if status.phase not in {"ended", "lost"}:
                stop.event.wait(0.2)  # the reader there went away before the work did
                stop.raise_if_stopped()
                continue
            size = status.log_size if status.exit is None else status.exit.log_size
            if offset == size:
                return offset
            if offset > size:
                raise RemoteFailure(
                    f"{self.folder}: the log is {size} bytes, fewer than the {offset} that came already"
                )
            if over and offset == before:
                raise RemoteFailure(f"{self.folder}: the log is said to be {size} bytes, and only {offset} came of it")
            over = True

    def cancel(self, grace_s: int) -> None:
        """Send the work TERM, `grace_s` later KILL, and return when its end is recorded; idempotent.

        Work that has not started never will.
        """
        self._ask(f"cancel {grace_s:d}", timeout_s=grace_s + 60)

    def mark_pulled(self) -> None:
        """Tell the machine that everything is fetched, so that it need not linger; idempotent."""
        self._ask("pulled")

    def heartbeat(self) -> None:
        """Tell the machine that somebody still cares: renews its lease and its lingering."""
        self._ask("heartbeat")

    def about(self, most_bytes: int) -> bytes:
        """Give what the machine keeps of the run's recipe, as it says; RemoteFailure where that is too much or none."""
        what = f"reading {self.folder}/run.json"
        command = f"head -c {most_bytes + 1:d} {self._quoted}/run.json"
        return self._shell.run(command, max_output=most_bytes).require(what).stdout

    @property
    def _script(self) -> str:
        return f"{self._quoted}/runner.sh"

    def _ask(self, words: str, *, timeout_s: float = 30) -> bytes:
        return self._shell.check(
            f"sh {self._script} {words}", what=f"`runner.sh {words}` in {self.folder}", timeout_s=timeout_s
        )

    def _follow_once(self, offset: int, sink: Callable[[bytes], object], stop: StopToken) -> int:
        came = 0

        def count(data: bytes) -> None:
            nonlocal came
            sink(data)
            came += len(data)

        command = f"sh {self._script} tail {offset:d}"
        self._shell.stream_out(command, count, stop=stop).require(f"following the log in {self.folder}")
        return offset + came


def parse_status(answer: bytes) -> RunStatus:
    """Read the runner's status report strictly; whatever is not one is a RemoteFailure."""
    lines = dict(line.partition(" ")[::2] for line in answer.decode("utf-8", "replace").splitlines())
    phase = lines.get("phase", "")
    size = lines.get("log_size", "0")
    if phase not in get_args(Phase) or not re.fullmatch(r"[0-9]{1,18}", size):
        raise RemoteFailure(f"the runner's status is not one of ours: {readable(answer[:200])!r}")
    record = parse_exit(lines["exit"]) if "exit" in lines else None
    if record is not None and record.reason == "lost":
        phase = "lost"
    elif phase == "ended" and record is None:
        raise RemoteFailure("the runner says that the work has ended, and has no record of how")
    return RunStatus(phase=cast("Phase", phase), log_size=int(size), exit=record)


def parse_exit(text: str) -> ExitRecord:
    """Read an exit.json strictly: a record that is incomplete, or says what cannot be, is a RemoteFailure."""
    try:
        record = json.loads(text)
        return ExitRecord(
            code=_whole(record["code"], 0, 255),
            signal=None if record["signal"] is None else _whole(record["signal"], 1, 127),
            reason=_one_of(record["reason"]),
            started_at=None if record["started_at"] is None else _moment(record["started_at"]),
            ended_at=_moment(record["ended_at"]),
            log_size=_whole(record["log_size"], 0, 2**60),
            sha256=_hash(record["sha256"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RemoteFailure(
            f"the machine's exit.json cannot be believed ({error}): {readable(text[:200])!r}"
        ) from error


def _whole(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r} is no whole number from {least} to {most}")
    return value


def _moment(value: Any) -> datetime:
    return datetime.fromtimestamp(_whole(value, 0, 2**36), UTC)


def _one_of(value: Any) -> Reason:
    if value not in get_args(Reason):
        raise ValueError(f"{value!r} is no reason")
    return cast("Reason", value)


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise ValueError(f"{value!r} is no sha256")
    return value


def _bundle(spec: RunSpec) -> bytes:
    limits = {
        "max_duration_s": spec.max_duration_s,
        "grace_s": spec.grace_s,
        "lease_s": spec.lease_s,
        "idle_s": spec.idle_s,
    }
    members = {
        "runner.sh": runner_text(),
        "run.sh": spec.run + "\n",
        "env": _env_text(spec),
        "limits": "".join(f"{name}={value:d}\n" for name, value in limits.items()),
        "run.json": spec.about + "\n",
    }
    if spec.setup.strip():
        members["setup.sh"] = spec.setup + "\n"
    members["output.log"] = ""
    bundle = io.BytesIO()
    with tarfile.open(fileobj=bundle, mode="w") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.mode = 0o600
            member.size = len(data := text.encode())
            tar.addfile(member, io.BytesIO(data))
    return bundle.getvalue()


def _env_text(spec: RunSpec) -> str:
    return "".join(_export(name, value) for name, value in {**spec.envs, **spec.secrets}.items())


def _export(name: str, value: str) -> str:
    if flaw := flaw_of(name, value):
        raise BadInput(flaw)
    return f"export {name}={shlex.quote(value)}\n"
