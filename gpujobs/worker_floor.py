"""The flow runs of one process: each has a task of its own on one event loop, and shares the process's Host."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import states
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.filesystems import LocalFileSystem
from prefect.flow_engine import run_flow
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.logging.loggers import flow_run_logger

from gpujobs import lifecycle
from gpujobs.clock import StopToken
from gpujobs.errors import BadInput, Cancelled, Detached, LetGo
from gpujobs.flow import SEAT, Seat, end_state
from gpujobs.flow_log import RunLog
from gpujobs.flow_page import tell_end
from gpujobs.flow_told import catch_up
from gpujobs.flow_work import Work
from gpujobs.host import Host
from gpujobs.ledger_rows import Run
from gpujobs.prefect_api import run_id_of

KNOWN_S = 2.0  # for so long a deployment that was read counts as unchanged

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """A run that this process drives."""

    flow_run_id: str | None
    stop: StopToken
    task: "asyncio.Task[None]"


class Floor:
    """The runs that this process drives, by their run ids, whoever brought them here."""

    def __init__(self, host: Host, client: PrefectClient) -> None:
        """Drive them on `host`; `client` fetches flows and tells states."""
        self._host, self._client = host, client
        self._sitting: dict[str, Sitting] = {}
        self._deployments: dict[UUID, tuple[float, DeploymentResponse]] = {}
        self._reading = asyncio.Lock()

    @property
    def sitting(self) -> Mapping[str, Sitting]:
        """The runs that are driven now."""
        return dict(self._sitting)

    def seat(self, flow_run: FlowRun, *, resumes: bool = False) -> Sitting:
        """Begin to run `flow_run` as its flow says, unless it runs already; returns at once.

        Args:
            flow_run: taken from the pool; where its run is over, it was sent on its way again, for a new attempt.
            resumes: it lost its driver; where its run is over, somebody else has ended it, and that stays.
        """
        stop = StopToken()
        sent_at = flow_run.state.timestamp if flow_run.state else None
        seat = Seat(host=self._host, stop=stop, resumes=resumes, sent_at=sent_at)
        return self._begin(run_id_of(str(flow_run.id)), str(flow_run.id), seat, self._run(flow_run, stop))

    def finish(self, run: Run, flow_run: FlowRun | None, *, cancelled: bool) -> Sitting:
        """Go on with a run whose flow run Prefect no longer lets run; its end becomes the flow run's state."""
        stop = StopToken()
        if cancelled:
            stop.stop(Cancelled(f"run {run.id} was cancelled"))
        seat = Seat(host=self._host, stop=stop)
        return self._begin(run.id, run.flow_run_id, seat, self._finish(run.id, flow_run, stop))

    def cancel(self, run_id: str, error: Cancelled) -> bool:
        """Stop a run that is driven here, and have it end with `error`; False where it is not."""
        found = self._sitting.get(run_id)
        if found is not None:
            found.stop.stop(error)
        return found is not None

    async def let_go(self, within_s: float) -> bool:
        """Leave every run to itself: its machine works on, and the next host resumes it. False: not all in time."""
        for found in self.sitting.values():
            found.stop.stop(Detached("the host stops; the machine works on"))
        if tasks := [found.task for found in self.sitting.values()]:
            await asyncio.wait(tasks, timeout=within_s)
        return not self._sitting

    def _begin(self, run_id: str, flow_run_id: str | None, seat: Seat, life: Coroutine[Any, Any, None]) -> Sitting:
        if run_id in self._sitting:
            life.close()
            return self._sitting[run_id]
        context = copy_context()
        context.run(SEAT.set, seat)
        task = asyncio.get_running_loop().create_task(life, context=context)
        self._sitting[run_id] = Sitting(flow_run_id=flow_run_id, stop=seat.stop, task=task)
        task.add_done_callback(lambda _: self._sitting.pop(run_id))
        return self._sitting[run_id]

    async def _run(self, flow_run: FlowRun, stop: StopToken) -> None:
        logger = flow_run_logger(flow_run)
        try:
            flow = await self._load(flow_run)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a deployment, the host goes on
            logger.error("the flow cannot be loaded: %s", error)  # noqa: TRY400 - its user needs no traceback
            await self._client.set_flow_run_state(
                flow_run.id, states.Crashed(message=f"not loaded: {error}"), force=True
            )
            return
        state: State[Any] | None = None
        try:
            state = await _call(flow, flow_run)
        except (Abort, Pause) as error:  # the server said no, or we let go: the state is what it should be
            logger.info("left in its state: %s", error)
        except Exception:
            logger.exception("Prefect's engine gave up on the flow run")
        if not isinstance(stop.error, LetGo) and not (state and state.is_final()):
            await self._end_cancelling(flow_run)

    async def _end_cancelling(self, flow_run: FlowRun) -> None:
        """Say Cancelled of what was cancelled before it began, or knows no cancelling: nothing of it runs."""
        try:
            found = await self._client.read_flow_run(flow_run.id)
            if found.state is not None and found.state.is_cancelling():
                state: State[Any] = states.Cancelled(message="cancelled in Prefect")
                await self._client.set_flow_run_state(flow_run.id, state, force=True)
        except ObjectNotFound:
            _log.info("flow run %s was deleted", flow_run.id)
        except (Exception, Abort) as error:  # noqa: BLE001 - the server is away: the upkeep sees to it later
            _log.warning("flow run %s: its state is not known: %s", flow_run.id, error)

    async def _finish(self, run_id: str, flow_run: FlowRun | None, stop: StopToken) -> None:
        logger = flow_run_logger(flow_run) if flow_run else _log
        log = RunLog(logger, where=str(self._host.settings.runs / run_id / "output.log"))
        if flow_run is not None:
            await catch_up(log, self._host, run_id, flow_run.id, self._client)
        work = Work(
            lambda: lifecycle.execute(self._host, run_id, stop=stop, reporter=log, unended=True),
            name=f"gpujobs-{run_id}",
        ).begun()
        done = await work
        log.flush(force=True)
        if isinstance(done.error, LetGo) or (done.value and done.value.state == "running"):
            return
        if done.error is not None:
            _log.error("run %s could not go on", run_id, exc_info=done.error)
            return
        if flow_run is not None:
            state = end_state(done.value.state, done.value.error, done.value.cost_cny)
            await self._client.set_flow_run_state(flow_run.id, state, force=True)
            await tell_end(self._host, run_id, flow_run, self._client)

    async def _load(self, flow_run: FlowRun) -> Flow[Any, Any]:
        """Import the deployment's flow; raises BadInput where that takes steps that would move this whole process."""
        if flow_run.deployment_id is None:
            raise BadInput("a flow run without a deployment cannot run here")
        deployment = await self._deployment(flow_run.deployment_id)
        folder = Path(deployment.path or ".")
        for step in deployment.pull_steps or []:
            [(name, inputs)] = step.items()
            if not name.endswith(".set_working_directory"):
                raise BadInput(f"pull step {name} is not for a host's own process; use a pool of type process for it")
            folder = Path(inputs["directory"])
        entrypoint = deployment.entrypoint or ""
        if ":" in entrypoint:
            path, _, name = entrypoint.rpartition(":")
            entrypoint = f"{folder / path}:{name}"
        flow: Flow[Any, Any] = await asyncio.to_thread(
            load_flow_from_entrypoint, entrypoint, use_placeholder_flow=False
        )
        if flow.persist_result is False and flow.result_storage is None:
            # Else Prefect asks its server where results go by default, twice a run, and holds up our loop meanwhile.
            flow.result_storage = LocalFileSystem(basepath=str(self._host.settings.home / "results"))
        return flow

    async def _deployment(self, deployment_id: UUID) -> DeploymentResponse:
        """Read a deployment, once for all of its runs that begin together."""
        async with self._reading:
            read_s, found = self._deployments.get(deployment_id, (float("-inf"), None))
            if found is None or time.monotonic() - read_s > KNOWN_S:
                found = await self._client.read_deployment(deployment_id)
                self._deployments[deployment_id] = (time.monotonic(), found)
            return found


async def _call(flow: Flow[Any, Any], flow_run: FlowRun) -> State[Any] | None:
    """Run the flow in Prefect's engine.

    The engine is not told of the deployment: for a deployed flow run it would watch for a suspension from a thread, a
    loop and a connection of their own, and hold up this loop, with all its runs, while they start and end.
    """
    flow_run = flow_run.model_copy(update={"deployment_id": None})
    run: Callable[[], Any] = partial(run_flow, flow, flow_run=flow_run, return_type="state")
    ended: State[Any] | None = await (run() if flow.isasync else asyncio.to_thread(run))
    return ended
