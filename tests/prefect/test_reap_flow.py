"""The reaper's flow gives way: to a host that resumes runs, and to whoever stops it."""

import asyncio

from gpujobs import lifecycle, reap_flow
from gpujobs.clock import StopToken
from gpujobs.errors import Detached
from gpujobs.flow import Seat
from gpujobs.host import Host
from tests.cloud import recipe_for


def undriven(host: Host) -> str:
    """A run whose driver is dead."""
    run_id = lifecycle.new_run_id()
    lifecycle.open_run(host, recipe_for("autodl"), run_id=run_id)
    host.ledger.update_run(run_id, state="running")
    return run_id


def test_reaper_in_a_host_waits_until_a_lost_run_is_driven_again(host: Host) -> None:
    run_id = undriven(host)

    async def resume_meanwhile() -> None:
        waiting = asyncio.create_task(reap_flow._let_resume(Seat(host=host, stop=StopToken())))
        await asyncio.wait([waiting], timeout=1.0)
        assert not waiting.done()
        host.ledger.claim_run(run_id, "another:1:host", lease_s=60, now=host.clock.now())
        await asyncio.wait_for(waiting, 30)

    asyncio.run(resume_meanwhile())


def test_reaper_waits_no_longer_than_its_bound_and_not_once_the_host_stops(host: Host) -> None:
    undriven(host)
    stopped = StopToken()
    stopped.stop(Detached("the host stops"))

    async def wait() -> None:
        await asyncio.wait_for(reap_flow._let_resume(Seat(host=host, stop=stopped)), 30)
        await asyncio.wait_for(reap_flow._let_resume(Seat(host=host, stop=StopToken()), within_s=0.5), 30)

    asyncio.run(wait())
