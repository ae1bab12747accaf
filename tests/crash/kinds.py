"""Kinds of runs in memory: what each has that the plain one has not, what befalls it, and how it must end."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gpujobs.crash import armed
from gpujobs.errors import BadCredentials
from gpujobs.host import Timing
from gpujobs.run_folder import RunFolder
from gpujobs.store import Store
from tests.cloud import BACKENDS
from tests.crash.lives import RUN
from tests.crash.machines import KEPT, LEFT, MADE, Script, first_line, whole_log
from tests.crash.world import World

MOUNTED = {"one.csv": b"1,2\n", "tree/leaf": b"green\n", "tree/deep/root": b"brown\n"}
_STORED_EARLY = b"begun on a host that died\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of run."""

    parts: Mapping[str, Any] = field(default_factory=dict)  # of its recipe
    script: Script = field(default_factory=Script)
    timing: Timing = field(default_factory=Timing)
    machine: Mapping[str, Any] | None = None  # what befalls its first machine, as a rule of the fake
    prepare: Callable[[World], Mapping[str, Any]] = lambda _: {}  # called before it begins; gives more parts
    holds: Callable[[World], None] = lambda _: None  # what must be true in the end, however it was killed
    state: str = "succeeded"
    exit_code: int = 0
    whole: bool = True  # the work comes to its own end
    lasts: bool = True  # no machine is lost, so that there is one
    backends: Sequence[str] = BACKENDS

    def begin(self, world: World) -> None:
        """Make the world anew, for a run of this kind."""
        world.new()
        shutil.rmtree(world.folder / "store", ignore_errors=True)
        world.settings = replace(world.settings, store="")
        world.script, world.timing, world.on_work = self.script, self.timing, bool
        world.parts = {**self.parts, **self.prepare(world)}
        if self.machine:
            world.fake.faults.arm(**{**self.machine, "count": 1})

    def check(self, world: World) -> None:
        """Hold what must be true of one that was taken up and came to its end."""
        run, last = world.ledger.get_run(RUN), world.ledger.attempts(RUN)[-1]
        assert len(world.starts) == 1 or not self.lasts, "work was begun again on another machine, though none was lost"
        assert (run.state, run.exit_code) == (self.state, self.exit_code), run.error
        log = RunFolder(world.settings.runs / RUN).log.read_bytes()
        assert log == (whole_log if self.whole else first_line)(last.name), f"the log is not what was written: {log!r}"
        assert (world.settings.runs / RUN / "outputs" / KEPT).read_bytes() == LEFT[KEPT], "an output is missing"
        self.holds(world)


def _mount(world: World) -> Mapping[str, Any]:
    """Lay out a file and a folder to be mounted."""
    place = world.folder / "mounts"
    for name, data in MOUNTED.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return {"file_mounts": {"/root/data/one.csv": str(place / "one.csv"), "./tree": str(place / "tree")}}


def _mounted(world: World) -> None:
    """See that each start found what was mounted, and that nothing half lies beside it."""
    for start in world.starts:
        [machine] = [one for one in world.machines.values() if one.id == start.machine_id]
        [work] = [f"{folder}/work" for folder, one in machine.works.items() if one.started_at is not None]
        assert machine.disks.content["/root/data/one.csv"] == MOUNTED["one.csv"], "a file is not as it was mounted"
        assert machine.disks.below(f"{work}/tree") == {"leaf": b"green\n", "deep/root": b"brown\n"}
        assert [path for path in machine.disks.content if ".gj-" in path.rpartition("/")[2]] == [], "a draft is left"


def _saved(world: World) -> None:
    """See that one disk was saved, by our ledger and by the provider's truth."""
    saved = [(one.name, one.tag, one.state) for one in world.ledger.snapshots()]
    assert saved == [("env", "v1", "saved")], "the ledger does not tell of the one snapshot"
    assert list(world.fake.world.matrixdc.images) == [world.ledger.snapshots()[0].image], "nobody knows of an image"
    folder = world.fake.world.matrixdc._folder / "images"
    assert len(list(folder.iterdir())) == 1, "a disk was saved twice"


def _refuse_to_save(world: World) -> Mapping[str, Any]:
    world.fault("power_off", "token_expired", count=None)
    return {}


def _not_saved(world: World) -> None:
    assert world.ledger.snapshots() == [], "the ledger tells of a snapshot that is not there"


def _pulled_folder(world: World) -> None:
    place = world.settings.runs / RUN / "outputs"
    found = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert found == dict(LEFT), "the outputs are not what the work left"


def _with_store(world: World) -> Mapping[str, Any]:
    """Give it a store, in which another host has put a piece of its log."""
    world.settings = replace(world.settings, store=f"file://{world.folder}/store")
    Store(world.settings.store).put_piece(RUN, 1, 0, _STORED_EARLY)
    return {}


def _stored(world: World) -> None:
    """See that the store has all, and each file as it is here."""
    store, here = Store(world.settings.store), world.settings.runs / RUN
    manifest = store.manifest(RUN)
    assert manifest is not None, "nothing is in the store"
    assert {name for name in manifest.files if "/" in name} == {f"outputs/{KEPT}"}
    for name in manifest.files:
        store.fetch(RUN, manifest, name, to := world.folder / "fetched")
        assert to.read_bytes() == (here / name).read_bytes(), f"{name} is another in the store"
    assert list(store.pieces(RUN)) == [], "pieces are left over"


def _cancel(world: World) -> Mapping[str, Any]:
    """Have it cancelled once its work has begun, by another process."""

    def cancel() -> None:
        with armed(lambda _: None):
            world.ledger.request_cancel(RUN, world.clock.now())

    world.on_work = cancel
    return {}


KINDS: Mapping[str, Kind] = {  # beside the plain one: a folder up, a command, a file down
    "a snapshot after success": Kind(
        parts={"snapshot": {"name": "env", "tag": "v1"}}, holds=_saved, backends=("matrixdc",)
    ),
    "a snapshot after failure": Kind(
        parts={"snapshot": {"name": "env", "tag": "v1", "on": "failure"}},
        script=Script(code=3),
        holds=_saved,
        state="failed",
        exit_code=1,
        backends=("matrixdc",),
    ),
    "its disk cannot be saved": Kind(
        parts={"snapshot": {"name": "env", "tag": "v1"}},
        prepare=_refuse_to_save,
        holds=_not_saved,
        state="failed",
        exit_code=BadCredentials.exit_code,
        backends=("matrixdc",),
    ),
    "kept for a look": Kind(parts={"on_failure": {"keep": "150s"}}, script=Script(code=3), state="failed", exit_code=1),
    "max_duration is reached": Kind(parts={"max_duration": "1s"}, state="failed", exit_code=5, whole=False),
    "cancelled": Kind(prepare=_cancel, script=Script(seconds=600.0), state="cancelled", exit_code=4, whole=False),
    "a store": Kind(prepare=_with_store, holds=_stored),
    "file mounts": Kind(prepare=_mount, holds=_mounted),
    "a folder comes down": Kind(parts={"outputs": {KEPT: KEPT, MADE: MADE}}, holds=_pulled_folder),
    "left to itself": Kind(parts={"linger": "1m"}, lasts=False),
    "its first machine is lost": Kind(
        machine={"kind": "dies_mid_run", "seconds": 1.0}, timing=Timing(lost_s=20.0, queued_s=20.0), lasts=False
    ),
    "its first machine does not boot": Kind(
        machine={"kind": "stuck_in_creating", "seconds": 5000.0}, timing=Timing(boot_s=20.0, queued_s=20.0), lasts=False
    ),
}
