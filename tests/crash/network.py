"""Runs side by side in one process, each with a network of its own that is struck where a test wants it to be."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_server.server import FakeServer
from gpujobs.clock import StopToken
from gpujobs.crash import armed
from gpujobs.errors import Detached
from gpujobs.host import Host
from gpujobs.ledger_rows import Run
from gpujobs.lifecycle import Outcome, execute, new_run_id, open_run
from tests.clocks import eventually
from tests.cloud import Memory, recipe_for

SENT = b"".join(b"sent %d\n" % number for number in range(60_000))
NUMBERS = b"".join(b"%d\n" % number for number in range(1, 100_001))
SCRIPT = """echo begun
echo started >> ~/starts
sha256sum < sent | cut -c 1-64
seq 1 100000
while [ -n "$HELD" ] && [ ! -e /tmp/go ]; do sleep 0.2; done
mkdir kept
seq 1 100000 > kept/numbers
cp ~/starts kept
echo over
exit "${CODE:-0}"
"""
_WITHIN_S = 480.0
LOG = b"begun\n%s\n%sover\n" % (hashlib.sha256(SENT).hexdigest().encode(), NUMBERS)
KEPT = {"numbers": NUMBERS, "starts": b"started\n"}  # the second tells how often the command was started


@dataclass(frozen=True, slots=True)
class Strike:
    """What befalls the network when a run passes a place of that name for the first time: rules of the fake."""

    place: str
    rules: Sequence[Mapping[str, Any]]


@dataclass
class Journey:
    """One run, on a thread of its own."""

    host: Host
    backend: str
    strikes: list[Strike] = field(default_factory=list)
    run_id: str = field(default_factory=new_run_id)
    reporter: Memory = field(default_factory=Memory)
    stop: StopToken = field(default_factory=StopToken)
    outcome: Outcome | None = None
    thread: int = 0  # its ident

    def open(self, folder: Path, **envs: str) -> None:
        """Write the run down."""
        workdir = folder / "project"
        workdir.mkdir(exist_ok=True)
        (workdir / "sent").write_bytes(SENT)
        parts = {"workdir": str(workdir), "run": SCRIPT, "outputs": {"kept": "kept"}, "envs": envs}
        open_run(self.host, recipe_for(self.backend, max_duration="1h", **parts), run_id=self.run_id)

    def drive(self) -> None:
        """Go through the run's life."""
        self.outcome = execute(self.host, self.run_id, stop=self.stop, reporter=self.reporter)

    def row(self) -> Run:
        """Give the ledger's line."""
        return self.host.ledger.get_run(self.run_id)

    def reconnects(self) -> int:
        """Count the connections that were lost."""
        return sum("connecting again" in note for note in self.reporter.notes)

    def ended(self, truth: Sequence[Mapping[str, Any]]) -> Mapping[str, object]:
        """Say how it ended, here and by the cloud's own truth."""
        assert self.outcome is not None, "it has not ended"
        kept, log = self.outcome.outputs.get("kept"), self.outcome.log.read_bytes()
        machines = [one for one in truth if f"-{self.run_id}-" in one["name"]]
        return {
            "state": self.outcome.state,
            "log": "whole" if log == LOG else f"{len(log)} bytes",
            "heard": "whole" if self.reporter.heard == LOG else f"{len(self.reporter.heard)} bytes",
            "hash": self.host.ledger.attempts(self.run_id)[-1].log_sha256 == hashlib.sha256(log).hexdigest(),
            "outputs": {path.name: path.read_bytes() for path in kept.iterdir()} == KEPT if kept else None,
            "machines": len(machines),
            "rented": self.outcome.machines_alive,
        }


WELL = {
    "state": "succeeded",
    "log": "whole",
    "heard": "whole",
    "hash": True,
    "outputs": True,
    "machines": 1,
    "rented": 0,
}


class Storm:
    """Strikes each run's network at the places that it passes on its own thread."""

    def __init__(self, fake: FakeServer) -> None:
        self._fake = fake
        self._journeys: dict[int, Journey] = {}

    def __call__(self, name: str) -> None:
        """Hear of a place."""
        journey = self._journeys.get(threading.get_ident())
        if journey is not None and (due := next((s for s in journey.strikes if re.search(s.place, name)), None)):
            journey.strikes.remove(due)
            for rule in due.rules:
                self.arm(journey, rule)

    def arm(self, journey: Journey, rule: Mapping[str, Any]) -> None:
        """Arm a rule for the machines of one run."""
        self._fake.faults.arm(**{"machine": f"*-{journey.run_id}-*", **rule})

    @contextmanager
    def around(self, journeys: Sequence[Journey]) -> Iterator[None]:
        """Drive the runs, all at once, and wait for their ends when the block is over; stops them where it fails."""
        threads = [threading.Thread(target=self._drive, args=[one], daemon=True) for one in journeys]
        with armed(self):
            for thread in threads:
                thread.start()
            try:
                yield
            except BaseException:
                for journey in journeys:
                    journey.stop.stop(Detached("the test has failed"))
                raise
            finally:
                deadline = time.monotonic() + _WITHIN_S
                for thread in threads:
                    thread.join(timeout=max(0.0, deadline - time.monotonic()))
        assert [thread for thread in threads if thread.is_alive()] == [], "a run does not end"

    def _drive(self, journey: Journey) -> None:
        journey.thread = threading.get_ident()
        self._journeys[journey.thread] = journey
        journey.drive()


def release_work(fake: FakeServer, journeys: Sequence[Journey]) -> None:
    """Let work that is held go on."""
    for journey in journeys:
        execute_on(fake, journey, "touch /tmp/go")


def execute_on(fake: FakeServer, journey: Journey, command: str) -> None:
    """Do a command on a run's machine, past SSH."""
    ground = fake.world.ground
    [machine] = [one for one in ground.truth.alive() if f"-{journey.run_id}-" in one.name]
    [name] = [name for name in ground.containers.running() if name in {machine.name, machine.id}]
    assert ground.containers.execute(name, command, timeout_s=60) == 0


def await_all(journeys: Sequence[Journey], reached: Callable[[Journey], object], *, what: str) -> None:
    """Wait until it is so for every run."""
    eventually(lambda: all(reached(journey) for journey in journeys), what=what)
