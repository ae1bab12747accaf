"""Calls of a decorated function as tasks of a Prefect flow: each is a task run with its own log, artifact and end."""

import concurrent.futures
import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypedDict, TypeVar, Unpack, cast
from uuid import UUID

from prefect import Task
from prefect.context import FlowRunContext, TaskRunContext
from prefect.futures import PrefectFuture, PrefectFutureList
from prefect.logging import get_run_logger
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import TaskOptions

from gpujobs import errors
from gpujobs.call_job import Job, Silent
from gpujobs.call_page import Told, tell
from gpujobs.call_tail import Tail
from gpujobs.errors import BadInput
from gpujobs.fleet import Fleet
from gpujobs.fleet_task import part_of
from gpujobs.flow import SEAT
from gpujobs.flow_log import Logger, RunLog
from gpujobs.models import Reporter

__all__ = ["Calls", "FlowFunction", "TaskOptions"]
_LOOK_S = 0.25
_REST_S = 15.0  # for the end of a task's output, which comes by another connection than its result
_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Stopped(BaseException):
    """The flow run is cancelled, or its process is told to end."""


class ForPrefect(TypedDict, total=False):
    """What Prefect's own `submit` and `map` take beside a task's arguments."""

    wait_for: Iterable[PrefectFuture[Any]]
    return_state: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls(Generic[_P, _R]):
    """How a function is called on machines: by itself, or on a fleet of so many."""

    function: Callable[_P, _R]
    begin: Callable[..., Job[_R]]  # a reporter, then the arguments
    fleet: Callable[[int, Reporter], Fleet]


class FlowFunction(Generic[_P, _R]):
    """A decorated function as Prefect's task, with Prefect's options; for use in a flow. Made by `with_options`."""

    def __init__(self, calls: Calls[_P, _R], options: TaskOptions) -> None:
        """Take how to call, and options as of Prefect's `task`."""
        self._calls, self._options = calls, options

    def with_options(self, **options: Unpack[TaskOptions]) -> "FlowFunction[_P, _R]":
        """Give the same with these options over those that it has."""
        return FlowFunction(self._calls, {**self._options, **options})

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call it on a machine of its own, as a task run, and wait for what it returns."""
        return self._task()(*args, **kwargs)

    def submit(self, *args: _P.args, **kwargs: _P.kwargs) -> PrefectFuture[_R]:
        """Call it on a machine of its own, as a task run in the background; takes `wait_for` as Prefect's does."""
        return self._task().submit(*args, **kwargs)

    def map(self, *iterables: Any, machines: int = 1, **more: Any) -> PrefectFutureList[PrefectFuture[_R]]:
        """Call it for each of the arguments, each call a task run, on a fleet of `machines`.

        All else is as Prefect's `Task.map`: what cannot be iterated, or is `unmapped`, goes to each call. Raises
        BadInput where the flow's task runner has no threads.
        """
        return self._on_fleet(machines, lambda task: task.map(*iterables, **more))

    def starmap(
        self, calls: Iterable[Iterable[Any]], *, machines: int = 1, **more: Unpack[ForPrefect]
    ) -> PrefectFutureList[PrefectFuture[_R]]:
        """Be as `map` with the arguments of each call already together."""

        def submit_all(task: Task[..., _R]) -> Sequence[Any]:
            return [cast("Any", task).submit(*one, **more) for one in [tuple(one) for one in calls]]

        return self._on_fleet(machines, submit_all)

    def _task(self) -> Task[_P, _R]:
        @functools.wraps(self._calls.function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return _call(lambda log: _alone(self._calls, log, args, kwargs))

        return Task(fn=cast("Callable[_P, _R]", call), **self._options)

    def _on_fleet(
        self, machines: int, submit: Callable[[Task[..., _R]], Sequence[Any]]
    ) -> PrefectFutureList[PrefectFuture[_R]]:
        flow = FlowRunContext.get()
        if flow is None or not isinstance(flow.task_runner, ThreadPoolTaskRunner):
            raise BadInput("map on a fleet works in a flow whose task runner is the ThreadPoolTaskRunner; use submit")
        crew = Crew(self._calls.fleet(machines, Told(get_run_logger())))

        @functools.wraps(self._calls.function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return _call(lambda log: crew.call(self._calls.function, log, args, kwargs))

        try:
            task: Task[..., _R] = Task(fn=cast("Callable[..., _R]", call), **self._options)
            futures = submit(task)
        except BaseException:
            crew.cancel()
            raise
        crew.expect(futures)
        return cast("PrefectFutureList[PrefectFuture[_R]]", futures)


class Crew:
    """A fleet that the task runs of one map share, until none of them can come (again) with a call."""

    def __init__(self, fleet: Fleet) -> None:
        """Expect nobody yet."""
        self._fleet, self._lock = fleet, threading.Lock()
        self._expected: set[UUID] | None = None
        self._through: set[UUID] = set()

    def expect(self, futures: Sequence[Any]) -> None:
        """Say who may come: the machines go as the queue empties once all of them have, for the last time."""
        known = [future for future in futures if isinstance(future, PrefectFuture)]  # else they have ended: states
        with self._lock:
            self._expected = {future.task_run_id for future in known}
        for future in known:
            future.add_done_callback(lambda future: self._come(future.task_run_id))
        self._close_if_all_came()

    def cancel(self) -> None:
        """Stop all calls and release the machines; waits for none of it."""
        self._fleet.cancel()

    def call(self, function: Callable[..., _R], log: RunLog, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _R:
        """Make one call, and tell its output as it comes."""
        future = self._fleet.submit(function, *args, **kwargs)
        if _is_last_try():
            self._come(_task_run_id())
        log.logger.info("a call of gpujobs run %s", self._fleet.run_id)
        tail = Tail(self._fleet.folder, future, log)
        try:
            _await(future, log, tail.look)
            deadline = time.monotonic() + _REST_S
            while not tail.whole and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
                tail.look()
            value = future.result()
        except Exception:
            future.cancel()
            raise
        except BaseException:
            self.cancel()
            self._fleet.shutdown(wait=True)  # Prefect ends a cancelled flow's process without another word
            raise
        finally:
            log.flush(force=True)
        part = part_of(future)
        tell(self._fleet.run_id, function.__name__, value, attempt=part.attempt if part else None)
        return value

    def _come(self, task_run_id: UUID) -> None:
        with self._lock:
            self._through.add(task_run_id)
        self._close_if_all_came()

    def _close_if_all_came(self) -> None:
        if self._expected is not None and self._expected <= self._through:
            self._fleet.shutdown(wait=False)


def _alone(calls: Calls[..., _R], log: RunLog, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _R:
    """Make a call on a machine of its own; however this ends, nothing of it goes on.

    It begins in another thread: a time-out of Prefect's strikes this one anywhere, and must not lose a job that begins.
    """
    begun: Future[Job[_R]] = Future()
    try:
        threading.Thread(target=_begin, args=(begun, calls, log, args, kwargs), daemon=True).start()
        _await(begun, log, Silent)
        job = begun.result()
        _await(job, log, Silent)
        value = job.result()
    except BaseException as error:
        begun.add_done_callback(_cancel)
        if not isinstance(error, Exception):
            concurrent.futures.wait([begun])
            if begun.exception() is None:
                begun.result().wait_released()  # as above
        raise
    finally:
        log.flush(force=True)
    tell(job.run_id, calls.function.__name__, value, attempt=None)
    return value


def _begin(
    begun: Future[Job[_R]], calls: Calls[..., _R], log: RunLog, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    try:
        job = calls.begin(log, *args, **kwargs)
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
        begun.set_exception(error)
    else:
        begun.set_result(job)
        log.logger.info("gpujobs run %s", job.run_id)  # here, for logging swallows a time-out that strikes it


def _cancel(begun: Future[Job[Any]]) -> None:
    if begun.exception() is None:
        begun.result().cancel()


def _call(make: Callable[[RunLog], _R]) -> Any:
    """Make a call in this task run; one that is stopped ends as Cancelled, and is not tried again."""
    logger: Logger = get_run_logger()
    try:
        return make(RunLog(logger, where="the run's folder"))
    except (_Stopped, CancelledError, errors.Cancelled) as error:
        return Cancelled(message=str(error) or "the call was cancelled")


def _await(future: Future[Any], log: RunLog, look: Callable[[], object]) -> None:
    """Wait in short turns, in which Prefect's time-out can reach this thread; raises _Stopped."""
    while not concurrent.futures.wait([future], timeout=_LOOK_S).done:
        look()
        log.flush()
        if _is_stopped():
            raise _Stopped("the flow run was cancelled")
    look()


def _is_stopped() -> bool:
    """Say whether this task run's flow is ended from outside, which is not that it has returned."""
    seat, flow = SEAT.get(), FlowRunContext.get()
    if seat is not None and seat.stop.stopped:
        return True
    # Prefect sets the event when its task runner ends, for whatever reason, and lets a task that has begun go on.
    events = getattr(flow.task_runner, "_cancel_events", {}) if flow else {}
    event = events.get(_task_run_id())
    if flow is None or event is None or not event.is_set():
        return False
    state = flow.flow_run.state if flow.flow_run else None
    return state is None or not (state.is_completed() or state.is_failed())


def _task_run_id() -> UUID:
    context = TaskRunContext.get()
    if context is None:
        raise RuntimeError("this is no task run of Prefect's")
    return context.task_run.id


def _is_last_try() -> bool:
    context = TaskRunContext.get()
    return context is None or context.task_run.run_count > context.task.retries
