"""The Prefect flow `run_recipe`: the lifecycle's steps as Prefect tasks, each in a thread that a cancel wakes."""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, MissingContextError, PrefectSignal
from prefect.logging import get_logger, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_engine import run_task_async

from gpujobs import errors, lifecycle, settings
from gpujobs.clock import StopToken
from gpujobs.deploy_guard import refusal
from gpujobs.flow_log import NoEcho, RunLog
from gpujobs.flow_outbox import drained
from gpujobs.flow_page import Page
from gpujobs.flow_told import catch_up
from gpujobs.flow_work import Done, Work
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED, Run
from gpujobs.lifecycle import Outcome, Step
from gpujobs.models import Reporter
from gpujobs.prefect_api import run_id_of
from gpujobs.prefect_blocks import PrefectBlocks
from gpujobs.recipe import Recipe

PUT_BACK = "the host that took it died before it began"
DRAIN_S = 25.0  # Prefect kills a cancelled process after 30 s
LINES_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a process that runs many flows hands to each of them."""

    host: Host
    stop: StopToken
    resumes: bool = False  # a run that lost its driver is gone on with; if it is over by now, it stays so
    sent_at: datetime | None = None  # when the flow run was taken; None: that is not known


SEAT: ContextVar[Seat | None] = ContextVar("gpujobs_seat", default=None)


def _flow_run_name() -> str:
    recipe = (flow_run.parameters or {}).get("recipe")
    name = recipe.get("name", "run") if isinstance(recipe, dict) else getattr(recipe, "name", "run")
    return f"{name}-{run_id_of(str(flow_run.id))}"


@flow(name="run-recipe", flow_run_name=_flow_run_name, retries=0, persist_result=False, validate_parameters=True)
async def run_recipe(recipe: Recipe) -> State[Any]:
    """Rent a GPU machine, run the recipe on it, bring the results home, switch it off."""
    flow_run_id = str(flow_run.id)
    context, run_id = FlowRunContext.get(), run_id_of(flow_run_id)
    if context is None or context.flow_run is None or not isinstance(context.client, PrefectClient):
        raise MissingContextError("run_recipe is a flow: call it as one")
    async with seated() as seat:
        if state := await refusal(seat.host, recipe, run_id):
            return state
        log = RunLog(get_run_logger(), where=str(seat.host.settings.runs / run_id / "output.log"))
        begun_before = seat.resumes or context.flow_run.run_count > 1
        if begun_before:
            await catch_up(log, seat.host, run_id, context.flow_run.id, context.client)
        page = Page(seat.host, run_id, context.flow_run, context.client, reporter=log, known=begun_before)
        history = partial(context.client.read_flow_run_states, context.flow_run.id)
        async with page.kept():
            state = await Driver(seat, run_id, log, reporter=page, history=history).run(recipe, flow_run_id)
        await drained(LINES_S)  # the UI looks for no more lines of a run that has ended
        return state


get_logger("prefect.task_runs").addFilter(NoEcho(run_recipe.name))


@asynccontextmanager
async def seated() -> AsyncIterator[Seat]:
    """Give the seat that this process offers, or open a host for this one run."""
    if seat := SEAT.get():
        yield seat
        return
    found = settings.load()
    with Host.open(replace(found, blocks=PrefectBlocks(found))) as host, _sigterm_cancels():
        yield Seat(host=host, stop=StopToken())


@contextmanager
def _sigterm_cancels() -> Iterator[None]:
    """Have SIGTERM cancel this coroutine, in a process that runs one flow.

    Prefect's own handler raises out of whatever the main thread does at that moment; where that is a write of
    asyncio's, it is swallowed there, and nobody hears of the cancel.
    """
    task = asyncio.current_task()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


class Driver:
    """Drives one run on an event loop. A cancelled coroutine stops the run, and still sees its steps to their end."""

    def __init__(
        self,
        seat: Seat,
        run_id: str,
        log: RunLog,
        *,
        reporter: Reporter,
        history: Callable[[], Awaitable[Iterable[State[Any]]]],
    ) -> None:
        """Take where to run, what, and where to tell of it: `reporter` passes on to `log`.

        `history` gives the states that the flow run has had.
        """
        self._host, self._stop, self._run_id, self._log = seat.host, seat.stop, run_id, log
        self._reporter, self._told_stop, self._history = reporter, False, history
        self._resumes, self._sent_at = seat.resumes, seat.sent_at
        self._unended = False
        self._drained_at: float | None = None  # when a cancelled run must have ended

    async def run(self, recipe: Recipe, flow_run_id: str) -> State[Any]:
        """Run the recipe to its end and say how it ended, as Prefect's state."""
        try:
            known: Run = await self._in_thread(lambda: self._open(recipe, flow_run_id))
            if known.state in ENDED and not await self._is_retried(known):
                return end_state(known.state, known.error, known.cost_cny)
            self._unended = known.state not in ENDED  # if it ends before we claim it, another host has run it
            outcome = await self.drive()
        except errors.LetGo as error:
            raise Abort(str(error)) from error
        except errors.GpujobsError as error:
            return Failed(message=str(error))
        self._tell(outcome)
        if isinstance(self._stop.error, errors.FlowRunDeleted):
            raise Abort("there is no flow run any more whose state could be set")
        if outcome.state == "failed" and isinstance(self._stop.error, errors.Cancelled):  # a cancel ends as Cancelled
            return Cancelled(message=f"cancelled; it had failed: {outcome.error}")
        return end_state(outcome.state, outcome.error, outcome.cost_cny)

    async def _is_retried(self, known: Run) -> bool:
        """Say whether a run that is over was sent on its way again; else another host has done it meanwhile.

        A host that is slow to begin may look dead: the flow run is sent on its way again, and both come to begin it.
        What a host says of taking a flow run may reach the server late, when another has taken it and done it.
        """
        if self._resumes or (self._sent_at and known.ended_at and self._sent_at < known.ended_at):
            return False
        return was_sent_again(await self._history())

    def _open(self, recipe: Recipe, flow_run_id: str) -> Run:
        lifecycle.open_run(self._host, recipe, run_id=self._run_id, flow_run_id=flow_run_id)
        known = self._host.ledger.get_run(self._run_id)
        if known.state in ENDED and not self._resumes:  # it is retried: that it was cancelled then says nothing of now
            self._host.ledger.update_run(known.id, cancel_requested_at=None)
        return known

    async def drive(self) -> Outcome:
        """Take the run's steps one by one, each as a Prefect task; raises Busy where another process drives it."""
        life = lifecycle.steps(
            self._host, self._run_id, stop=self._stop, reporter=self._reporter, unended=self._unended
        )
        flusher = asyncio.ensure_future(self._flush())
        error: Exception | None = None
        try:
            while True:
                step = await self._in_thread(lambda: _next(life, error))  # noqa: B023 - it is called at once
                if isinstance(step, Outcome):
                    return step
                error = await self._take(step)
                self._tell_stop()
        finally:
            flusher.cancel()
            self._log.flush(force=True)

    async def _take(self, step: Step) -> Exception | None:
        """Do the step, once; give what it raised. Whatever happens to its Prefect task, the step is done."""
        work = Work(step.call, name=f"gpujobs-{self._run_id}")
        logger = self._log.logger
        try:
            await self._as_task(step, work)
        except asyncio.CancelledError:
            self._asked_to_stop()
        except (Exception, PrefectSignal) as error:  # noqa: BLE001 - Prefect's own trouble must not end the job
            logger.warning("Prefect does not show phase %s: %s", step.name, error)
        finally:
            self._log.logger = logger
        return await self._end_of(work.begun())

    async def _as_task(self, step: Step, work: "Work") -> None:
        @task(name=step.name, task_run_name=_task_name(step), cache_policy=NO_CACHE, persist_result=False, retries=0)
        async def phase() -> State[Any]:
            self._log.logger = get_run_logger()
            error = await self._end_of(work.begun())
            self._log.flush(force=True)
            return _phase_state(error)

        # Made here, it is not told as Pending first: a third of what the server hears of tasks.
        made = await phase.create_local_run()
        await run_task_async(phase, task_run=made, return_type="state")

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        work = Work(call, name=f"gpujobs-{self._run_id}").begun()
        error = await self._end_of(work)
        if error is not None:
            raise error
        return work.result().value

    async def _end_of(self, work: "asyncio.Future[Done]") -> Exception | None:
        """Wait for the work's end. A cancel is passed on to it, and then waited for only so long."""
        while not work.done():
            try:
                await asyncio.wait([work], timeout=self._patience_s())
            except asyncio.CancelledError:
                self._asked_to_stop()
            if not work.done() and self._patience_s() == 0.0:
                raise asyncio.CancelledError("the run did not end in time; the reaper will end it")
        return work.result().error

    def _patience_s(self) -> float | None:
        return None if self._drained_at is None else max(0.0, self._drained_at - time.monotonic())

    def _asked_to_stop(self) -> None:
        current = asyncio.current_task()
        if current is not None:
            current.uncancel()
        self._stop.stop(errors.Cancelled(f"run {self._run_id} was cancelled"))
        if self._drained_at is None:
            self._drained_at = time.monotonic() + DRAIN_S

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._tell_stop()
            self._log.flush()

    def _tell_stop(self) -> None:
        if self._stop.stopped and not self._told_stop:
            self._told_stop = True
            self._log.note(f"stopping: {self._stop.error}")

    def _tell(self, outcome: Outcome) -> None:
        for name, path in outcome.outputs.items():
            self._log.logger.info("output %s: %s", name, path)
        self._log.logger.info("the job's log: %s", outcome.log)
        self._log.logger.info("%s; %d machines alive", _cost(outcome.cost_cny), outcome.machines_alive)


def was_sent_again(states: Iterable[State[Any]]) -> bool:
    """Say whether somebody sent a flow run on its way again after its last end; that we put it back does not count."""
    for state in sorted(states, key=lambda one: one.timestamp, reverse=True):
        if state.is_final():
            return False
        if state.is_scheduled() and state.message != PUT_BACK:
            return True
    return False


def end_state(state: str, error: str, cost_cny: float | None) -> State[Any]:
    """Give Prefect's state for a run's; raises Abort for a run that goes on: it stays Running until it is resumed."""
    if state == "succeeded":
        return Completed(message=_cost(cost_cny))
    if state == "cancelled":
        return Cancelled(message=error)
    if state == "running":
        raise Abort(error)
    return Failed(message=error)


def _next(life: Generator[Step, None, Outcome], error: Exception | None) -> Step | Outcome:
    try:
        return life.throw(error) if error else next(life)
    except StopIteration as end:
        outcome: Outcome = end.value
        return outcome


def _task_name(step: Step) -> str:
    return f"{step.name}-{step.attempt}" if step.attempt > 1 else step.name


def _phase_state(error: Exception | None) -> State[Any]:
    if error is None:
        return Completed()
    if isinstance(error, errors.LetGo):
        return Cancelled(name="Detached", message=str(error))
    if isinstance(error, errors.Cancelled):
        return Cancelled(message=str(error))
    return Failed(message=str(error) or type(error).__name__)


def _cost(cost_cny: float | None) -> str:
    return "cost unknown" if cost_cny is None else f"cost {cost_cny:.2f} CNY"
