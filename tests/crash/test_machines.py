"""A machine in memory answers as a real one does: the same exchanges with both, over real SSH with the real runner."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from gpujobs import shell as shell_module
from gpujobs.clock import StopToken
from gpujobs.errors import Cancelled, GpujobsError
from gpujobs.runner import Runner, RunSpec, RunStatus
from gpujobs.shell import Shell
from gpujobs.transfer import pull, push_file, push_folder
from tests.clocks import eventually
from tests.crash.machines import KEPT, LEFT, MADE, WORK_S, Script, SimConnection, SimExchange, SimMachine, first_line
from tests.crash.sim_network import SimNetwork
from tests.sshd.machines import Server

pytest_plugins = ("tests.sshd.fixtures",)

REAL_WORK = """printf 'kept\\n' >kept; mkdir -p made/deep; printf '1\\n' >made/one; printf '22\\n' >made/deep/two
echo "begun on $GPUJOBS_MACHINE"
until [ -e ../go ]; do sleep 0.1; done
echo done
exit "$CODE"
"""
_GRACE_S = 30  # work ends by TERM, however busy this machine is
_NUMBERS = itertools.count(1)


class Bench(Protocol):
    """A machine, and one attempt on it."""

    shell: Shell
    base: str
    name: str

    def let_go(self) -> None:
        """Let the work come to its own end."""
        ...


@dataclass
class Real:
    """A real one."""

    shell: Shell
    name: str
    base: str = "/root/gpujobs"

    def let_go(self) -> None:
        self.shell.check(f"touch {self.base}/{self.name}/go", what="letting it go")


@dataclass
class Moved:
    """A clock that only waiting moves."""

    passed_s: float = 1000.0

    def monotonic(self) -> float:
        return self.passed_s

    def move(self, seconds: float) -> None:
        self.passed_s += seconds


@dataclass
class Simulated:
    """One in memory."""

    name: str
    script: Script
    base: str = "/root/gpujobs"
    time: Moved = field(default_factory=Moved)

    def __post_init__(self) -> None:
        machine = SimMachine("box", self.time, lambda *_: None, SimNetwork(), script=self.script)
        connection: Any = SimConnection(machine, host_key="ssh-ed25519 AAAA", by_password=True)
        self.shell = Shell(connection)

    def let_go(self) -> None:
        self.time.move(WORK_S)


@dataclass
class Talk:
    """What is asked of a machine, and what it answers, in terms that are the same for every one."""

    bench: Bench
    folder: Path
    code: int
    told: list[tuple[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.runner = Runner(self.bench.shell, base=self.bench.base, name=self.bench.name)

    def ask(self, what: str, act: Callable[[], object]) -> None:
        try:
            answer = act()
        except GpujobsError as error:
            answer = type(error).__name__
        self.told.append((what, _status(answer) if isinstance(answer, RunStatus) else answer))

    def status(self) -> None:
        self.ask("status", self.runner.status)

    def install(self, *, max_duration_s: int = 600) -> None:
        envs = {"GPUJOBS_MACHINE": self.bench.name, "CODE": str(self.code)}
        spec = RunSpec(run=REAL_WORK, envs=envs, max_duration_s=max_duration_s, grace_s=_GRACE_S)
        self.ask("install", lambda: self.runner.install(spec))

    def start(self) -> None:
        self.ask("start", self.runner.start)

    def begin(self) -> None:
        """Install, start, and wait for the first line."""
        self.install()
        self.start()
        size = len(first_line(self.bench.name))
        eventually(lambda: self.runner.status().log_size == size, what="the first line")

    def follow(self, offset: int, *, until: int | None = None) -> None:
        """Read the log from a byte on; hang up once so many bytes of it came."""
        came = bytearray()

        def take(data: bytes) -> None:
            came.extend(data)
            if until is not None and len(came) >= until:
                raise Cancelled("enough")

        self.ask(f"follow {offset}", lambda: self.runner.follow(offset, take, stop=StopToken()))
        self.told.append(("came", bytes(came).replace(self.bench.name.encode(), b"NAME")))

    def pull(self, path: str) -> None:
        """Fetch a file or a folder of the work's, and tell what came."""
        local = self.folder / f"{len(self.told)}"

        def fetch() -> object:
            pull(self.bench.shell, f"{self.runner.work}/{path}", local)
            found = [local] if local.is_file() else [one for one in local.rglob("*") if one.is_file()]
            return {one.relative_to(local).as_posix(): one.read_bytes() for one in sorted(found)}

        self.ask(f"pull {path}", fetch)

    def push(self, data: bytes, path: str) -> None:
        """Send a file into the work's folder."""
        (local := self.folder / "sent").write_bytes(data)
        self.ask(f"push {path}", lambda: push_file(self.bench.shell, local, f"{self.runner.work}/{path}"))


def _status(status: RunStatus) -> object:
    """Leave out the machine's own time and the hash, which the log's text, with the attempt's name in it, decides."""
    exit_ = status.exit
    record = exit_ and (exit_.code, exit_.signal, exit_.reason, exit_.log_size, exit_.started_at is not None)
    return status.phase, status.log_size, record


def nothing_is_there(talk: Talk) -> None:
    talk.status()
    talk.start()
    talk.follow(0)
    talk.ask("cancel", lambda: talk.runner.cancel(_GRACE_S))
    talk.ask("heartbeat", talk.runner.heartbeat)
    talk.pull(KEPT)


def work_comes_to_its_end(talk: Talk) -> None:
    talk.install()
    talk.status()
    talk.begin()
    talk.start()
    talk.status()
    talk.follow(0, until=len(first_line(talk.bench.name)))
    talk.status()
    talk.ask("heartbeat", talk.runner.heartbeat)
    talk.bench.let_go()
    for offset in (0, 7, len(first_line(talk.bench.name)) + 2, 10_000):
        talk.follow(offset)
    talk.status()
    talk.start()
    talk.install()
    talk.ask("cancel", lambda: talk.runner.cancel(_GRACE_S))
    talk.status()
    talk.ask("pulled", talk.runner.mark_pulled)


def cancelled_before_its_start(talk: Talk) -> None:
    talk.install()
    talk.ask("cancel", lambda: talk.runner.cancel(_GRACE_S))
    talk.status()
    talk.start()
    talk.follow(0)
    talk.status()


def cancelled_amid_its_work(talk: Talk) -> None:
    talk.begin()
    talk.ask("cancel", lambda: talk.runner.cancel(_GRACE_S))
    talk.status()
    talk.follow(3)
    talk.ask("cancel", lambda: talk.runner.cancel(_GRACE_S))
    talk.start()
    talk.pull(KEPT)


def time_is_up(talk: Talk) -> None:
    """Whether the first line is written before that depends on how busy this machine is."""
    talk.install(max_duration_s=1)
    talk.start()
    talk.runner.follow(0, bytearray().extend, stop=StopToken())
    exit_ = talk.runner.status().exit
    talk.told.append(("its end", exit_ and (exit_.code, exit_.signal, exit_.reason)))
    talk.start()


def files_go_up_and_come_down(talk: Talk) -> None:
    talk.begin()
    tree = talk.folder / "tree"
    for name in ("leaf", "deep/root"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    talk.ask("push a folder", lambda: push_folder(talk.bench.shell, tree, f"{talk.runner.work}/up"))
    talk.push(b"half", "up/file.gj-0123abcd")  # as a push that was cut off leaves it
    talk.push(b"", "up/file")
    talk.push(b"whole", "up/file")
    talk.push(b"over a folder", "up/deep")
    for path in ("up", "up/file", KEPT, MADE, f"{MADE}/deep/two", "nowhere"):
        talk.pull(path)
    talk.bench.let_go()


SCENES: Mapping[str, Callable[[Talk], None]] = {
    one.__name__: one
    for one in (
        nothing_is_there,
        work_comes_to_its_end,
        cancelled_before_its_start,
        cancelled_amid_its_work,
        time_is_up,
        files_go_up_and_come_down,
    )
}


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], Simulated]]:
    with monkeypatch.context() as patch:

        def make(name: str, code: int) -> Simulated:
            patch.setattr(shell_module, "Exchange", SimExchange)
            return Simulated(name, Script(code=code))

        yield make


@pytest.mark.parametrize("scene", SCENES)
def test_machine_in_memory_answers_as_a_real_one(
    scene: str, fake_machine: Server, simulated: Callable[[str, int], Simulated], tmp_path: Path
) -> None:
    name, code = f"gj-me-{next(_NUMBERS):010d}-1", 3
    with fake_machine.connect() as shell:
        real = Talk(Real(shell, name), tmp_path, code)
        SCENES[scene](real)
        if real.runner.status().phase in {"setup", "running"}:
            real.runner.cancel(_GRACE_S)
    in_memory = Talk(simulated(name, code), tmp_path, code)
    SCENES[scene](in_memory)
    assert in_memory.told == real.told


def test_exchanges_see_work_that_really_works(fake_machine: Server, tmp_path: Path) -> None:
    """Else the two could be alike in that nothing ever happens."""
    with fake_machine.connect() as shell:
        talk = Talk(Real(shell, f"gj-me-{next(_NUMBERS):010d}-1"), tmp_path, code=0)
        files_go_up_and_come_down(talk)
        told = dict(talk.told)
        assert told[f"pull {MADE}"] == {"one": b"1\n", "deep/two": b"22\n"}
        assert told[f"pull {KEPT}"] == {".": LEFT[KEPT]}
        assert told["pull up"] == {"leaf": b"leaf", "deep/root": b"deep/root", "file": b"whole"}
        assert (told["push up/deep"], told["pull nowhere"]) == ("RemoteFailure", "Missing")
        talk.follow(0)
        talk.status()
        size = len(first_line(talk.bench.name)) + len(b"done\n")
        assert talk.told[-1] == ("status", ("ended", size, (0, None, "exit", size, True)))
