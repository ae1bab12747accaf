"""The host that runs recipes: a Prefect worker of pool type `gpujobs` whose flows all run in its own process.

A worker of Prefect's own kind, so that pools, limits, queues, heartbeats and the UI's page of workers are Prefect's.
What differs is `run`: no process a run (100 to 190 MB and 3.5 s each), but a coroutine in this one, so that many runs
share one Host, one watcher a provider, one API client. Each run has a task beside the worker's own task group: a worker
that gives up on an unreachable server, and is started anew, takes no running job with it.
"""

import asyncio
import fcntl
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import anyio.abc
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.context import SyncClientContext
from prefect.exceptions import Abort, ObjectAlreadyExists
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.logging.loggers import get_logger
from prefect.settings import PREFECT_WORKER_QUERY_SECONDS, temporary_settings
from prefect.states import Pending
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.engine import propose_state
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

from gpujobs import blocks
from gpujobs.deploy import deploy_forms
from gpujobs.errors import Busy, GpujobsError
from gpujobs.flow import run_recipe
from gpujobs.flow_outbox import Outbox
from gpujobs.host import Host
from gpujobs.prefect_api import DEPLOYMENT, POOL, REAPER, run_id_of
from gpujobs.prefect_client import patient
from gpujobs.prefect_login import login
from gpujobs.process import collect_seldom
from gpujobs.reap_flow import reap
from gpujobs.settings import Settings, private_opener
from gpujobs.worker_floor import Floor
from gpujobs.worker_slots import LeasedSlots
from gpujobs.worker_upkeep import Upkeep, taken_by

LIMIT = 200  # runs at a time in one process; each costs a thread
POLL_S = 0.5
ASK_S = 15.0  # a pool of which nobody has asked for work in 60 s is shown as not ready
AGAIN_S = 2.0  # after the server could not be reached
LET_GO_S = 8.0

_DESCRIPTION = """What `gpujobs submit` hands recipes to: its one parameter is a whole recipe.

To start a run from this page, deploy a recipe (`gpujobs deploy recipe.yaml`), or use the form of a cloud, as
`form-autodl`: those ask for each value by itself."""
_log = logging.getLogger(__name__)


class Result(BaseWorkerResult):
    """A flow run that was taken; how it ended, its own engine has told the server."""


class Worker(BaseWorker[BaseJobConfiguration, BaseVariables, Result]):
    """Takes flow runs from the pool and seats them in this process."""

    type = POOL
    _display_name = "gpujobs"
    _description = "Runs recipes on rented GPU machines, many in one process."

    def __init__(self, floor: Floor, **options: Any) -> None:
        """Seat runs on `floor`; the rest is the base class's."""
        super().__init__(**options)
        self._floor = floor
        self._asked_at = float("-inf")

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        """Ask for work where there is any, and now and then so that the pool counts as ready.

        Asking costs a server 20 ms of CPU, whether there is any or not, and counting 2 (SQLite; measured).

        What is retried before its last life is quite over stays in the queue: taken now, it would be seated nowhere,
        and stay Pending. The base class knows only those lives that this very worker began.
        """
        if time.monotonic() - self._asked_at < ASK_S and not await self._is_due():
            return []
        self._asked_at = time.monotonic()
        due = await super()._get_scheduled_flow_runs()
        return [one for one in due if run_id_of(str(one.flow_run.id)) not in self._floor.sitting]

    async def _is_due(self) -> bool:
        due = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=datetime.now(UTC)),
        )
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name]))
        return await self.client.count_flow_runs(flow_run_filter=due, work_pool_filter=pool) > 0

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Take a flow run with one call, and hold its place until it is over.

        The base class makes six calls, for labels, a state more and the infrastructure: here there is none. On SQLite
        each of them holds up the others.
        """
        try:
            if await self._taken(flow_run):
                await self.run(flow_run)
        finally:
            self._release_limit_slot(flow_run.id)
            self._submitting_flow_run_ids.discard(flow_run.id)

    async def _taken(self, flow_run: FlowRun) -> bool:
        """Propose Pending, in our name; False where the server or another host says otherwise."""
        try:
            state = await propose_state(self.client, Pending(message=taken_by(self.name)), flow_run_id=flow_run.id)
        except Abort as error:
            self._logger.info("flow run %s is not ours to run: %s", flow_run.id, error)
            return False
        except Exception as error:  # noqa: BLE001 - whatever it was, the flow run is still in the queue
            self._logger.warning("flow run %s could not be taken now: %s", flow_run.id, error)
            return False
        flow_run.state = state  # the queue tells none
        return state.is_pending()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: BaseJobConfiguration | None = None,  # noqa: ARG002 - there is no infrastructure to configure
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> Result:
        """Run one flow run to its end."""
        found = self._floor.seat(flow_run)
        if task_status is not None:
            task_status.started(flow_run.id)
        await asyncio.wait([found.task])
        return Result(identifier=str(flow_run.id), status_code=0)


def serve(settings: Settings, *, limit: int | None = None) -> int:
    """Run recipes until SIGTERM or SIGINT, then let go of those that run; raises Busy where another does already.

    Args:
        settings: whose home; one host serves it.
        limit: how many runs the pool may have at a time, whatever the hosts: the team's quota. None: as it is.

    The event loop has a thread of its own: Prefect's engine puts a handler of its own on SIGTERM while a flow runs in
    the main thread.
    """
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    _quieten()
    with _alone(settings) as lock, Host.open(settings) as host:
        _take_over(host, lock.read())
        lock.seek(0)
        lock.truncate()
        lock.write(host.driver)
        lock.flush()
        collect_seldom()
        thread = threading.Thread(
            target=lambda: asyncio.run(_serve(host, over, limit)), name="gpujobs-loop", daemon=True
        )
        thread.start()
        while thread.is_alive() and not over.wait(1.0):
            pass
        thread.join(LET_GO_S + 2.0)
        if thread.is_alive():
            os._exit(1)  # what hangs is resumed by the next host all the same
    return 0 if over.is_set() else 70


async def _serve(host: Host, over: threading.Event, limit: int | None) -> None:
    async with AsyncExitStack() as stack:
        stack.enter_context(temporary_settings({PREFECT_WORKER_QUERY_SECONDS: POLL_S}))
        ended = asyncio.ensure_future(_set(over))
        if not await _reached(ended):
            return
        client = await stack.enter_async_context(patient(host.clock))
        # Else each flow run makes three clients that call nobody, and each of those reads all certificates: 40 ms.
        stack.enter_context(SyncClientContext.get_or_create())
        await stack.enter_async_context(Outbox(client).installed())
        await _deploy(limit)
        api, leases = str(client.api_url).rstrip("/"), host.settings.home / "leases.json"
        host.slots = slots = LeasedSlots(api, host.ledger, leases, driver=host.driver, clock=host.clock)
        floor, name = Floor(host, client), worker_name(host.settings)
        upkeep = Upkeep(host, floor, client, tend=slots.tend)
        await upkeep.take_over(name)
        lives = (_work(floor, name), upkeep.run(), _deploy_forms(host.settings))
        tasks = [asyncio.ensure_future(life) for life in lives]
        await ended
        for task in tasks:
            task.cancel()
        if not await floor.let_go(LET_GO_S):
            os._exit(1)  # the end of this loop would cancel the rest, which would tell Prefect that they have crashed


async def _set(over: threading.Event) -> None:
    while not over.is_set():  # noqa: ASYNC110 - it is set by a signal, in another thread
        await asyncio.sleep(0.1)


async def _reached(ended: "asyncio.Future[None]") -> bool:
    """Wait for the Prefect API; False where we are told to end first."""
    async with get_client() as client:
        while not ended.done():
            if await client.api_healthcheck() is None:
                return True
            await asyncio.sleep(0.2)
    return False


async def _deploy(limit: int | None) -> None:
    """Make the pool, the deployments and the kinds of blocks, or bring them up to date."""
    async with get_client() as client:
        template = Worker.get_default_base_job_template()
        with suppress(ObjectAlreadyExists):
            await client.create_work_pool(WorkPoolCreate(name=POOL, type=POOL, base_job_template=template))
        if limit is not None:
            await client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=limit))
        await blocks.register(client)
    for flow, name, description in ((run_recipe, DEPLOYMENT, _DESCRIPTION), (reap, REAPER, None)):
        deployment = await flow.ato_deployment(
            name=name.rpartition("/")[2],
            work_pool_name=POOL,
            entrypoint_type=EntrypointType.MODULE_PATH,
            tags=["gpujobs"],
            description=description,
        )
        await deployment.aapply()


async def _deploy_forms(settings: Settings) -> None:
    """Make the empty forms; a host without them runs recipes all the same."""
    api = login().get("PREFECT_API_URL")
    try:
        if api:
            await asyncio.to_thread(deploy_forms, settings, api)
    except GpujobsError as error:
        _log.warning("the forms are not deployed: %s", error)


async def _work(floor: Floor, name: str) -> None:
    """Take flow runs for ever; a worker that has given up on the server is followed by another."""
    while True:
        worker = Worker(floor, work_pool_name=POOL, name=name, prefetch_seconds=0, limit=LIMIT)
        try:
            await worker.start(printer=_log.info)
        except Exception as error:  # noqa: BLE001 - an unreachable server must not end the runs
            _log.warning("the worker gave up and is started anew: %s", error)
        await asyncio.sleep(AGAIN_S)


def worker_name(settings: Settings) -> str:
    """Give the name that Prefect shows; the same whenever this home is served on this machine."""
    home = blake2b(str(settings.home.resolve()).encode(), digest_size=3).hexdigest()
    return f"{socket.gethostname()}-{home}"


@contextmanager
def _alone(settings: Settings) -> Iterator[Any]:
    """Be the one host of this home: the lock ends with the process, however it ends; it holds the driver's name."""
    with open(settings.home / "serve.lock", "a+", encoding="utf-8", opener=private_opener) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"{settings.home} is served by another process already; end that one first") from error
        file.seek(0)
        yield file


def _take_over(host: Host, driver: str) -> None:
    """Give free what the host before us drove: it held the lock that we hold, so it is dead."""
    for run in host.ledger.list_runs(states=("submitted", "running")):
        if driver and run.driver == driver:
            host.ledger.release_claim(run.id, driver)


def _quieten() -> None:
    """Keep what runs tell out of the host's own log, but for warnings: the server and the run's folder have it."""
    for handler in logging.getLogger().handlers + get_logger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(lambda record: record.levelno >= logging.WARNING or not hasattr(record, "flow_run_id"))
