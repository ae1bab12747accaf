"""A run that is killed at one place after another, taken up again, and what must be true of it in the end."""

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpujobs import reaper
from gpujobs.clock import StopToken
from gpujobs.crash import armed
from gpujobs.errors import Busy
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED
from gpujobs.lifecycle import Outcome, execute, open_run
from gpujobs.recipe import Recipe
from gpujobs.run_folder import RunFolder
from tests.cloud import Memory, recipe_for
from tests.crash.machines import KEPT, purpose, whole_log
from tests.crash.world import OWNER, World

RUN = "aaaa111111"
DEAD_S = 61.0  # a dead driver's lease has run out
GRACE_S = 130.0  # past the reaper's grace
SHUTDOWN_S = 5.0  # a list forgets a machine some moments before it is gone
LONG_S = 600.0  # whatever a provider does late, it has done by now
_NAME = re.compile(rf"gj-{OWNER}-{RUN}-\d+")
_DRAFT = re.compile(r"pull-\d+-\w+")


class Killed(BaseException):
    """Ends a process where it stands: no handler of ours sees it."""


@dataclass
class Life:
    """One process: notes the places that it passes, and dies at the one of that number, after which it does nothing.

    Its one thread is the one that makes it. Others that pass a place are what another test has left behind.
    """

    dies_at: int | None = None
    look: "Callable[[Life], object]" = bool  # what is done at each place, before the process may die there
    passed: list[str] = field(default_factory=list)
    dead: bool = False
    thread: int = field(default_factory=threading.get_ident)

    def __call__(self, name: str) -> None:
        if threading.get_ident() != self.thread:
            return
        if self.dead:
            raise Killed
        self.passed.append(name)
        self.look(self)
        if len(self.passed) - 1 == self.dies_at:
            self.dead = True
            raise Killed


def place(name: str) -> str:
    """Give a place's name as it is in every run: without ids, with what a command is for."""
    when, door, rest = (*name.split(" ", 2), "")[:3]
    if door == "ssh":
        rest = purpose(rest)
    rest = _DRAFT.sub("pull", _NAME.sub("ATTEMPT", rest)).replace(RUN, "RUN")
    return f"{when} {door} {rest}"


def live(
    world: World, *, dies_at: int | None = None, look: Callable[[Life], object] = bool
) -> tuple[Life, Outcome | None]:
    """Drive the run in a new process, to its end or to its death."""
    life, host, outcome = Life(dies_at, look), world.host(), None
    with armed(life):
        try:
            open_run(host, the_recipe(world), run_id=RUN)
            outcome = execute(host, RUN, stop=StopToken(), reporter=Memory(), unended=True)
        except Killed:
            pass
        except Busy:
            assert host.ledger.get_run(RUN).state in ENDED
    return life, outcome


def the_recipe(world: World) -> Recipe:
    """Give the recipe: a folder up, a file down, and what the world adds to it."""
    workdir = world.folder / "project"
    workdir.mkdir(exist_ok=True)
    (workdir / "train.py").write_text("print()\n")
    more = {"resources": {"infra": "autodl/westDC2"}} if world.backend == "autodl" else {}
    plain = {"workdir": str(workdir), "outputs": {KEPT: KEPT}, "run": "as the machine likes", **more}
    return recipe_for(world.backend, **{**plain, **world.parts})


def recover(world: World, *, dies_at: int | None = None, look: Callable[[Life], object] = bool) -> Life:
    """Take the run up again once its dead driver's lease has run out."""
    world.clock.move(DEAD_S)
    return live(world, dies_at=dies_at, look=look)[0]


def reap(world: World) -> None:
    """Have the reaper look, past every grace, and once more when the providers have done all that they do late."""
    for wait_s in (GRACE_S, LONG_S):
        world.clock.move(wait_s)
        reaper.reap(world.host(), yes=False, reporter=Memory())
    world.clock.move(SHUTDOWN_S)


def strangers_of(world: World) -> Sequence[str]:
    """Rent machines that are not ours, by another owner and by hand, and give their names."""
    names = ["gj-other-bbbb222222-1", "my own box"]
    backend, recipe = world.host().backend(world.backend), the_recipe(world)
    offer = backend.offers(recipe)[0]
    for name in names:
        backend.create(recipe, offer, name=name, image="")
    world.clock.move(SHUTDOWN_S)
    assert world.alive() == sorted(names)
    return names


def check(world: World, *, ended: bool = True, succeeded: bool = False, strangers: Sequence[str] = ()) -> None:
    """Hold the promises, after recovery and reaping; then recover and reap again, which must change nothing."""
    check_promises(world, ended=ended, succeeded=succeeded, strangers=strangers)
    before = world.rows(), world.acts()
    if ended:
        recover(world)
    reap(world)
    assert (world.rows(), world.acts()) == before, "a second recovery changes something"
    check_promises(world, ended=ended, succeeded=succeeded, strangers=strangers)


def check_promises(world: World, *, ended: bool = True, succeeded: bool = False, strangers: Sequence[str] = ()) -> None:
    """Hold what must be true once all is quiet."""
    assert world.alive() == sorted(strangers), "machines billed are not the machines wanted"
    names = [start.name for start in world.starts]
    assert len(names) == len(set(names)), f"a command was started twice: {names}"
    assert [start for start in world.starts if start.beside] == [], (
        "an attempt began before the machine of an earlier one was gone"
    )
    host = world.host()
    assert host.ledger.machines_alive() == [], "the ledger holds a machine that is gone"
    known = [run.id for run in host.ledger.list_runs()]
    if ended:
        assert host.ledger.get_run(RUN).state in ENDED
    if succeeded:
        run = host.ledger.get_run(RUN)
        assert (run.state, run.error) == ("succeeded", "")
    if RUN in known:
        _check_files(host)


def reaped_and_checked(world: World) -> None:
    """Judge a run that has been resumed, after whatever deaths."""
    reap(world)
    check(world, succeeded=True)


def killed_and_resumed(world: World, dies_at: int) -> None:
    """Kill the run at a place, take it up again, and judge."""
    assert live(world, dies_at=dies_at)[0].dead
    recover(world)
    reaped_and_checked(world)


def killed_and_reaped(world: World, dies_at: int) -> None:
    """Kill the run at a place, leave it to the reaper, and judge."""
    strangers = world.alive()
    assert live(world, dies_at=dies_at)[0].dead
    reap(world)
    check(world, ended=False, strangers=strangers)


def tell(case: str, act: Callable[[], object]) -> str:
    """Do a case; give "" or what it breaks."""
    try:
        act()
    except AssertionError as error:
        return f"{case}: {str(error).splitlines()[0]}"
    return ""


def _check_files(host: Host) -> None:
    folder, run = RunFolder(host.settings.runs / RUN), host.ledger.get_run(RUN)
    attempts = host.ledger.attempts(RUN)
    log = folder.log.read_bytes() if folder.log.exists() else b""
    worked = [one.name for one in attempts if log == whole_log(one.name)]
    if run.state == "succeeded":
        assert worked == [attempts[-1].name], f"the log is not what the command wrote: {log!r}"
        assert (folder.outputs / KEPT).read_bytes() == b"kept\n"
        assert host.ledger.cost_cny(RUN) is not None, "the bill is unknown"
    else:
        written = [whole_log(one.name) for one in attempts]
        assert not log or any(one.startswith(log) for one in written), f"nobody wrote this: {log!r}"
    if folder.outputs.exists() and run.state == "succeeded":
        wanted = Recipe.model_validate_json(run.recipe_json).outputs
        assert {path.name for path in folder.outputs.iterdir()} == wanted.keys(), "a pull left something behind"
