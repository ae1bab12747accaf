"""A run's waits and transfers as Prefect's progress artifacts: one each, for those that take longer than a moment."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.utilities.context import get_task_and_flow_run_ids

from gpujobs.flow_facts import amount_text

QUICK_S = 2.0  # what is over by then is not shown, and no artifact is sent more often
_SHARE = 5  # … nor before its wait has become longer by a fifth: an hour costs some 40 calls
_NOT_FOUND = 404


@dataclass(slots=True, kw_only=True)
class _Move:
    what: str
    began_s: float
    task_run_id: UUID | None
    done: int = 0
    total: int | None = None
    over: bool = False
    artifact_id: UUID | None = None
    told_s: float = 0.0
    told_done: int = -1


class Moves:
    """Gathers in the run's thread what moves, and tells Prefect from the event loop, seldom."""

    def __init__(self, client: PrefectClient, flow_run_id: UUID, *, now: Callable[[], float] = time.monotonic) -> None:
        """Send nothing yet."""
        self._client, self._flow_run_id, self._now = client, flow_run_id, now
        self._lock = threading.Lock()
        self._moves: list[_Move] = []

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Keep how far it is; whatever else moved before is over."""
        with self._lock:
            move = next((move for move in self._moves if move.what == what and not move.over), None)
            if move is None:
                self._end_all()
                task_run_id, _ = get_task_and_flow_run_ids()
                move = _Move(what=what, began_s=self._now(), task_run_id=task_run_id)
                self._moves.append(move)
            move.done, move.total = done, total
            move.over = total is not None and done >= total

    def end_all(self) -> None:
        """Take all that moved for over: a phase has begun, or the run has ended."""
        with self._lock:
            self._end_all()

    async def tell(self) -> None:
        """Bring the artifacts up to date where it is time; raises what Prefect's client raises."""
        with self._lock:
            moves = list(self._moves)
        for move in moves:
            over = move.over
            if self._is_due(move, over=over):
                try:
                    await self._tell(move, over=over)
                except PrefectHTTPStatusError as error:
                    if error.response.status_code != _NOT_FOUND:
                        raise
                    over = True  # somebody has removed it: it is shown no more
            if over:
                with self._lock:
                    self._moves.remove(move)

    def _end_all(self) -> None:
        for move in self._moves:
            move.over = True

    def _is_due(self, move: _Move, *, over: bool) -> bool:
        now = self._now()
        if move.artifact_id is None:
            return not over and now - move.began_s >= QUICK_S
        late = now - move.told_s >= max(QUICK_S, (now - move.began_s) / _SHARE)
        return over or (late and move.done != move.told_done)

    async def _tell(self, move: _Move, *, over: bool) -> None:
        done, total = move.done, move.total
        share = 100.0 if over else round(100 * done / total, 1) if total else 0.0
        text = f"{move.what}: {amount_text(move.what, done, None if over else total)}{', over' if over else ''}"
        if move.artifact_id is None:
            told = ArtifactCreate(
                type="progress",
                data=share,
                description=text,
                flow_run_id=self._flow_run_id,
                task_run_id=move.task_run_id,
            )
            move.artifact_id = (await self._client.create_artifact(told)).id
        else:
            await self._client.update_artifact(move.artifact_id, ArtifactUpdate(data=share, description=text))
        move.told_done, move.told_s = done, self._now()
