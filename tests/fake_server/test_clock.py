"""The simulated clock and the lanes."""

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from fake_server.clock import Timeline
from fake_server.lanes import Lanes


@pytest.fixture
def still() -> Iterator[Timeline]:
    timeline = Timeline(threading.RLock(), start_at=1000.0, speed=0.0)
    timeline.start()
    yield timeline
    timeline.close()


def test_a_standing_clock_moves_only_by_advance(still: Timeline) -> None:
    assert still.now() == 1000.0
    still.advance(5)
    assert still.now() == 1005.0


def test_advance_runs_what_falls_due_in_order_and_each_at_its_own_time(still: Timeline) -> None:
    seen: list[tuple[str, float]] = []
    still.after(3, lambda: seen.append(("late", still.now())))

    def early() -> None:
        seen.append(("early", still.now()))
        still.after(1, lambda: seen.append(("chained", still.now())))

    still.after(1, early)
    still.after(9, lambda: seen.append(("not yet", still.now())))
    still.advance(4)
    assert seen == [("early", 1001.0), ("chained", 1002.0), ("late", 1003.0)]
    assert still.now() == 1004.0


def test_speed_multiplies_real_time_and_a_change_of_speed_keeps_the_time() -> None:
    timeline = Timeline(threading.RLock(), start_at=0.0, speed=1000.0)
    begun = time.monotonic()
    while timeline.now() < 20:
        time.sleep(0.001)
    assert time.monotonic() - begun < 5
    timeline.set_speed(0)
    stood = timeline.now()
    assert stood == timeline.now() >= 20
    assert timeline.real_s(7) == 0
    timeline.set_speed(2)
    assert timeline.real_s(7) == 3.5


def test_due_actions_run_by_themselves_while_the_clock_runs() -> None:
    timeline = Timeline(threading.RLock(), start_at=0.0, speed=100.0)
    timeline.start()
    done = threading.Event()
    timeline.after(1, done.set)
    assert done.wait(5)
    timeline.close()


def test_a_broken_action_is_logged_and_the_clock_goes_on(still: Timeline, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[float] = []
    still.after(1, _break)
    still.after(2, lambda: seen.append(still.now()))
    with caplog.at_level(logging.ERROR):
        still.advance(3)
    assert seen == [1002.0]
    assert "a transition of the fake failed" in caplog.text


def _break() -> None:
    raise LookupError("broken on purpose")


def test_nothing_runs_after_close() -> None:
    timeline = Timeline(threading.RLock(), start_at=0.0, speed=0.0)
    timeline.start()
    seen: list[int] = []
    timeline.after(1, lambda: seen.append(1))
    timeline.close()
    timeline.after(1, lambda: seen.append(2))
    timeline.advance(5)
    assert seen == []


def test_one_lane_keeps_its_order_while_another_does_not_wait_for_it() -> None:
    lanes = Lanes(workers=4)
    blocked, first_began, other_done, all_done = (threading.Event() for _ in range(4))
    seen: list[str] = []

    def slow() -> None:
        first_began.set()
        assert blocked.wait(5)
        seen.append("first")

    lanes.submit("a", slow)
    lanes.submit("a", lambda: (seen.append("second"), all_done.set())[1])
    assert first_began.wait(5)
    lanes.submit("b", other_done.set)
    assert other_done.wait(5)
    assert seen == []
    blocked.set()
    assert all_done.wait(5)
    lanes.end()
    lanes.join()
    assert seen == ["first", "second"]


def test_a_failed_job_does_not_stop_its_lane(caplog: pytest.LogCaptureFixture) -> None:
    lanes = Lanes(workers=1)
    done = threading.Event()
    lanes.submit("a", _break)
    lanes.submit("a", done.set)
    assert done.wait(5)
    assert "work on machine a failed" in caplog.text
    lanes.end()
    lanes.join()


def test_jobs_after_the_end_are_dropped() -> None:
    lanes = Lanes(workers=1)
    lanes.end()
    lanes.submit("a", lambda: pytest.fail("must not run"))
    lanes.join()
