"""A flow run's page in Prefect: tags, labels, artifacts, and an event for each phase.

What a run tells is gathered in its own thread and sent from a task beside it, so that a Prefect server that is slow, or
away, holds up nothing. What is told again, on another host too, goes into the same artifacts.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.loggers import flow_run_logger

from gpujobs import flow_facts
from gpujobs.errors import GpujobsError
from gpujobs.flow_facts import Facts, artifact_key, read_facts
from gpujobs.flow_log import RunLog
from gpujobs.flow_moves import Moves
from gpujobs.flow_told import catch_up
from gpujobs.flow_work import in_thread
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED
from gpujobs.models import Reporter
from gpujobs.task_words import counts_in_words, task_table

TURN_S = 1.0
BRIEF_S = 5.0  # a run that is over by then is told of once: each call costs its server 10 to 30 ms of CPU
END_S = 20.0  # for telling the end, once the machine is gone: on SQLite a call that meets another writer is sent again
_SLOWEST_S = 30.0  # between two tries of what fails
_NOT_FOUND = 404
_TASKS_S = 10.0  # between two looks at a run's tasks: their table is told as a whole, where it has changed
_SHOWN = ("boot", "push")  # phases at whose beginning there is something new to show: a machine, its services

_log = logging.getLogger(__name__)


class Page:
    """A Reporter that passes everything on to another, and keeps one flow run's page."""

    def __init__(
        self, host: Host, run_id: str, flow_run: FlowRun, client: PrefectClient, *, reporter: Reporter, known: bool
    ) -> None:
        """Send nothing yet; `known`: the flow run was begun before, so that its page may be there."""
        self._host, self._run_id, self._flow_run, self._client = host, run_id, flow_run, client
        self._reporter, self._known = reporter, known
        self._moves = Moves(client, flow_run.id)
        self._phase, self._thread = "", f"gpujobs-{run_id}-page"
        self._began_s = time.monotonic()
        self._told_s, self._has_tasks = self._began_s, False
        self._stale = self._reachable = False  # the facts have changed; the machine can be asked for its services
        self._addresses: Mapping[str, str] = {}
        self._told: dict[str, Any] = {}
        self._ids: dict[str, UUID] | None = None  # of our artifacts by their keys; None: Prefect was not asked yet
        self._over = asyncio.Event()
        self._labelling: asyncio.Future[None] | None = None  # kept, or it might be collected before it is done

    def phase(self, name: str, detail: str) -> None:
        """Send an event when a phase begins."""
        self._reporter.phase(name, detail)
        if name != self._phase:
            self._phase = name
            self._moves.end_all()
            self._stale |= name in _SHOWN
            self._reachable |= name == "push"
            self._emit(name, {"phase": name, "machine": detail})

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Keep how far it is."""
        self._reporter.progress(what, done, total)
        self._moves.progress(what, done, total)

    def note(self, text: str) -> None:
        """Pass on."""
        self._reporter.note(text)

    def output(self, data: bytes) -> None:
        """Pass on."""
        self._reporter.output(data)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep the page while the block runs; then, unless it raised, tell the end."""
        keeping = asyncio.ensure_future(self._keep())
        try:
            yield
        except BaseException:
            keeping.cancel()
            raise
        await self.end(keeping)

    async def end(self, keeping: "asyncio.Future[None] | None" = None) -> None:
        """Tell how the run ended, within END_S; trouble with that is logged."""
        self._moves.end_all()
        self._stale = True
        self._over.set()
        try:
            async with asyncio.timeout(END_S):
                if keeping is not None:
                    await keeping  # as a rule its last turn tells the end
                await self._tell()
        except Exception as error:  # noqa: BLE001 - the run is over, whether Prefect shows it or not
            _log.warning("run %s: its page does not tell its end: %s", self._run_id, error or type(error).__name__)

    async def _keep(self) -> None:
        wait_s = TURN_S
        while not self._over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), wait_s)
            try:
                await self._tell()
                wait_s = TURN_S
            except Exception as error:  # noqa: BLE001 - whatever Prefect says, the job goes on
                _log.info("run %s: its page waits for Prefect: %s", self._run_id, error)
                wait_s = min(2 * wait_s, _SLOWEST_S)

    async def _tell(self) -> None:
        if self._over.is_set() or time.monotonic() - self._began_s >= BRIEF_S:
            await self._tell_news()
        await self._moves.tell()

    async def _tell_news(self) -> None:
        if self._reachable:
            self._addresses = await in_thread(self._services, name=self._thread)
            self._reachable = False
        self._stale |= self._has_tasks and time.monotonic() - self._told_s >= _TASKS_S
        if self._stale:
            self._stale, self._told_s = False, time.monotonic()
            try:
                await self._tell_facts(await in_thread(lambda: read_facts(self._host, self._run_id), name=self._thread))
            except Exception:
                self._stale = True
                raise

    async def _tell_facts(self, facts: Facts) -> None:
        name = facts.run.name
        await self._tag(facts)
        await self._put(
            artifact_key(name, "summary"), "markdown", flow_facts.summary(facts), flow_facts.in_short(facts)
        )
        if facts.tasks:
            self._has_tasks, rows = True, json.dumps(task_table(facts.tasks), ensure_ascii=False)
            await self._put(artifact_key(name, "tasks"), "table", rows, counts_in_words(facts.tasks))
        links = artifact_key(name, "links")
        if self._addresses or links in await self._made():
            services = flow_facts.links(facts, self._addresses)
            await self._put(links, "markdown", services, services)
        if facts.over:
            rows = json.dumps(flow_facts.cost_table(facts), ensure_ascii=False)
            await self._put(artifact_key(name, "cost"), "table", rows, flow_facts.cost_in_short(facts))
            told = {"exit_code": facts.run.exit_code, "cost_cny": facts.cost_cny, "error": facts.run.error}
            self._emit(facts.run.state, told)

    async def _tag(self, facts: Facts) -> None:
        tags = flow_facts.tags(facts.names, self._flow_run.tags)
        if self._told.get("tags") != tags:
            await self._client.update_flow_run(self._flow_run.id, tags=tags)
            self._told["tags"] = tags
            self._labelling = asyncio.ensure_future(self._label(facts))

    async def _label(self, facts: Facts) -> None:
        """Do so beside the rest: of all calls it is the one that a server on SQLite most often wants sent again."""
        try:
            await self._client.update_flow_run_labels(self._flow_run.id, flow_facts.labels(facts.names))
        except Exception as error:  # noqa: BLE001 - the tags say the same
            _log.info("run %s: its flow run has no labels: %s", self._run_id, error)

    async def _put(self, key: str, kind: str, data: str, description: str) -> None:
        """Make the artifact, or bring it up to date; nothing is sent where it says that already."""
        if self._told.get(key) == data:
            return
        made = await self._made()
        if key in made:
            try:
                await self._client.update_artifact(made[key], ArtifactUpdate(data=data, description=description))
            except PrefectHTTPStatusError as error:
                if error.response.status_code != _NOT_FOUND:
                    raise
                del made[key]  # somebody has removed it
        if key not in made:
            told = ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=self._flow_run.id)
            made[key] = (await self._client.create_artifact(told)).id
        self._told[key] = data

    async def _made(self) -> dict[str, UUID]:
        if self._ids is None:
            ids: dict[str, UUID] = {}
            if self._known:
                ours = FlowRunFilter(id=FlowRunFilterId(any_=[self._flow_run.id]))
                ids = {one.key: one.id for one in await self._client.read_artifacts(flow_run_filter=ours) if one.key}
            self._ids = ids
        return self._ids

    def _services(self) -> Mapping[str, str]:
        """Ask the provider for the addresses of the machine's services; none where it does not tell."""
        alive = [record for record in self._host.ledger.machines(self._run_id) if record.alive and record.id]
        if not alive:
            return {}
        record = alive[-1]
        try:
            host = self._host.of_run(self._host.ledger.get_run(self._run_id))
            access = host.backend(record.backend).access(record.machine)
        except GpujobsError as error:
            _log.info("run %s: its machine's services are not known: %s", self._run_id, error)
            return {}
        return access.links if access else {}

    def _emit(self, name: str, payload: Mapping[str, Any]) -> None:
        """Send an event about the run; one that says how it ended has the same id whoever sends it."""
        event = f"gpujobs.run.{name}"
        try:
            run, attempts = self._host.ledger.get_run(self._run_id), self._host.ledger.attempts(self._run_id)
            told: dict[str, Any] = {"id": uuid5(NAMESPACE_OID, f"{self._run_id} {event} {run.ended_at}")}
            flow_run = f"prefect.flow-run.{self._flow_run.id}"
            # In the flow's context Prefect would add six more resources, each of which costs the server a row.
            Context().run(
                emit_event,
                event,
                flow_facts.resource(flow_facts.names_of(run, attempts)),
                related=[{"prefect.resource.id": flow_run, "prefect.resource.role": "flow-run"}],
                payload=dict(payload),
                **(told if run.state in ENDED else {}),
            )
        except Exception as error:  # noqa: BLE001 - the job goes on, whether it is heard of or not
            _log.warning("run %s: no event %s: %s", self._run_id, event, error)


async def tell_end(host: Host, run_id: str, flow_run: FlowRun, client: PrefectClient) -> None:
    """Bring the page of a run to its end that ended while Prefect, or its own host, was away."""
    log = RunLog(flow_run_logger(flow_run), where=str(host.settings.runs / run_id / "output.log"))
    await catch_up(log, host, run_id, flow_run.id, client)
    await Page(host, run_id, flow_run, client, reporter=log, known=True).end()
