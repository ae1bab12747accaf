"""Whatever is done to a run in whatever order (faults, deaths, cancels, reaping, time), the promises hold at last."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from gpujobs import reaper
from gpujobs.clock import StopToken
from gpujobs.crash import armed
from gpujobs.errors import Busy
from gpujobs.ledger_rows import ENDED
from gpujobs.lifecycle import execute, open_run
from tests.cloud import BACKENDS, Memory
from tests.crash.faults import FAULTS, begin_fault
from tests.crash.lives import RUN, Killed, Life, check, reap, recover, the_recipe
from tests.crash.world import World, world_of

EXAMPLES, STEPS = 40, 12


@contextmanager
def in_memory(backend: str) -> Iterator[World]:
    folder = Path("/dev/shm")
    with TemporaryDirectory(dir=folder if folder.is_dir() else None) as place, world_of(backend, Path(place)) as world:
        yield world


class Abuse(RuleBasedStateMachine):
    """One run, and all that may befall it."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.new()
        self.submitted = False

    @precondition(lambda self: not self.submitted)
    @rule()
    def submit(self) -> None:
        open_run(self.world.host(), the_recipe(self.world), run_id=RUN)
        self.submitted = True

    @precondition(lambda self: self.submitted)
    @rule(dies_at=st.none() | st.integers(0, 250))
    def drive(self, dies_at: int | None) -> None:
        """Take the run up in a new process, which may die; while another's lease runs, it is refused."""
        host = self.world.host()
        with suppress(Killed, Busy), armed(Life(dies_at)):
            execute(host, RUN, stop=StopToken(), reporter=Memory(), unended=True)

    @rule(seconds=st.sampled_from([1, 30, 70, 200]))
    def wait(self, seconds: float) -> None:
        self.world.clock.move(seconds)

    @rule(number=st.integers(0, len(FAULTS) - 1))
    def fault(self, number: int) -> None:
        begin_fault(self.world, FAULTS[number])

    @precondition(lambda self: self.submitted)
    @rule()
    def cancel(self) -> None:
        self.world.ledger.request_cancel(RUN, self.world.clock.now())

    @rule()
    def reap(self) -> None:
        reaper.reap(self.world.host(), yes=False, reporter=Memory())

    @invariant()
    def starts_once(self) -> None:
        names = [start.name for start in self.world.starts]
        assert len(names) == len(set(names))
        assert [start for start in self.world.starts if start.beside] == []

    def teardown(self) -> None:
        """Let the provider be well, recover and reap: now everything must be in order, and stay so."""
        self.world.fake.faults.remove()
        if self.submitted:
            recover(self.world)
            assert self.world.ledger.get_run(RUN).state in ENDED
        reap(self.world)
        check(self.world, ended=self.submitted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_whatever_befalls_a_run_the_promises_hold_in_the_end(backend: str) -> None:
    options = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    with in_memory(backend) as world:
        run_state_machine_as_test(type("Abuse", (Abuse,), {"world": world}), settings=options)
