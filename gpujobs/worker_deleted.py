"""Which flow runs somebody has deleted from their server: nobody could cancel those any more.

That a server does not know a flow run says little: it may be another server, or its database new, or yesterday's. So
it counts as deleted only where the same server still has the events of its states, which a deletion leaves, and
answers 404 for it; events are kept for seven days, unless the server is told otherwise.
"""

from collections.abc import Collection
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound

_KIND = "prefect.flow-run."
_STATES = [f"{_KIND}{name}" for name in ("Pending", "Running")]  # told by the server itself, as it sets them
_PAGE = 50  # what the server gives at most


class Deleted:
    """Looks for deleted flow runs, turn by turn."""

    def __init__(self, client: PrefectClient) -> None:
        """Ask the server of `client`; nothing yet."""
        self._client = client
        self._found: Collection[UUID] = frozenset()

    async def among(self, ids: Collection[UUID]) -> Collection[UUID]:
        """Give those of `ids` that count as deleted at this turn and did so at the one before."""
        found = {one for one in await self._known(await self._missing(ids)) if await self._is_gone(one)}
        twice = found.intersection(self._found)
        self._found = found
        return twice

    async def _missing(self, ids: Collection[UUID]) -> Collection[UUID]:
        """Give those that the server does not list; where all are there, for the price of a count."""
        ours = FlowRunFilter(id=FlowRunFilterId(any_=list(ids)))
        if not ids or await self._client.count_flow_runs(flow_run_filter=ours) == len(ids):
            return ()
        listed = await self._client.read_flow_runs(flow_run_filter=ours)
        return set(ids) - {flow_run.id for flow_run in listed}

    async def _known(self, ids: Collection[UUID]) -> Collection[UUID]:
        """Give those whose states the server has told of; of very many, some, and the others at later turns."""
        resources = {f"{_KIND}{one}": one for one in ids}
        if not resources:
            return ()
        told = EventFilter(event=EventNameFilter(name=_STATES), resource=EventResourceFilter(id=list(resources)))
        page = await self._client.read_events(told, limit=_PAGE)
        return {resources[event.resource.id] for event in page.events}

    async def _is_gone(self, flow_run_id: UUID) -> bool:
        try:
            await self._client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            return True
        return False
