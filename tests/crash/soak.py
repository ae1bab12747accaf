"""Run after run in a world where everything goes wrong by lot: APIs, SSH, machines, the processes that drive them.

Most runs are in memory and on a moved clock, in one thread, so that a seed gives the same each time; the others are
real processes that are killed by kill -9, beside a real cloud and real SSH. All that befalls a run is drawn beforehand.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs import reaper
from gpujobs import settings as gpujobs_settings
from gpujobs.clock import StopToken
from gpujobs.errors import Busy
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED
from gpujobs.lifecycle import execute
from gpujobs.run_folder import RunFolder
from tests.cloud import BACKENDS, Control, Memory
from tests.conftest import QUICK
from tests.crash import sim_network
from tests.crash.faults import CALLS, FAULTS, Fault, begin_fault
from tests.crash.killed import LOG, PLACES, Later, submit_and_die
from tests.crash.lives import DEAD_S, RUN, check_promises, live, reap
from tests.crash.machines import whole_log
from tests.crash.world import World, world_of

MACHINE_FAULTS: Sequence[Mapping[str, Any]] = (
    {"kind": "dies_in_boot"},
    {"kind": "dies_mid_run", "seconds": 1.0},
    {"kind": "dies_mid_run", "seconds": 3.0},
    {"kind": "dies_unnoticed", "seconds": 3.0},
    {"kind": "stuck_in_creating", "seconds": 10.0},
)
DIES = MACHINE_FAULTS[1]
REAL_SSH: Sequence[Mapping[str, Any]] = (
    {"kind": "ssh_cut", "bytes": 3_000},
    {"kind": "ssh_cut", "bytes": 12_000, "after": 1},
    {"kind": "ssh_half_open", "bytes": 6_000, "seconds": 1.0},
    {"kind": "ssh_refused", "seconds": 1.0},
    {"kind": "ssh_slow", "bytes_per_s": 200_000, "latency_s": 0.05},
)
REAL_API = ("lost_reply", "error_500", "reset", "broken_json")
PASSES, COMMANDS = 190, 14  # about so many places and commands a run passes


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What befalls one run, all of it drawn by lot."""

    backend: str
    real: bool
    api: tuple[Fault, ...]
    machine: Mapping[str, Any] | None
    ssh: Mapping[int, str]  # in memory: by the number of the command
    real_ssh: Mapping[str, Any] | None
    deaths: tuple[int, ...]  # in memory: the numbers of the places at which one process after another dies
    place: str  # for real: where it is killed
    resumed: bool  # or left to the reaper


def draw(seed: int, number: int, *, real: bool) -> Draw:
    """Draw for one run; the same seed and number give the same."""
    dice = random.Random(f"{seed} {number}")
    api = [dice.choice(FAULTS) for _ in range(dice.choice((0, 1, 1, 2)))]
    if real:
        api = [(dice.choice(("create", "delete", "list")), dice.choice(REAL_API), {}) for _ in api]
    struck = {dice.randrange(COMMANDS): dice.choice(sim_network.KINDS) for _ in range(dice.choice((0, 1, 2, 3)))}
    backend = dice.choice(BACKENDS)
    return Draw(
        backend=backend,
        real=real,
        api=tuple(api),
        machine=_machine_fault(dice, backend, real=real) if dice.random() < 0.15 else None,
        ssh={} if real else struck,
        real_ssh=dice.choice(REAL_SSH) if real and struck else None,
        deaths=() if real else tuple(dice.randrange(PASSES) for _ in range(dice.choice((0, 1, 1, 2)))),
        place=dice.choice(list(PLACES)) if real else "",
        resumed=dice.random() < 0.8,
    )


def _machine_fault(dice: random.Random, backend: str, *, real: bool) -> Mapping[str, Any] | None:
    """Draw one; for real only what is noticed in seconds: MatrixDC says of a death nothing that is documented."""
    if real:
        return DIES if backend == "autodl" else None
    return dice.choice(MACHINE_FAULTS)


def draws(seed: int, runs: int, *, every: int) -> list[Draw]:
    """Draw for all runs; each `every`th is a real one."""
    return [draw(seed, number, real=number % every == every - 1) for number in range(runs)]


@dataclass
class Figures:
    """What came of it."""

    runs: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    leaks: int = 0
    double_starts: int = 0
    lost_bytes: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.leaks or self.double_starts or self.lost_bytes or self.broken)

    def lines(self) -> list[str]:
        """Give them for people."""
        counted = {"runs": self.runs, "ended": self.states, "faults": self.faults, "crashes": self.crashes}
        told = [
            f"{name}: {sum(counts.values())} ({', '.join(f'{n} {what}' for what, n in sorted(counts.items()))})"
            for name, counts in counted.items()
        ]
        told += [f"leaks: {self.leaks}", f"double starts: {self.double_starts}", f"lost bytes: {self.lost_bytes}"]
        return told + [f"BROKEN: {each}" for each in self.broken]


def soak(seed: int, runs: int, *, every: int, tell: Callable[[str], object]) -> Figures:
    """Go through all runs; `tell` hears of each that broke a promise."""
    figures = Figures()
    todo = draws(seed, runs, every=every)
    with TemporaryDirectory(dir=_memory()) as folder:
        for backend in BACKENDS:
            (place := Path(folder) / backend).mkdir()
            with world_of(backend, place) as world:
                for number, one in enumerate(todo):
                    if not one.real and one.backend == backend:
                        _judged(
                            figures, f"run {number}", tell, lambda one=one, world=world: _in_memory(world, one, figures)
                        )
    with TemporaryDirectory() as folder, _real_world(Path(folder), seed) as (host, control):
        for number, one in enumerate(todo):
            if one.real:
                (place := Path(folder) / str(number)).mkdir()
                _judged(
                    figures,
                    f"run {number}",
                    tell,
                    lambda one=one, place=place: _real(host, control, place, one, figures),
                )
    return figures


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _judged(figures: Figures, name: str, tell: Callable[[str], object], act: Callable[[], None]) -> None:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - a bug that the soak has found; the other runs are still to come
        figures.broken.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[:1]}")
        tell(figures.broken[-1])


def _in_memory(world: World, one: Draw, figures: Figures) -> None:
    world.new()
    world.network.strike(one.ssh)
    for fault in one.api:
        begin_fault(world, fault)
    if one.machine:
        world.fake.faults.arm(**{**one.machine, "count": 1})
    figures.runs[f"{one.backend} in memory"] += 1
    for dies_at in (*one.deaths, None):
        life, _ = live(world, dies_at=dies_at)
        if not life.dead:
            break
        figures.crashes["in memory"] += 1
        world.clock.move(DEAD_S)
        if not one.resumed:
            break
    reap(world)
    if any(run.state not in ENDED for run in world.ledger.list_runs()):  # it had rented nothing that had to be reaped
        live(world)
        reap(world)
    _count_faults(figures, world.fake)
    figures.faults.update({f"ssh {kind}": n for kind, n in world.network.struck.items()})
    figures.leaks += len(world.alive())
    names = [start.name for start in world.starts]
    figures.double_starts += len(names) - len(set(names))
    known = {run.id: run.state for run in world.ledger.list_runs()}
    state = known.get(RUN, "never opened")
    figures.states[state] += 1
    if state == "succeeded":
        log = RunFolder(world.settings.runs / RUN).log.read_bytes()
        figures.lost_bytes += _missing(log, whole_log(names[-1]))
    check_promises(world, ended=RUN in known and state in ENDED)
    assert state in {*ENDED, "never opened"}, f"it is {state}"


def _missing(log: bytes, whole: bytes) -> int:
    """Count the bytes of `whole` that are not where they belong."""
    return 0 if log == whole else sum(a != b for a, b in zip(log, whole, strict=False)) + abs(len(whole) - len(log))


def _count_faults(figures: Figures, fake: FakeServer) -> None:
    for rule in fake.faults.as_json()["rules"]:
        layer = "api" if rule["endpoint"] else "ssh" if rule["kind"].startswith("ssh") else "machine"
        figures.faults[f"{layer} {rule['kind']}"] += rule["fired"]


@contextmanager
def _real_world(folder: Path, seed: int) -> Iterator[tuple[Host, Control]]:
    with pytest.MonkeyPatch.context() as patch, FakeServer(seed=seed) as fake:
        for name, value in fake.env().items():
            patch.setenv(name, value)
        for name in ("home", "config"):
            (folder / name).mkdir(mode=0o700)
        patch.setenv("GPUJOBS_HOME", str(folder / "home"))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("GPUJOBS_OWNER", "tester")
        patch.delenv("GPUJOBS_DATABASE_URL", raising=False)
        with Host.open(gpujobs_settings.load(), clock=Later(), dice=random.Random(seed), timing=QUICK) as host:
            yield host, Control(fake)


def _real(host: Host, control: Control, folder: Path, one: Draw, figures: Figures) -> None:
    control.ask("DELETE", "faults")
    for call, kind, more in one.api:
        control.fault(f"{one.backend}.{CALLS[one.backend][call]}", kind, **more)
    for rule in filter(None, (one.machine, one.real_ssh)):
        control.ask("POST", "faults", {**rule, "provider": one.backend})
    figures.runs[f"{one.backend} real"] += 1
    known = {run.id for run in host.ledger.list_runs()}
    done = submit_and_die(PLACES[one.place], one.backend, folder)
    figures.crashes["kill -9"] += done.returncode == -signal.SIGKILL
    opened = [run.id for run in host.ledger.list_runs() if run.id not in known]
    assert len(opened) == 1, done.stderr.decode()
    if one.resumed:
        try:
            execute(host, opened[0], stop=StopToken(), reporter=Memory(), unended=True)
        except Busy:
            assert host.ledger.get_run(opened[0]).state in ENDED
    _count_faults(figures, control.fake)
    control.ask("DELETE", "faults")
    reaper.reap(host, yes=False, reporter=Memory())
    if host.ledger.get_run(opened[0]).state not in ENDED:  # as above
        execute(host, opened[0], stop=StopToken(), reporter=Memory(), unended=True)
    _judge_real(host, control, opened[0], figures)


def _judge_real(host: Host, control: Control, run_id: str, figures: Figures) -> None:
    figures.leaks += len(control.left())
    run, folder = host.ledger.get_run(run_id), RunFolder(host.settings.runs / run_id)
    figures.states[run.state] += 1
    assert run.state in ENDED, f"it is {run.state}"
    log = folder.log.read_bytes() if folder.log.exists() else b""
    assert LOG.startswith(log), f"nobody wrote this: {log!r}"
    kept = folder.outputs / "kept"
    starts = kept.read_text() if kept.exists() else "started\n"
    figures.double_starts += starts.count("started\n") - 1
    if run.state == "succeeded":
        figures.lost_bytes += _missing(log, LOG)
        assert kept.exists(), "an output is missing"


def timed(act: Callable[[], Figures]) -> tuple[Figures, str]:
    """Do it, and say what time it took."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    figures = act()
    return (
        figures,
        f"time: {time.perf_counter() - wall_s:.0f} s by the wall, {time.process_time() - cpu_s:.0f} s of this process",
    )
