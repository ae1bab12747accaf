"""The watcher: one asks for all, news reaches everybody at once, trouble is told, and it ends with its last watch."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from fake_server.server import FakeServer
from gpujobs.backends import autodl, matrixdc
from gpujobs.clock import StopToken, SystemClock
from gpujobs.errors import BadCredentials, BootTimeout, Cancelled, GpujobsError, Unavailable
from gpujobs.models import Event, Machine, MachineStatus
from gpujobs.watch import Watch, Watcher
from tests.backends.clouds import account_on, calls, fault, quiet_server, recipe_of
from tests.clocks import ManualClock, eventually

BOOTING, RUNNING, QUEUED = MachineStatus.BOOTING, MachineStatus.RUNNING, MachineStatus.QUEUED
ENDED, FAILED, GONE = MachineStatus.ENDED, MachineStatus.FAILED, MachineStatus.GONE
AT = datetime(2026, 1, 1, tzinfo=UTC)


def machine(number: int = 1) -> Machine:
    return Machine(backend="cloud", id=f"m{number}", name=f"gj-a-run1-{number}", region="r", status=QUEUED)


def event(status: MachineStatus, *, number: int = 1, at_s: int = 0, unit: str = "") -> Event:
    return Event(
        machine_id=f"m{number}", unit=unit, status=status, raw_status=str(status), at=AT + timedelta(seconds=at_s)
    )


class Cloud:
    """A source whose reports a test writes; remembers when it was asked, and for whom."""

    name = "cloud"

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.report: list[Event] = []
        self.error: Exception | None = None
        self.asked: list[tuple[float, list[str]]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def events(self, machines: Sequence[Machine]) -> Sequence[Event]:
        self.asked.append((self.clock.monotonic(), [one.id for one in machines]))
        self.may_answer.wait(10)
        if self.error is not None:
            raise self.error
        return list(self.report)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def cloud(clock: ManualClock) -> Cloud:
    return Cloud(clock)


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def watcher(cloud: Cloud, clock: ManualClock, heard: list[Event]) -> Iterator[Watcher]:
    watcher = Watcher(cloud, clock=clock, dice=random.Random(3), on_event=heard.append)
    yield watcher
    watcher.close()
    eventually(lambda: watching() == [], what="no thread is left")


def watching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "watch-cloud"]


class Waiting:
    """A wait_for on a thread of its own."""

    def __init__(
        self, watch: Watch, *wanted: MachineStatus, timeout_s: float = 60.0, stop: StopToken | None = None
    ) -> None:
        self.found: Machine | None = None
        self.error: GpujobsError | None = None
        self.ticks: list[float] = []
        self.stop = stop or StopToken()

        def wait() -> None:
            try:
                self.found = watch.wait_for(wanted, timeout_s=timeout_s, stop=self.stop, tick=self.ticks.append)
            except GpujobsError as error:
                self.error = error

        self.thread = threading.Thread(target=wait, daemon=True)
        self.thread.start()

    def over(self) -> bool:
        return not self.thread.is_alive()


def pass_time(clock: ManualClock, seconds: float, *, threads: int = 1, step_s: float = 0.25) -> None:
    """Let time pass in steps, each when `threads` threads are parked again."""
    for _ in range(round(seconds / step_s)):
        clock.until_waiting(threads)
        clock.advance(step_s)
    clock.until_waiting(threads)


def test_news_ends_the_wait_and_carries_the_unit(watcher: Watcher, cloud: Cloud, clock: ManualClock) -> None:
    with watcher.watch(machine()) as watch:
        waiting = Waiting(watch, RUNNING)
        cloud.report = [event(BOOTING, unit="c1")]
        pass_time(clock, 2, threads=2)
        assert (waiting.over(), watch.machine.status) == (False, BOOTING)
        cloud.report = [event(BOOTING, unit="c1"), event(RUNNING, at_s=1, unit="c2")]
        eventually(lambda: advance_and(clock, waiting.over), what="the wait is over")
    assert waiting.found == replace(machine(), status=RUNNING, raw_status="running", unit="c2")
    assert watch.machine == waiting.found


def advance_and(clock: ManualClock, reached: Callable[[], bool]) -> bool:
    clock.advance(0.1)
    return reached()


def test_a_status_that_is_there_already_is_not_waited_for(watcher: Watcher) -> None:
    with watcher.watch(replace(machine(), status=RUNNING)) as watch:
        assert watch.wait_for({RUNNING}, timeout_s=0, stop=StopToken()).status is RUNNING


@pytest.mark.parametrize("end", [ENDED, FAILED, GONE])
def test_an_end_ends_the_wait_and_the_caller_decides(
    end: MachineStatus, watcher: Watcher, cloud: Cloud, clock: ManualClock
) -> None:
    cloud.report = [event(end)]
    with watcher.watch(machine()) as watch:
        waiting = Waiting(watch, RUNNING)
        eventually(lambda: advance_and(clock, waiting.over), what="the wait is over")
    assert waiting.found
    assert waiting.found.status is end


@pytest.mark.parametrize("end", [ENDED, FAILED])
def test_who_waits_for_gone_waits_on_when_it_is_over_but_listed(
    end: MachineStatus, watcher: Watcher, cloud: Cloud, clock: ManualClock
) -> None:
    cloud.report = [event(end)]
    with watcher.watch(machine()) as watch:
        waiting = Waiting(watch, GONE)
        pass_time(clock, 3, threads=2)
        assert not waiting.over()
        cloud.report = [event(GONE)]
        eventually(lambda: advance_and(clock, waiting.over), what="the wait is over")
    assert waiting.found
    assert waiting.found.status is GONE


def test_past_its_deadline_it_says_where_the_machine_stands_and_what_the_trouble_was(
    watcher: Watcher, cloud: Cloud, clock: ManualClock
) -> None:
    cloud.report = [event(BOOTING)]
    with watcher.watch(machine()) as watch:
        waiting = Waiting(watch, RUNNING, timeout_s=5)
        pass_time(clock, 2, threads=2)
        cloud.error = Unavailable("Cloud: list things: failed")
        pass_time(clock, 2, threads=2)
        assert not waiting.over()
        eventually(lambda: advance_and(clock, waiting.over), what="the wait is over")
    assert isinstance(waiting.error, BootTimeout)
    assert str(waiting.error) == (
        "gj-a-run1-1 (cloud m1) is booting ('booting' in its provider's words) after 5 s, not running; "
        "the last trouble was: Cloud: list things: failed"
    )
    assert waiting.ticks == sorted(waiting.ticks)
    assert waiting.ticks[0] == 0
    assert 4 < waiting.ticks[-1] < 5


def test_a_stop_ends_the_wait_with_its_own_error(watcher: Watcher, clock: ManualClock) -> None:
    with watcher.watch(machine()) as watch:
        waiting = Waiting(watch, RUNNING)
        clock.until_waiting(2)
        waiting.stop.stop(Cancelled("asked to"))
        clock.advance(0.25)
        eventually(waiting.over, what="the wait is over")
    assert isinstance(waiting.error, Cancelled)


def test_all_quiet_is_asked_less_and_less_and_news_makes_it_quick_again(
    watcher: Watcher, cloud: Cloud, clock: ManualClock
) -> None:
    cloud.report = [event(BOOTING)]
    with watcher.watch(machine()):
        pass_time(clock, 100)
        times = [at for at, _ in cloud.asked]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert 0.3 <= gaps[0] <= 1.0
        assert 6.9 <= gaps[-1] <= 13.3
        assert max(gaps) <= 13.3
        assert 12 <= len(times) <= 24
        assert len({round(gap, 2) for gap in gaps[-4:]}) > 1  # shaken, so that many processes do not fall into step
        cloud.report = [event(BOOTING), event(BOOTING, at_s=9)]
        pass_time(clock, 20)
        assert cloud.asked[len(times) + 1][0] - cloud.asked[len(times)][0] <= 1.0


def test_a_new_watch_is_asked_for_at_once_but_many_are_not_many_calls(
    watcher: Watcher, cloud: Cloud, clock: ManualClock
) -> None:
    with ExitStack() as stack:
        stack.enter_context(watcher.watch(machine(0)))
        pass_time(clock, 60)
        quiet = len(cloud.asked)
        for number in range(1, 51):
            stack.enter_context(watcher.watch(machine(number)))
        pass_time(clock, 1, step_s=0.05)
        assert 1 <= len(cloud.asked) - quiet <= 4
        assert set(cloud.asked[-1][1]) == {f"m{number}" for number in range(51)}


def test_each_event_is_told_once_however_often_it_is_reported(
    watcher: Watcher, cloud: Cloud, clock: ManualClock, heard: list[Event]
) -> None:
    first, second = event(BOOTING), event(RUNNING, at_s=1)
    cloud.report = [first, first]
    with watcher.watch(machine()), watcher.watch(machine()):
        pass_time(clock, 2)
        cloud.report = [first, second]
        pass_time(clock, 5)
        cloud.report = [second]
        pass_time(clock, 5)
    assert heard == [first, second]


def test_old_events_are_forgotten_so_that_memory_is_bounded(watcher: Watcher, cloud: Cloud, clock: ManualClock) -> None:
    with watcher.watch(machine()):
        for start in range(0, 3000, 500):
            cloud.report = [event(BOOTING, at_s=start + number) for number in range(500)]
            asked = len(cloud.asked)
            eventually(lambda asked=asked: advance_and(clock, lambda: len(cloud.asked) > asked + 1), what="asked")  # type: ignore[misc]
        assert len(watcher._heard["m1"]) <= 512
    eventually(lambda: watching() == [], what="the thread has ended")
    assert watcher._heard == {}


def test_a_listener_that_fails_does_not_stop_the_watching(cloud: Cloud, clock: ManualClock) -> None:
    def fail(_: Event) -> None:
        raise OSError("the disk is full")

    cloud.report = [event(RUNNING)]
    watcher = Watcher(cloud, clock=clock, dice=random.Random(1), on_event=fail)
    with watcher.watch(machine()) as watch:
        waiting = Waiting(watch, RUNNING)
        eventually(lambda: advance_and(clock, waiting.over), what="the wait is over")
    assert waiting.found


def test_a_provider_that_is_away_is_asked_again_until_it_answers(
    watcher: Watcher, cloud: Cloud, clock: ManualClock
) -> None:
    cloud.error = Unavailable("away")
    with watcher.watch(machine()) as watch:
        waiting = Waiting(watch, RUNNING)
        pass_time(clock, 20, threads=2)
        assert not waiting.over()
        cloud.error, cloud.report = None, [event(RUNNING)]
        eventually(lambda: advance_and(clock, waiting.over), what="the wait is over")
    assert waiting.found


def test_a_provider_is_left_alone_for_as_long_as_it_asks(watcher: Watcher, cloud: Cloud, clock: ManualClock) -> None:
    cloud.error = Unavailable("busy", retry_after_s=30)
    with ExitStack() as stack:
        stack.enter_context(watcher.watch(machine(1)))
        pass_time(clock, 10)
        stack.enter_context(watcher.watch(machine(2)))
        pass_time(clock, 19)
        assert len(cloud.asked) == 1
        pass_time(clock, 2)
        assert len(cloud.asked) == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [(BadCredentials("no such token"), BadCredentials), (ValueError("bug"), GpujobsError)],
)
def test_an_error_that_asking_again_does_not_mend_reaches_everybody(
    error: Exception, kind: type[GpujobsError], watcher: Watcher, cloud: Cloud, clock: ManualClock
) -> None:
    cloud.error = error
    with watcher.watch(machine(1)) as one, watcher.watch(machine(2)) as two:
        waits = [Waiting(one, RUNNING), Waiting(two, RUNNING)]
        eventually(lambda: advance_and(clock, lambda: all(wait.over() for wait in waits)), what="both waits are over")
    assert [type(wait.error) for wait in waits] == [kind, kind]


def test_the_thread_lives_only_while_somebody_watches(watcher: Watcher, cloud: Cloud, clock: ManualClock) -> None:
    for _ in range(3):
        assert watching() == []
        with watcher.watch(machine(1)), watcher.watch(machine(2)):
            clock.until_waiting(1)
            assert len(watching()) == 1
            assert watching()[0].daemon
        eventually(lambda: watching() == [], what="the thread has ended")
    asked = len(cloud.asked)
    clock.advance(100)
    assert len(cloud.asked) == asked


def test_watches_that_come_and_go_on_many_threads_are_all_served(cloud: Cloud) -> None:
    cloud.report = [event(RUNNING, number=number) for number in range(20)]
    watcher = Watcher(cloud, clock=SystemClock(), dice=random.Random(5), first_s=0.001, cap_s=0.01)
    found: list[MachineStatus] = []

    def serve(number: int) -> None:
        for _ in range(20):
            with watcher.watch(machine(number)) as watch:
                found.append(watch.wait_for({RUNNING}, timeout_s=10, stop=StopToken()).status)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [RUNNING] * 400
    eventually(lambda: watching() == [], what="the thread has ended")


def test_closing_ends_the_waits_and_takes_no_more(cloud: Cloud, clock: ManualClock) -> None:
    watcher = Watcher(cloud, clock=clock, dice=random.Random(1))
    with watcher.watch(machine()) as watch:
        waiting = Waiting(watch, RUNNING)
        clock.until_waiting(2)
        watcher.close()
        clock.advance(0.25)
        eventually(waiting.over, what="the wait is over")
    assert isinstance(waiting.error, Unavailable)
    with pytest.raises(Unavailable, match="closed"), watcher.watch(machine()):
        pass


@pytest.mark.parametrize(("name", "number"), [("matrixdc", 50), ("autodl", 20)])
def test_many_watched_machines_boot_at_the_fake_with_few_calls(name: str, number: int) -> None:
    with quiet_server() as server:
        cheap_stock(server)
        module = {"matrixdc": matrixdc, "autodl": autodl}[name]
        backend = module.open_backend(account_on(server, name), clock=SystemClock())
        recipe = recipe_of("RTX 4090")
        offer = backend.offers(recipe)[0]
        made = [backend.create(recipe, offer, name=f"gj-t-run1-{count}", image="") for count in range(number)]
        fault(server, f"{name}.list_{'instances' if name == 'matrixdc' else 'events'}", "error_500", count=3)
        before = calls(server)
        watcher = Watcher(backend, clock=SystemClock(), dice=random.Random(2))
        with ExitStack() as stack:
            watches = [stack.enter_context(watcher.watch(one)) for one in made]
            for watch in watches:
                assert watch.wait_for({RUNNING}, timeout_s=30, stop=StopToken()).status is RUNNING
            if name == "matrixdc":
                lists = calls(server, "matrixdc.list_instances")
                assert calls(server) - before == lists  # one call a look, whatever the number of machines
                assert lists <= 3 + 12
            else:
                assert calls(server, "autodl.list_events") <= number * 15
        watcher.close()


def cheap_stock(server: FakeServer) -> None:
    with server.world.ground.lock:
        server.world.matrixdc.idle["4090"] = 200
        fleet = server.world.autodl.fleet
        fleet.hosts = tuple(
            replace(host, gpu_count=64) if host.gpu_name == "RTX 4090" else host for host in fleet.hosts
        )
        fleet._idle = {host.machine_id: host.gpu_count for host in fleet.hosts}
