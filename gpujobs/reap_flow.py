"""The Prefect flow `reap`: a pass of the reaper that automations, schedules and people can start."""

import asyncio
import time
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from gpujobs import reaper
from gpujobs.flow import SEAT, Seat, seated
from gpujobs.flow_log import RunLog
from gpujobs.flow_work import Work
from gpujobs.reaper import ReapResult

_RESUMED_S = 60.0  # a host that can resume a run has done so by then
_GLANCE_S = 0.2


@flow(name="reap", retries=0, persist_result=False)
async def reap(*, unknown_too: bool = False) -> State[Any]:
    """Release machines whose run is over or whose driver is dead.

    Args:
        unknown_too: also those that bear our name and are in no ledger; without it they are only told of.
    """
    log = RunLog(get_run_logger(), where="")
    async with seated() as seat:
        if SEAT.get() is not None:
            await _let_resume(seat)
        work = Work(lambda: reaper.reap(seat.host, yes=unknown_too, reporter=log), name="gpujobs-reap").begun()
        while not work.done() and not seat.stop.stopped:
            await asyncio.wait([work], timeout=_GLANCE_S)
    if not work.done():
        return Cancelled(message=f"left to the next pass: {seat.stop.error}")
    if error := work.result().error:
        raise error
    return _told(work.result().value, log)


async def _let_resume(seat: Seat, *, within_s: float = _RESUMED_S) -> None:
    """Wait while this host, or another, takes up runs that lost their driver: the reaper would end them."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and not seat.stop.stopped:
        undriven = await Work(lambda: reaper.recover(seat.host), name="gpujobs-reap").begun()
        if not undriven.value:
            return
        await asyncio.sleep(_GLANCE_S)


def _told(result: ReapResult, log: RunLog) -> State[Any]:
    for found in result.left:
        log.logger.info("left alone: %s, %s", found.machine.name, found.why)
    if result.failed:
        return Failed(message="; ".join(f"{name}: {why}" for name, why in result.failed))
    return Completed(message=f"{len(result.released)} released, {len(result.left)} left alone")
