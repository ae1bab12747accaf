"""Writes down what becomes of a recipe's tasks, and brings home what they leave, beside the thread that deals them."""

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, Unpack

from gpujobs.errors import BadResult, GpujobsError, LetGo, TransferFailed
from gpujobs.fleet_task import Task, state_after
from gpujobs.host import describe_bug
from gpujobs.ledger_rows import TaskChanges
from gpujobs.renting import Job
from gpujobs.sweep_home import bring_home, left_there, read_metrics

_Act = tuple[Callable[[], None], AbstractContextManager[object]]  # and what is closed once it is done, or left out


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

    def left_there(self) -> Mapping[Path, Mapping[str, str]]:
        """Name its output, its metrics and its outputs."""
        return self.clerk.left_there(self.number)

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
        self._acts: queue.SimpleQueue[_Act | None] = queue.SimpleQueue()
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
        self._put(partial(changed, ended_at=None, exit_code=None, error="", metrics="{}"))

    def waits(self, number: int) -> None:
        """Note that a task waits for a machine."""
        self._put(partial(self._change, number, state="waiting", error="", ended_at=None))

    def came(self, number: int, left: BinaryIO) -> None:
        """Bring home what a task left, and note how it ended."""
        self._put(partial(self._keep, number, left, self._now()), holds=left)

    def left_there(self, number: int) -> Mapping[Path, Mapping[str, str]]:
        """Say where that goes which a task has written by now, and where it is, as `sweep_home.left_there` does."""
        return {self._job.folder.task(number): left_there(number, self._job.recipe.outputs)}

    def failed(self, number: int, error: BaseException) -> None:
        """Note why a task was not done; nothing where this process only lets go of the run."""
        if not isinstance(error, LetGo):
            self._put(partial(self._give_up, number, self._now(), error))

    def _work(self) -> None:
        for act, held in iter(self._acts.get, None):
            with held:
                if self.error is None:
                    self._do(act)

    def _put(self, act: Callable[[], None], *, holds: AbstractContextManager[object] | None = None) -> None:
        self._acts.put((act, holds or nullcontext()))

    def _do(self, act: Callable[[], None]) -> None:
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
            self._job.host.check_hold()
            record = bring_home(left, place)
        except (BadResult, TransferFailed) as error:
            self._end(number, at, state="failed", error=str(error))
            return
        metrics = read_metrics(place) if record.size else "{}"
        state = "failed" if record.failure else "succeeded"
        self._end(number, at, state=state, exit_code=record.code, error=record.failure, metrics=metrics)

    def _give_up(self, number: int, at: datetime, error: BaseException) -> None:
        metrics = read_metrics(self._job.folder.task(number))  # of what its machine gave back before it went
        self._end(number, at, state=state_after(error), error=str(error), metrics=metrics)

    def _end(self, number: int, at: datetime, **changes: Unpack[TaskChanges]) -> None:
        changes["ended_at"] = at
        self._change(number, **changes)
        self._over += 1
        why = f": {changes['error']}" if changes.get("error") else ""
        told = f"task {number} {changes['state']}{why} ({self._over} of {self._all} over)"
        self._job.reporter.phase("run", told)
