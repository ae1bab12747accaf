"""How a flow's coroutine stands up to being cancelled, and what it does with a run that somebody else has ended."""

import asyncio
import logging
import threading
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Completed, Pending, Running, Scheduled

from gpujobs import flow, lifecycle
from gpujobs.clock import StopToken
from gpujobs.errors import BadInput
from gpujobs.flow import PUT_BACK, Driver, Seat, was_sent_again
from gpujobs.flow_log import RunLog
from gpujobs.flow_work import Done, Work
from gpujobs.host import Host
from gpujobs.prefect_api import run_id_of
from tests.cloud import Control, recipe_for

FLOW_RUN_ID = str(uuid.UUID(int=7))


def driver_on(host: Host, stop: StopToken, *, resumes: bool = False) -> Driver:
    log = RunLog(logging.getLogger("run"), where="")
    seat = Seat(host=host, stop=stop, resumes=resumes)
    return Driver(seat, run_id_of(FLOW_RUN_ID), log, reporter=log, history=no_history)


async def no_history() -> Sequence[State[Any]]:
    return ()


def test_cancelled_coroutine_stops_the_run_and_still_sees_its_work_end(host: Host) -> None:
    gate, stop = threading.Event(), StopToken()

    async def cancel_twice() -> Exception | None:
        work = Work(gate.wait, name="held").begun()
        waiting = asyncio.create_task(driver_on(host, stop)._end_of(work))
        for _ in range(2):
            await asyncio.sleep(0)
            waiting.cancel()
        while not stop.stopped:  # noqa: ASYNC110 - it is a token of threads
            await asyncio.sleep(0)
        assert not waiting.done()
        gate.set()
        return await waiting

    assert asyncio.run(cancel_twice()) is None


def test_work_that_does_not_end_in_time_is_left_and_keeps_no_process(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "DRAIN_S", 0.2)
    gate = threading.Event()

    async def cancel() -> None:
        waiting = asyncio.create_task(driver_on(host, StopToken())._end_of(Work(gate.wait, name="held").begun()))
        await asyncio.sleep(0)
        waiting.cancel()
        await waiting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "held"] == [True]
    gate.set()


def test_resumed_run_that_is_over_by_now_stays_as_it_is(host: Host, control: Control) -> None:
    recipe = recipe_for("autodl")
    lifecycle.open_run(host, recipe, run_id=run_id_of(FLOW_RUN_ID), flow_run_id=FLOW_RUN_ID)
    host.ledger.update_run(run_id_of(FLOW_RUN_ID), state="cancelled", error="the reaper ended it")
    state = asyncio.run(driver_on(host, StopToken(), resumes=True).run(recipe, FLOW_RUN_ID))
    assert (state.is_cancelled(), state.message) == (True, "the reaper ended it")
    assert control.machines() == []


RETRIED: State[Any] = AwaitingRetry()
BACK: State[Any] = Scheduled(message=PUT_BACK)


@pytest.mark.parametrize(
    ("states", "again"),
    [
        ([Scheduled(), Pending(), Running(), Completed(), Pending(), Running()], False),
        ([Scheduled(), Pending(), Running(), Completed(), BACK, Pending(), Running()], False),
        ([Scheduled(), Pending(), Running(), Completed(), RETRIED, Pending(), Running()], True),
        ([Scheduled(), Pending(), Running(), Completed(), RETRIED, Pending(), BACK, Pending(), Running()], True),
        ([], False),
    ],
    ids=["taken too late", "put back by us", "retried", "retried and put back", "unknown"],
)
def test_of_a_run_that_is_over_only_a_retry_is_a_new_attempt(states: list[State[Any]], again: bool) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    given = [state.model_copy(update={"timestamp": at + timedelta(seconds=n)}) for n, state in enumerate(states)]
    assert was_sent_again(given) == again


def test_work_is_done_once_and_its_error_is_given_not_raised() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise BadInput("no")

    async def twice() -> tuple[Done, Done]:
        work = Work(fail, name="once")
        return await work.begun(), await work.begun()

    first, second = asyncio.run(twice())
    assert (calls, first is second, str(first.error)) == ([1], True, "no")
