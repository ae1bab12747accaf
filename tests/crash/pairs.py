"""A run that is killed at every place, and its recovery at every place again, as far as they leave different states.

What comes after a kill depends only on what it leaves. So of all first kills that leave the same state one is followed,
and of all second kills that leave the same state one is judged: by a fork of this process, which dies there.
"""

import gc
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import event

from tests.crash.durable import durable, repeatable
from tests.crash.faults import FAULTS, Fault, begin_fault
from tests.crash.lives import Life, check, killed_and_reaped, killed_and_resumed, live, place, reap, recover, tell
from tests.crash.world import World, world_of

NAMED: Mapping[str, Fault] = {"-".join(map(str, (*fault[:2], *fault[2].values()))): fault for fault in FAULTS}
_HERE, _FORK, _FOUND = "world", "fork", "found"  # beside one another: the world, a fork's copy of it, what was found


@dataclass(kw_only=True)
class Figures:
    """How many places a run passes, how many states kills at them leave, and what was judged."""

    places: int = 0
    first_states: int = 0
    pairs: int = 0
    second_states: int = 0
    judged: int = 0
    found: Sequence[str] = ()

    def lines(self) -> Sequence[str]:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        cpu_s = sum(one.ru_utime + one.ru_stime for one in used)
        return [
            f"{self.places} places, at which a kill leaves {self.first_states} different states",
            f"{self.pairs} pairs of places, at which a second kill leaves {self.second_states} different states",
            f"{self.judged} of these judged, {len(self.found)} broke a promise; {cpu_s:.0f} s of processor time",
            *self.found,
        ]


def states_of(world: World, begin: Callable[[], None]) -> Mapping[str, Sequence[int]]:
    """Live a whole run; give each state that a kill would leave, and the numbers of the places where it would."""
    found: dict[str, list[int]] = {}
    begin()
    live(world, look=lambda life: found.setdefault(durable(world), []).append(len(life.passed) - 1))
    return found


def kill_once(world: World, begin: Callable[[], None], every: int = 1) -> tuple[int, int, Sequence[str]]:
    """Kill a run at every place, and each time resume it, and again leave it to the reaper.

    Gives the number of places, of states that are left there (each `every`th is followed), and what broke a promise.
    """
    states, found = states_of(world, begin), []
    for places in list(states.values())[::every]:
        for act in (killed_and_resumed, killed_and_reaped):
            begin()
            found.append(tell(f"{places[0]}, {act.__name__}", partial(act, world, places[0])))
    return sum(map(len, states.values())), len(states), [each for each in found if each]


@dataclass
class Pairs:
    """Kills at every pair of places in the world of one backend; the working folder is that world's.

    Of the states after a second kill each `parts`th is judged, from the `part`th on, in the order of meeting them.
    """

    world: World
    begin: Callable[[], None]
    part: int = 1
    parts: int = 1
    every: int = 1  # of the first states only each so manieth is followed
    figures: Figures = field(default_factory=Figures)
    met: set[str] = field(default_factory=set)
    last: str = ""  # the state that was met last
    own: int = field(default_factory=os.getpid)

    def kill(self, tell: Callable[[str], object]) -> Figures:
        """Kill at all of them, and tell how far it has come."""
        figures, firsts = self.figures, states_of(self.world, self.begin)
        figures.places, figures.first_states = sum(map(len, firsts.values())), len(firsts)
        gc.collect()
        gc.freeze()  # a search for garbage in a fork would copy all the memory that it shares with this process
        gc.disable()
        for number, (state, places) in list(enumerate(firsts.items(), start=1))[:: self.every]:
            self.begin()
            life, _ = live(self.world, dies_at=places[0])
            assert durable(self.world) == state, f"{places[0]} {place(life.passed[-1])}: writes after its death"
            figures.pairs += len(places) * self._recover(places[0])
            tell(f"{number} of {len(firsts)} first states, {figures.judged} second ones judged")
        figures.second_states = len(self.met)
        found = Path("..", _FOUND)
        figures.found = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
        return figures

    def _recover(self, first: int) -> int:
        """Take the run up after its first death, and give how many places are passed; a fork ends in here."""
        second = Life()
        try:
            second = recover(self.world, look=self._fork_where_new)
            if os.getpid() != self.own:
                self._judge(self.last)
        except BaseException as error:
            if os.getpid() == self.own:
                raise
            _note(f"{first}, then {len(second.passed) - 1}: {type(error).__name__}: {error}".splitlines()[0])
        finally:
            if os.getpid() != self.own:
                os._exit(0)
        return len(second.passed)

    def _fork_where_new(self, life: Life) -> None:
        """Have a fork of this process die here, unless a kill has left the same state before."""
        state = durable(self.world)
        if os.getpid() != self.own or state in self.met:
            return
        self.met.add(state)
        self.last = state
        if len(self.met) % self.parts != self.part % self.parts:
            return
        self.figures.judged += 1
        shutil.copytree(".", Path("..", _FORK))
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0, "a fork ended early"
            shutil.rmtree(Path("..", _FORK))
            return
        self._leave_home()
        life.dies_at = len(life.passed) - 1

    def _leave_home(self) -> None:
        """Go on in the copy, and let nothing that is open here be written to from now on."""
        home = str(Path.cwd())
        self._kept = self.world.ledger._database.engine.pool  # to close it would be an act on the other's file
        self.world.ledger._database.engine.dispose(close=False)
        with Path(os.devnull).open("wb") as nowhere:
            for handle in Path("/proc/self/fd").iterdir():
                opened = str(handle.readlink()) if handle.is_symlink() else ""
                if opened.startswith(home) and "ledger.db" not in opened:
                    os.dup2(nowhere.fileno(), int(handle.name))
        os.chdir(Path("..", _FORK))

    def _judge(self, left: str) -> None:
        assert durable(self.world) == left, "it writes after its death"
        recover(self.world)
        reap(self.world)
        check(self.world, succeeded=True)


def _note(line: str) -> None:
    with Path("..", _FOUND).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _to_the_one_here(_dialect: object, _record: object, arguments: list[str], _options: object) -> None:
    """Connect to the ledger below the working folder; the engine knows the place at which it was opened."""
    arguments[0] = str(Path("home", "ledger.db").absolute())


@contextmanager
def kills_of(
    backend: str, fault: Fault | None = None, *, part: int = 1, parts: int = 1, every: int = 1
) -> Iterator[Pairs]:
    """Open a world in a folder of its own, which is the working folder for as long as the block runs."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        here = Path(folder, _HERE)
        here.mkdir()
        with chdir(here), world_of(backend, Path()) as world, repeatable(world) as begin:

            def begin_all() -> None:
                begin()
                if fault:
                    begin_fault(world, fault)

            event.listen(world.ledger._database.engine, "do_connect", _to_the_one_here)
            yield Pairs(world, begin_all, part=part, parts=parts, every=every)
