"""Writes down what becomes of a recipe's tasks, and brings home what they leave, beside the thread that deals them."""

import json
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import BinaryIO, Unpack

from gpujobs.errors import BadResult, GpujobsError, LetGo, TransferFailed
from gpujobs.fleet_task import Task, state_after
from gpujobs.host import describe_bug
from gpujobs.ledger_rows import TaskChanges
from gpujobs.renting import Job
from gpujobs.sweep_home import bring_home, read_metrics


@dataclass(slots=True, kw_only=True, eq=False)
class Cell(Task):
    """A task as machines do it; all that it hears it tells the clerk, who may wait where it must not."""

    clerk: "Clerk"

    def begin(self, machine: str) -> None:
        """Have it written that a machine has it."""
        self.clerk.began(self.number, machine, self.tries)

    def put_back(self) -> None:
        """Have it written that it waits again."""
        self.clerk.waits(self.number)

    def finish(self, outcome: BinaryIO) -> None:
        """Have what it left brought home; the clerk closes it."""
        self.future.set_result(None)
        self.clerk.came(self.number, outcome)

    def fail(self, error: BaseException) -> None:
        """Have it written why it ended so, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)
            self.clerk.failed(self.number, error)


class Clerk:
    """One thread that unpacks what came and writes it down, in the order in which it happened."""

    def __init__(self, job: Job) -> None:
        """Start no thread yet."""
        self._job, self._ledger = job, job.host.ledger
        self._acts: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"gpujobs-{job.run.id}-clerk", daemon=True)
        self.error: GpujobsError | None = None
        self._over, self._all = 0, len(job.recipe.wanted_tasks)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Wait until all is written."""
        self._acts.put(None)
        self._thread.join()

    def began(self, number: int, machine: str, tries: int) -> None:
        """Note that a task is at a machine."""
        at = self._now()
        changed = partial(self._change, number, state="running", machine=machine, tries=tries, began_at=at)
        self._acts.put(partial(changed, ended_at=None, exit_code=None, error=""))

    def waits(self, number: int) -> None:
        """Note that a task waits for a machine."""
        self._acts.put(partial(self._change, number, state="waiting", error="", ended_at=None))

    def came(self, number: int, left: BinaryIO) -> None:
        """Bring home what a task left, and note how it ended."""
        self._acts.put(partial(self._keep, number, left, self._now()))

    def failed(self, number: int, error: BaseException) -> None:
        """Note why a task was not done; nothing where this process only lets go of the run."""
        if not isinstance(error, LetGo):
            self._acts.put(partial(self._end, number, self._now(), state=state_after(error), error=str(error)))

    def _work(self) -> None:
        for act in iter(self._acts.get, None):
            if self.error is not None:
                continue
            try:
                act()
            except GpujobsError as error:
                self._fail(error)
            except Exception as error:  # noqa: BLE001 - a bug of ours must not leave machines rented
                self._fail(describe_bug(error))

    def _fail(self, error: GpujobsError) -> None:
        self.error = error
        self._job.stop.stop(error)

    def _now(self) -> datetime:
        return self._job.host.clock.now()

    def _change(self, number: int, **changes: Unpack[TaskChanges]) -> None:
        self._ledger.update_task(self._job.run.id, number, **changes)

    def _keep(self, number: int, left: BinaryIO, at: datetime) -> None:
        place = self._job.folder.task(number)
        try:
            with left:
                self._job.host.check_hold()
                record = bring_home(left, place)
        except (BadResult, TransferFailed) as error:
            self._end(number, at, state="failed", error=str(error))
            return
        metrics = json.dumps(read_metrics(place), ensure_ascii=False) if record.size else "{}"
        state = "failed" if record.failure else "succeeded"
        self._end(number, at, state=state, exit_code=record.code, error=record.failure, metrics=metrics)

    def _end(self, number: int, at: datetime, **changes: Unpack[TaskChanges]) -> None:
        changes["ended_at"] = at
        self._change(number, **changes)
        self._over += 1
        why = f": {changes['error']}" if changes.get("error") else ""
        told = f"task {number} {changes['state']}{why} ({self._over} of {self._all} over)"
        self._job.reporter.phase("run", told)
