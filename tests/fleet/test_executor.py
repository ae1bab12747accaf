"""A fleet is a `concurrent.futures.Executor`: what the standard library says of both is so, on rented machines."""

import concurrent.futures
import functools
import gc
import math
import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs import Fleet
from gpujobs.errors import BadInput, BadResult, JobFailed, KilledRemotely
from tests.clocks import eventually
from tests.cloud import GPUS, Control

LIMIT_S = 60
pytestmark = pytest.mark.xdist_group("fleet-executor")


@pytest.fixture(scope="module")
def cloud(place: Path) -> Iterator[FakeServer]:
    with FakeServer(seed=1) as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in {**fake.env(), "GPUJOBS_HOME": str(place / "home"), "GPUJOBS_OWNER": "tester"}.items():
            patch.setenv(name, value)
        patch.setenv("XDG_CONFIG_HOME", str(place / "config"))
        patch.delenv("GPUJOBS_DATABASE_URL", raising=False)
        yield fake


def open_fleet(machines: int = 1, *, gpus: int = 1, **keys: Any) -> Fleet:
    return Fleet({"accelerators": f"{GPUS['matrixdc']}:{gpus}", "infra": "matrixdc"}, machines=machines, **keys)


def is_gone(cloud: FakeServer, run_id: str) -> None:
    control = Control(cloud)
    eventually(lambda: not any(run_id in name for name in control.alive()), what="the machines are gone")


@pytest.fixture(scope="module")
def pool(cloud: FakeServer, work: ModuleType) -> Iterator[Fleet]:
    """One machine with two GPUs, and so two slots, for all tests that leave it as it was."""
    with open_fleet(gpus=2) as fleet:
        assert fleet.submit(work.square, 1).result(LIMIT_S) == 1
        yield fleet
    assert Control(cloud).left() == []


def test_submit_gives_true_futures(pool: Fleet, work: ModuleType) -> None:
    future = pool.submit(work.mul, 6, y=7)
    assert (type(future), future.result(LIMIT_S), future.done(), future.running()) == (Future, 42, True, False)
    assert future.cancel() is False
    named_fn = pool.submit(work.mul, x=1, y=2)
    assert named_fn.result(LIMIT_S) == 2


def test_map_is_as_the_builtin(pool: Fleet, work: ModuleType) -> None:
    assert list(pool.map(work.mul, range(10), range(5, 20))) == [x * (x + 5) for x in range(10)]
    assert list(pool.map(work.square, range(11), chunksize=4)) == [x * x for x in range(11)]
    assert list(pool.map(work.square, [], chunksize=4)) == []
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        pool.map(work.square, range(3), chunksize=0)
    results = pool.map(operator.floordiv, [5, 4, 3], [1, 0, 3])
    assert next(results) == 5
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(pool.map(work.mirror, [1, 2], chunksize=2)) == [work.Point(1, -1), work.Point(2, -2)]


def test_map_times_out_and_cancels_what_has_not_begun(pool: Fleet, work: ModuleType) -> None:
    with open_hand(pool) as touch:
        held = [pool.submit(work.wait_for, "map-go") for _ in range(2)]
        results = pool.map(work.touch, ["map-begun"], timeout=0.05)
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
        touch("map-go")
        concurrent.futures.wait(held, timeout=LIMIT_S)
    assert pool.submit(os.path.exists, "map-begun").result(LIMIT_S) is False


@contextmanager
def open_hand(pool: Fleet) -> Iterator[Callable[[str], object]]:
    """Touch files where the tasks of the fleet's one machine run, past its slots."""
    (machine,) = pool._run._crew
    assert machine.link is not None
    assert machine.link.shell is not None
    assert machine.attempt is not None
    shell, folder = machine.link.shell, machine.attempt._runner(machine.link.shell).work
    yield lambda name: shell.check(f"touch {folder}/{name}", what="touching")


def test_cancel_before_the_start_and_after_it(pool: Fleet, work: ModuleType) -> None:
    with open_hand(pool) as touch:
        running = [pool.submit(work.wait_for, "cancel-go") for _ in range(2)]
        eventually(lambda: all(one.running() for one in running), what="both slots are taken")
        queued = pool.submit(work.square, 3)
        called: list[object] = []
        queued.add_done_callback(called.append)
        assert (queued.cancel(), queued.cancelled(), queued.running(), called) == (True, True, False, [queued])
        assert [one.cancel() for one in running] == [False, False]
        touch("cancel-go")
        assert [one.result(LIMIT_S) for one in running] == ["cancel-go"] * 2
        with pytest.raises(concurrent.futures.CancelledError):
            queued.result(LIMIT_S)
        assert concurrent.futures.wait([queued], timeout=LIMIT_S).done == {queued}


def test_callbacks_are_called_and_their_errors_are_logged(
    pool: Fleet, work: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    came: list[object] = []
    with open_hand(pool) as touch:
        future = pool.submit(work.wait_for, "callback-go")
        again: list[Future[int]] = []

        def angry(_: object) -> None:
            raise LookupError("of a callback")

        future.add_done_callback(angry)
        future.add_done_callback(lambda one: came.append(one.result()))
        future.add_done_callback(lambda _: again.append(pool.submit(work.square, 4)))
        touch("callback-go")
    assert future.result(LIMIT_S) == "callback-go"
    eventually(lambda: again, what="the callback submitted")
    assert again[0].result(LIMIT_S) == 16
    assert came == ["callback-go"]
    assert "of a callback" in caplog.text


def test_a_callback_may_wait_for_other_tasks_and_holds_none_up(pool: Fleet, work: ModuleType) -> None:
    let_go, came = threading.Event(), [0]
    pool.submit(work.square, 2).add_done_callback(lambda _: let_go.wait(LIMIT_S) and came.append(2))
    with open_hand(pool) as touch:
        first = pool.submit(work.wait_for, "chain-go")
        other = pool.submit(work.square, 3)
        first.add_done_callback(lambda _: came.append(other.result(LIMIT_S)))
        first.add_done_callback(lambda _: came.append(pool.submit(work.square, 4).result(LIMIT_S)))
        touch("chain-go")
        assert other.result(LIMIT_S) == 9, "though a callback stays"
    eventually(lambda: came == [0, 9, 16], what="the callback had what it waited for")
    let_go.set()
    eventually(lambda: came == [0, 9, 16, 2], what="the one that stayed goes on")


def test_wait_and_as_completed_mix_with_the_futures_of_others(pool: Fleet, work: ModuleType) -> None:
    with ThreadPoolExecutor(1) as threads, open_hand(pool) as touch:
        mine, other = pool.submit(work.wait_for, "mix-go"), threads.submit(work.square, 5)
        done, left = concurrent.futures.wait([mine, other], timeout=LIMIT_S, return_when=FIRST_COMPLETED)
        assert (done, left) == ({other}, {mine})
        touch("mix-go")
        found = {future.result() for future in concurrent.futures.as_completed([mine, other], timeout=LIMIT_S)}
    assert found == {"mix-go", 25}


def test_exceptions_come_as_in_a_decorated_call(pool: Fleet, work: ModuleType) -> None:
    error = pool.submit(work.fail, 3).exception(LIMIT_S)
    assert (type(error), str(error)) == (work.Odd, "3 is bad")
    assert error is not None
    assert 'raise Odd(x, why="is bad")' in error.__notes__[0]
    assert "slot.py" not in error.__notes__[0]
    killed = pool.submit(work.die, "signal").exception(LIMIT_S)
    assert isinstance(killed, KilledRemotely)
    assert killed.signal == 9
    left = pool.submit(work.die, "exit").exception(LIMIT_S)
    assert (type(left), "exit code 7" in str(left)) == (JobFailed, True)
    assert pool.submit(work.square, 5).result(LIMIT_S) == 25, "the slot is there again"
    assert isinstance(pool.submit(work.odd_result).exception(LIMIT_S), BadResult)


class _Unpicklable:
    def __reduce__(self) -> str:
        raise LookupError("cannot be pickled")


def test_what_cannot_be_sent_is_the_futures_exception(pool: Fleet, work: ModuleType) -> None:
    for argument in (threading.Lock(), _Unpicklable()):
        future = pool.submit(work.square, argument)
        assert isinstance(future.exception(0), BadInput)
        assert "argument x" in str(future.exception(0))
    assert pool.submit(work.square, 2).result(LIMIT_S) == 4


def test_whatever_can_be_called_goes(pool: Fleet, work: ModuleType) -> None:
    offset = 40
    called = [
        pool.submit(pow, 2, 5),
        pool.submit(math.factorial, 5),
        pool.submit(functools.partial(work.mul, 3), 4),
        pool.submit(work.Holder(5).plus, 2),
        pool.submit(lambda number: number + offset, 2),
        pool.submit(functools.partial(lambda x, y: x - y, 9), 2),
    ]
    assert [one.result(LIMIT_S) for one in called] == [32, 120, 12, 7, 42, 7]


def test_large_arguments_and_results_come_whole(pool: Fleet, work: ModuleType) -> None:
    data = bytes(range(256)) * 12_000
    assert pool.submit(work.size, data).result(LIMIT_S) == len(data)
    assert pool.submit(work.big, 3_000_000).result(LIMIT_S) == b"x" * 3_000_000
    assert not list((pool._run.folder.path / "tasks").iterdir()), "a task's file goes with it"


def test_many_threads_submit(pool: Fleet, work: ModuleType) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda x: pool.submit(work.square, x).result(LIMIT_S), range(80))
    assert list(found) == [x * x for x in range(80)]


def test_each_gpu_has_a_process_of_its_own(pool: Fleet, work: ModuleType) -> None:
    seen = {pool.submit(work.where).result(LIMIT_S) for _ in range(3)}
    seen |= set(pool.map(work.where, range(40)))
    assert len({machine for machine, _, _ in seen}) == 1
    eventually(
        lambda: {gpu for _, _, gpu in seen} == {"0", "1"} or seen.update(pool.map(work.where, range(20))),
        what="both GPUs are seen",
    )
    assert len({pid for _, pid, _ in seen}) == 2


def test_a_thousand_queued_tasks_cost_little_and_no_thread(pool: Fleet, work: ModuleType) -> None:
    import tracemalloc  # noqa: PLC0415 - here alone

    with open_hand(pool) as touch:
        held = [pool.submit(work.wait_for, "queue-go") for _ in range(2)]
        threads = threading.active_count()
        tracemalloc.start()
        queued = [pool.submit(work.square, number) for number in range(1000)]
        bytes_now, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert bytes_now < 20_000_000
        assert threading.active_count() <= threads
        assert sum(one.cancel() for one in queued) == 1000
        touch("queue-go")
    concurrent.futures.wait([*held, *queued], timeout=LIMIT_S)
    assert [one.result(LIMIT_S) for one in held] == ["queue-go"] * 2


def test_after_shutdown_nothing_is_taken_and_what_was_queued_is_done(cloud: FakeServer, work: ModuleType) -> None:
    fleet = open_fleet()
    futures = [fleet.submit(work.square, number) for number in range(5)]
    futures[4].add_done_callback(lambda _: fleet.shutdown())  # which must not wait for itself
    fleet.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        fleet.submit(work.square, 1)
    assert [one.result(LIMIT_S) for one in futures] == [0, 1, 4, 9, 16]
    fleet.shutdown()
    fleet.shutdown(wait=True)
    is_gone(cloud, fleet.run_id)
    assert fleet.cost is not None
    never = open_fleet()
    never.shutdown()
    assert not any(never.run_id in one["name"] for one in Control(cloud).machines()), "without a task it rents nothing"


def test_shutdown_can_cancel_what_is_queued(cloud: FakeServer, work: ModuleType) -> None:
    fleet = open_fleet()
    futures = [fleet.submit(work.square, number) for number in range(3)]
    fleet.shutdown(cancel_futures=True)
    assert all(one.cancelled() for one in futures)
    assert concurrent.futures.wait(futures, timeout=0).not_done == set()
    is_gone(cloud, fleet.run_id)


def test_a_fleet_that_nobody_has_any_more_ends_by_itself(cloud: FakeServer, work: ModuleType) -> None:
    fleet = open_fleet()
    gone = weakref.ref(fleet)
    future, over, run_id = fleet.submit(work.square, 9), fleet._run.over, fleet.run_id
    del fleet
    gc.collect()
    assert gone() is None
    assert future.result(LIMIT_S) == 81
    assert over.wait(LIMIT_S)
    is_gone(cloud, run_id)
