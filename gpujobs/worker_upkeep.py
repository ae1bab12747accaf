"""What a host does beside its runs: hears cancels, resumes what lost its driver, mends states, calls the reaper."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import Abort, ObjectNotFound
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled, Running, Scheduled

from gpujobs import errors, reaper
from gpujobs.flow import PUT_BACK, end_state, run_recipe
from gpujobs.flow_log import RunLog
from gpujobs.flow_page import tell_end
from gpujobs.flow_work import in_thread
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED, Run
from gpujobs.prefect_api import PAGE, POOL, run_id_of
from gpujobs.prefect_client import PatientClient
from gpujobs.worker_deleted import Deleted
from gpujobs.worker_floor import Floor
from gpujobs.worker_slots import TEND_S

CANCEL_S = 1.0
DELETED_S = 5.0
RECOVER_S = 10.0
REAP_S = 300.0
ORPHAN = timedelta(seconds=60)  # taken by a host so long ago, and in no ledger: that host is dead
NO_SUSPENSION = (
    "a run on a rented machine cannot be suspended: the machine would cost money all the while, so it goes on; "
    "cancel it to stop paying, and retry it later"
)
NOT_CRASHED = "the run had not crashed: it goes on, on the machine that it has"
_SLOWEST_S = 30.0  # between two tries of what fails
TRIES = 3  # resuming what will not go on; after that it is the reaper's

_THREAD = "gpujobs-upkeep"
_log = logging.getLogger(__name__)


class Upkeep:
    """Five loops, none of which ends because something failed once."""

    def __init__(self, host: Host, floor: Floor, client: PatientClient, *, tend: Callable[[], None]) -> None:
        """Look after the runs on `floor`, and after those that dead hosts have left behind; `tend` sees to leases."""
        self._host, self._floor, self._client, self._tend = host, floor, client, tend
        self._tries: dict[str, int] = {}
        self._deleted = Deleted(client)

    async def take_over(self, worker_name: str) -> None:
        """Before any run is taken: put back in the queue what our forerunner of this name took and never began."""
        taken = [one for one in await self._unended() if one.state and one.state.message == taken_by(worker_name)]
        with suppress(_Failed):  # those are orphans in a minute, and mended then
            await _each(self._mend(flow_run, orphan=True) for flow_run in taken)

    async def run(self) -> None:
        """Go on until cancelled."""
        await asyncio.gather(
            _every(CANCEL_S, self.hear_orders),
            _every(DELETED_S, self.hear_deletions),
            _every(RECOVER_S, self.recover),
            _every(REAP_S, self.reap),
            _every(TEND_S, self.tend),
        )

    async def hear_orders(self) -> None:
        """Stop the runs that Prefect wants cancelled, undo what a running one cannot be: one call for all of them."""
        ids = self._unstopped()
        if not ids:
            return
        told = await self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                id=FlowRunFilterId(any_=ids),
                state=_types(StateType.CANCELLING, StateType.CANCELLED, StateType.PAUSED, StateType.SCHEDULED),
            )
        )
        for flow_run in told:
            if flow_run.state is not None and flow_run.state.type in {StateType.CANCELLING, StateType.CANCELLED}:
                run_id = run_id_of(str(flow_run.id))
                self._floor.cancel(run_id, errors.Cancelled(f"run {run_id} was cancelled in Prefect"))
        await _each(self._go_on(flow_run, NO_SUSPENSION) for flow_run in told if _is_suspended(flow_run))
        await _each(self._undo_retry(flow_run) for flow_run in told if flow_run.state and flow_run.state.is_scheduled())

    async def hear_deletions(self) -> None:
        """Stop the runs whose flow runs somebody has deleted: nobody could cancel them any more."""
        for flow_run_id in await self._deleted.among(self._unstopped()):
            run_id = run_id_of(str(flow_run_id))
            why = f"run {run_id} was cancelled: its flow run was deleted in Prefect"
            self._floor.cancel(run_id, errors.FlowRunDeleted(why))

    def _unstopped(self) -> Sequence[UUID]:
        sitting = self._floor.sitting.values()
        return [UUID(one.flow_run_id) for one in sitting if one.flow_run_id and not one.stop.stopped]

    async def _go_on(self, flow_run: FlowRun, why: str) -> None:
        """Call the flow run Running again, which its run never ceased to be."""
        flow_run_logger(flow_run).warning("%s", why)
        running: State[Any] = Running(message=why)
        await self._client.tell_once(flow_run.id, running)

    async def _undo_retry(self, flow_run: FlowRun) -> None:
        """Say that a run goes on which was called crashed and retried: else it would be shown as Late to its end."""
        run = await in_thread(lambda: _ledger_run(self._host, run_id_of(str(flow_run.id))), name=_THREAD)
        if run is not None and run.state == "running":  # else it is over, and waits for its new attempt
            await self._go_on(flow_run, NOT_CRASHED)

    async def recover(self) -> None:
        """Resume runs whose driver is dead, then mend the states of flow runs that ended, or began, unseen."""
        with suppress(_Failed):  # what it could not resume has some tries left
            await _each(self._resume(run_id) for run_id in await self._resumable())
        unended = await self._unended()
        await _each(
            self._mend(flow_run, orphan=_taken_long_ago(flow_run))
            for flow_run in unended
            if run_id_of(str(flow_run.id)) not in self._floor.sitting
        )

    async def _resumable(self) -> Sequence[str]:
        undriven: Sequence[str] = await in_thread(lambda: reaper.recover(self._host), name=_THREAD)
        sitting = self._floor.sitting
        return [run_id for run_id in undriven if run_id not in sitting and self._tries.get(run_id, 0) < TRIES]

    async def _resume(self, run_id: str) -> None:
        run: Run = await in_thread(lambda: self._host.ledger.get_run(run_id), name=_THREAD)
        flow_run = await self._flow_run(run)
        kind = flow_run.state.type if flow_run and flow_run.state else None
        if flow_run and _is_suspended(flow_run):
            await self._go_on(flow_run, NO_SUSPENSION)
        self._tries[run_id] = self._tries.get(run_id, 0) + 1  # a server that does not answer costs none
        if flow_run and (kind in {StateType.RUNNING, StateType.PENDING} or _is_suspended(flow_run)):
            self._floor.seat(flow_run, resumes=True)
        elif kind != StateType.SCHEDULED:  # a scheduled one is on its way to a host
            self._floor.finish(run, flow_run, cancelled=kind in {StateType.CANCELLING, StateType.CANCELLED})

    async def _flow_run(self, run: Run) -> FlowRun | None:
        if run.flow_run_id is None:
            return None
        try:
            return await self._client.read_flow_run(UUID(run.flow_run_id))
        except ObjectNotFound:
            return None

    async def _unended(self) -> Sequence[FlowRun]:
        """Give the flow runs of all hosts that are under way: several hosts may have more than a page of them."""
        found: list[FlowRun] = []
        while True:
            page = await self._client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[run_recipe.name])),
                work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
                flow_run_filter=FlowRunFilter(state=_types(StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)),
                limit=PAGE,
                offset=len(found),
            )
            found += page
            if len(page) < PAGE:
                return found

    async def _mend(self, flow_run: FlowRun, *, orphan: bool) -> None:
        """Tell Prefect the end that it missed; put back in the queue what a dead host took and never began."""
        run = await in_thread(lambda: _ledger_run(self._host, run_id_of(str(flow_run.id))), name=_THREAD)
        missed = _missed_end(flow_run, run)
        state = missed or _unbegun(flow_run, run, orphan=orphan)
        if state is None or not await self._is_unmoved(flow_run):
            return
        await self._client.tell_once(flow_run.id, state)
        if missed and run:
            await tell_end(self._host, run.id, flow_run, self._client)

    async def _is_unmoved(self, flow_run: FlowRun) -> bool:
        """Ask once more: what we tell is forced, and would undo a Retry that was pressed since the list was made."""
        found = await self._client.read_flow_run(flow_run.id)
        return found.state is not None and flow_run.state is not None and found.state.id == flow_run.state.id

    async def reap(self) -> None:
        """Call the reaper, unless there are runs to resume: those it would end."""
        if await self._resumable():
            return
        log = RunLog(_log, where="")
        result = await in_thread(lambda: reaper.reap(self._host, yes=False, reporter=log), name=_THREAD)
        for name, why in result.failed:
            _log.warning("reaper: %s: %s", name, why)

    async def tend(self) -> None:
        """Renew the leases on the team's limits, in a thread: they wait for the server, and nobody waits for them."""
        await in_thread(self._tend, name=_THREAD)


def _is_suspended(flow_run: FlowRun) -> bool:
    """Whether the UI's Suspend was pressed; a pause of a flow's own making is the flow's."""
    return flow_run.state is not None and flow_run.state.is_paused() and flow_run.state.name == "Suspended"


def taken_by(worker_name: str) -> str:
    """Give the message of the state of a flow run that a host has taken and has not begun."""
    return f"taken by host {worker_name}"


def _taken_long_ago(flow_run: FlowRun) -> bool:
    return flow_run.state is not None and datetime.now(UTC) - flow_run.state.timestamp > ORPHAN


def _types(*types: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))


def _missed_end(flow_run: FlowRun, run: Run | None) -> State[Any] | None:
    """Give the end of a run that ended after its flow run got its state; else it has been sent on its way again.

    What we called Running again may have ended in that very moment, before its state.
    """
    state = flow_run.state
    if run is None or run.state not in ENDED or run.ended_at is None or state is None:
        return None
    if state.timestamp >= run.ended_at and state.message not in {NO_SUSPENSION, NOT_CRASHED}:
        return None
    return end_state(run.state, run.error, run.cost_cny)


def _unbegun(flow_run: FlowRun, run: Run | None, *, orphan: bool) -> State[Any] | None:
    """Give the state for a flow run that no host has begun: Cancelled if it was, or back in the queue if `orphan`."""
    kind = flow_run.state.type if flow_run.state else None
    if run is not None and run.state == "running":
        return None
    if kind == StateType.CANCELLING:
        return Cancelled(message="cancelled before it began")
    over = run is not None and run.state in ENDED  # and retried, or taken too late by a host that has died since
    if orphan and (kind == StateType.PENDING or not over):
        return Scheduled(message=PUT_BACK)
    return None


def _ledger_run(host: Host, run_id: str) -> Run | None:
    try:
        found = host.ledger.get_run(run_id)
    except errors.BadInput:
        return None
    return found if found.id == run_id else None


class _Failed(Exception):
    """Some of several things failed, and it was said which."""


async def _each(acts: Iterable[Awaitable[None]]) -> None:
    """Do one after another: what goes wrong with one run holds up no other. Raises _Failed at the end."""
    failed = 0
    for act in acts:
        try:
            await act
        except (Exception, Abort) as error:  # noqa: BLE001 - as below
            failed += 1
            _log.warning("a run that is looked after: %r", error)
    if failed:
        raise _Failed(f"{failed} of the runs")


async def _every(period_s: float, act: Callable[[], Awaitable[None]]) -> None:
    failures = 0
    while True:
        try:
            await act()
            failures = 0
        except (Exception, Abort) as error:  # noqa: BLE001 - the server or a provider is away: a later turn may see it again
            failures += 1
            _log.warning("%s failed, and is tried again: %s", getattr(act, "__name__", "upkeep"), error)
        await asyncio.sleep(min(period_s * 2**failures, max(period_s, _SLOWEST_S)))
