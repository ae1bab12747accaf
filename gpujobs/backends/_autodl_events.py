"""AutoDL's events, read to the end and put in order: newest first on the wire, oldest first from here."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from gpujobs.backends._autodl_replies import ContainerEvent
from gpujobs.backends._autodl_wire import AutoDLClient
from gpujobs.backends._reading import StatusTable
from gpujobs.models import Event, MachineStatus

_ORDER = ("creating", "created", "starting", "oss_merged", "running", "shutting_down", "shutdown", "in_cache", "failed")
_RANK: Mapping[str, float] = {word: rank for rank, word in enumerate(_ORDER)}
CONTAINER_STATUS = {
    "creating": MachineStatus.BOOTING,
    "created": MachineStatus.BOOTING,
    "starting": MachineStatus.BOOTING,
    "oss_merged": MachineStatus.BOOTING,
    "running": MachineStatus.RUNNING,
    "shutting_down": MachineStatus.STOPPING,
    "shutdown": MachineStatus.ENDED,
    "in_cache": MachineStatus.ENDED,
    "failed": MachineStatus.FAILED,
}
OVER = (MachineStatus.ENDED, MachineStatus.FAILED)
_NEVER = datetime.min.replace(tzinfo=UTC)
_DEPLOYMENTS_KEPT = 1000
_PAGES_CAP = 100

_Key = tuple[str, str, datetime | None]


class EventBook:
    """All events of the deployments that are asked about; later calls read only what is new. Safe for many threads."""

    def __init__(self, client: AutoDLClient, *, table: StatusTable) -> None:
        """Ask through `client`; `table` reads container statuses."""
        self._client = client
        self._table = table
        self._lock = threading.Lock()
        self._known: OrderedDict[str, dict[_Key, ContainerEvent]] = OrderedDict()

    def history(self, deployment: str) -> Sequence[Event]:
        """Give every event of a deployment, so that the last one is where it stands now.

        Within a container they go by the order of its life and then by time, since times tie and rows may come out of
        order. Containers that are over come before those that live, so that a replaced one has no last word.
        """
        with self._lock:
            known = dict(self._known.get(deployment, {}))
        known |= self._fresh(deployment, known)
        with self._lock:
            self._known[deployment] = known
            self._known.move_to_end(deployment)
            while len(self._known) > _DEPLOYMENTS_KEPT:
                self._known.popitem(last=False)
        return self._ordered(deployment, list(known.values()))

    def forget(self, deployment: str) -> None:
        """Keep nothing more of a deployment that is gone."""
        with self._lock:
            self._known.pop(deployment, None)

    def _fresh(self, deployment: str, known: Mapping[_Key, ContainerEvent]) -> dict[_Key, ContainerEvent]:
        # By pages from the first, never by `offset`: on a list with the newest first that would skip new ones.
        fresh: dict[_Key, ContainerEvent] = {}
        for number in range(1, _PAGES_CAP):
            page = self._client.container_events(deployment, page=number)
            keys = {(one.uuid, one.status, one.created_at): one for one in page.list}
            fresh |= {key: one for key, one in keys.items() if key not in known}
            if known.keys() & keys.keys() or not page.list or number >= (page.max_page or number):
                break
        return fresh

    def _ordered(self, deployment: str, events: Sequence[ContainerEvent]) -> Sequence[Event]:
        lives = {one.uuid: _life([other for other in events if other.uuid == one.uuid]) for one in events}

        def age(life: Sequence[ContainerEvent]) -> tuple[bool, datetime]:
            return (self._table.read(life[-1].status) not in OVER, min(one.created_at or _NEVER for one in life))

        return [
            Event(
                machine_id=deployment,
                unit=one.uuid,
                status=self._table.read(one.status),
                raw_status=one.status,
                at=one.created_at,
            )
            for life in sorted(lives.values(), key=age)
            for one in life
        ]


def _life(events: Sequence[ContainerEvent]) -> Sequence[ContainerEvent]:
    """Put one container's events in order; a word that we do not know stands after what came before it."""

    def rank(one: ContainerEvent) -> tuple[float, datetime]:
        at = one.created_at or _NEVER
        if one.status in _RANK:
            return (_RANK[one.status], at)
        before = [
            _RANK[other.status] for other in events if other.status in _RANK and (other.created_at or _NEVER) <= at
        ]
        return (max(before, default=-1) + 0.5, at)

    return sorted(events, key=rank)
