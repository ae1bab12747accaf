"""Following a run by what its driver leaves behind: no byte lost, no byte twice, across attempts and drivers."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpujobs.errors import BadInput, Cancelled, GpujobsError
from gpujobs.follow import NEWS, Follower, LogTail
from gpujobs.ledger_rows import Run
from gpujobs.news import NewsReader, NewsWriter
from tests.clocks import ManualClock
from tests.cloud import Memory

RUN = Run(id="0123456789", name="t", owner="o", recipe_json="{}", state="submitted", created_at=datetime.now(UTC))


@dataclass
class Ledger:
    """One run, as its driver changes it."""

    run: Run | None = RUN
    before_answer: Callable[[], None] = field(default=lambda: None)

    def get_run(self, ref: str) -> Run:
        """Give the run."""
        if self.run is None:
            raise BadInput(f"no run {ref}")
        run = self.run
        self.before_answer()
        return run

    def change(self, **changes: object) -> None:
        """Change it."""
        assert self.run is not None
        self.run = replace(self.run, **changes)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ledger(clock: ManualClock) -> Ledger:
    return Ledger(replace(RUN, state="running", lease_until=clock.now() + timedelta(minutes=1)))


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def follower(ledger: Ledger, clock: ManualClock, memory: Memory, tmp_path: Path) -> Iterator[Follower]:
    follower = Follower(ledger, RUN.id, folder=tmp_path, reporter=memory, clock=clock)
    yield follower
    follower.close()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_a_log_that_grows_is_read_once(tmp_path: Path) -> None:
    tail = LogTail(tmp_path / "output.log")
    assert tail.read() == b""
    append(tmp_path / "output.log", b"a")
    assert tail.read() == b"a"
    append(tmp_path / "output.log", b"bc")
    assert (tail.read(), tail.read()) == (b"bc", b"")
    tail.close()


def test_a_log_that_was_set_aside_is_read_to_its_end_before_its_successor(tmp_path: Path) -> None:
    log, tail = tmp_path / "output.log", LogTail(tmp_path / "output.log")
    append(log, b"first ")
    assert tail.read() == b"first "
    append(log, b"attempt\n")
    log.rename(tmp_path / "attempt-1.log")
    append(tmp_path / "attempt-1.log", b"late\n")
    append(log, b"second attempt\n")
    assert [tail.read(), tail.read(), tail.read()] == [b"attempt\nlate\n", b"second attempt\n", b""]
    tail.close()


def test_a_log_that_is_emptied_and_fetched_anew_is_not_told_twice(tmp_path: Path) -> None:
    log, tail = tmp_path / "output.log", LogTail(tmp_path / "output.log")
    append(log, b"abc")
    assert tail.read() == b"abc"
    os.truncate(log, 0)
    assert tail.read() == b""
    append(log, b"abcdef")
    assert tail.read() == b"def"
    tail.close()


def test_output_goes_on_to_the_end_of_the_run(
    follower: Follower, ledger: Ledger, memory: Memory, tmp_path: Path
) -> None:
    append(tmp_path / "output.log", b"one\n")
    assert follower.look() is None
    append(tmp_path / "output.log", b"two\n" * 3_000_000)
    ledger.change(state="succeeded", exit_code=0)
    ended = follower.look()
    assert ended is not None
    assert ended.state == "succeeded"
    assert bytes(memory.heard) == b"one\n" + b"two\n" * 3_000_000


def test_what_is_written_between_the_last_look_and_the_end_is_not_lost(
    follower: Follower, ledger: Ledger, memory: Memory, tmp_path: Path
) -> None:
    """The ledger is asked before the log, so a line that is written meanwhile belongs to the next look at least."""
    ledger.before_answer = lambda: append(tmp_path / "output.log", b"late\n")
    ledger.change(state="failed", exit_code=1)
    assert follower.look() is not None
    assert bytes(memory.heard) == b"late\n"


def test_a_job_that_never_stops_writing_does_not_hold_a_look_up(
    ledger: Ledger, clock: ManualClock, tmp_path: Path
) -> None:
    class Endless(Memory):
        def output(self, data: bytes) -> None:
            super().output(data)
            append(tmp_path / "output.log", b"x" * 300_000)

    append(tmp_path / "output.log", b"x")
    follower = Follower(ledger, RUN.id, folder=tmp_path, reporter=Endless(), clock=clock)
    assert follower.look() is None
    follower.close()


def test_phases_are_told_once_and_waits_by_their_length(
    follower: Follower, ledger: Ledger, clock: ManualClock, memory: Memory
) -> None:
    ledger.change(phase="provision", detail="m")
    follower.look()
    clock.advance(3)
    follower.look()
    assert (memory.phases, memory.moved) == (["provision"], [("waiting: provision", 3, None)])


def test_news_of_the_driver_are_told_as_if_it_were_here(
    follower: Follower, ledger: Ledger, memory: Memory, tmp_path: Path
) -> None:
    driver = NewsWriter(tmp_path / NEWS, Memory())
    driver.phase("push", "m")
    driver.progress("uploading workdir", 5, 10)
    driver.note("the connection was lost")
    driver.progress("uploading workdir", 10, 10)
    ledger.change(phase="push", detail="m")
    follower.look()
    assert memory.phases == ["push"]
    assert memory.moved == [("uploading workdir", 5, 10), ("uploading workdir", 10, 10)]
    assert memory.notes == ["the connection was lost"]


def test_news_told_before_we_came_are_not_told_again(ledger: Ledger, clock: ManualClock, tmp_path: Path) -> None:
    NewsWriter(tmp_path / NEWS, Memory()).note("old")
    memory = Memory()
    follower = Follower(ledger, RUN.id, folder=tmp_path, reporter=memory, clock=clock)
    NewsWriter(tmp_path / NEWS, Memory()).note("new")
    follower.look()
    assert memory.notes == ["new"]


def test_progress_is_written_twice_a_second_and_at_its_end(tmp_path: Path) -> None:
    now, passed_on, told = [0.0], Memory(), Memory()
    writer = NewsWriter(tmp_path / NEWS, passed_on, now=lambda: now[0])
    for done in range(101):
        now[0] = done / 100
        writer.progress("uploading x", done, 100)
    NewsReader(tmp_path / NEWS, told, from_now=False).look()
    assert [done for _, done, _ in told.moved] == [0, 50, 100]
    assert len(passed_on.moved) == 101


def test_half_a_line_of_news_waits_for_its_other_half(tmp_path: Path) -> None:
    memory = Memory()
    reader = NewsReader(tmp_path / NEWS, memory, from_now=False)
    append(tmp_path / NEWS, b'["note", "wh')
    assert reader.look() is False
    append(tmp_path / NEWS, b'ole"]\n')
    assert (reader.look(), memory.notes) == (True, ["whole"])


def test_a_full_disk_costs_the_news_and_not_the_run(tmp_path: Path) -> None:
    passed_on = Memory()
    NewsWriter(tmp_path / "no" / "folder" / NEWS, passed_on).note("still told")
    assert passed_on.notes == ["still told"]


def test_a_run_that_is_not_there_yet_is_asked_for_elsewhere(clock: ManualClock, memory: Memory, tmp_path: Path) -> None:
    ledger, asked = Ledger(run=None), list[int]()
    follower = Follower(ledger, RUN.id, folder=tmp_path, reporter=memory, clock=clock, absent=lambda: asked.append(1))
    assert follower.look() is None
    ledger.run = RUN
    assert follower.look() is None
    assert asked == [1]


def test_a_run_that_will_never_be_there_ends_the_following(clock: ManualClock, memory: Memory, tmp_path: Path) -> None:
    def refuse() -> None:
        raise Cancelled("cancelled before it began")

    follower = Follower(Ledger(run=None), RUN.id, folder=tmp_path, reporter=memory, clock=clock, absent=refuse)
    with pytest.raises(Cancelled):
        follower.look()


def test_a_run_without_a_driver_is_told_of_and_in_the_end_given_up(
    follower: Follower, ledger: Ledger, clock: ManualClock, memory: Memory
) -> None:
    ledger.change(lease_until=clock.now() - timedelta(seconds=1))
    follower.look()
    clock.advance(60)
    follower.look()
    follower.look()
    assert memory.notes == ["no process drives run 0123456789 now; to go on with it: gpujobs up"]
    clock.advance(3600)
    with pytest.raises(GpujobsError, match=r"no process has driven run 0123456789 for 61 minutes; .*gpujobs cancel"):
        follower.look()


def test_a_driver_that_comes_back_is_followed_on(
    follower: Follower, ledger: Ledger, clock: ManualClock, memory: Memory
) -> None:
    for _ in range(3):
        ledger.change(lease_until=clock.now() - timedelta(seconds=1))
        follower.look()
        clock.advance(20 * 60)
        ledger.change(lease_until=clock.now() + timedelta(minutes=1))
        follower.look()
    assert memory.notes == []
