"""The flow that releases machines which no living run owns; let it run every few minutes."""

import asyncio

from prefect import flow, get_run_logger

from gpujobs import reaper
from gpujobs.errors import GpujobsError
from gpujobs.flow import seated
from gpujobs.flow_log import RunLog


@flow(name="reap", retries=0, persist_result=False)
async def reap(*, unknown_too: bool = False) -> str:
    """Release machines whose run is over or whose driver is dead.

    Args:
        unknown_too: also those that bear our name and are in no ledger; without it they are only told of.
    """
    log = RunLog(get_run_logger(), where="")
    async with seated() as seat:
        result = await asyncio.to_thread(reaper.reap, seat.host, yes=unknown_too, reporter=log)
    for found in result.left:
        log.logger.info("left alone: %s, %s", found.machine.name, found.why)
    if result.failed:
        raise GpujobsError("; ".join(f"{name}: {why}" for name, why in result.failed))
    return f"{len(result.released)} released, {len(result.left)} left alone"


if __name__ == "__main__":
    asyncio.run(reap())
