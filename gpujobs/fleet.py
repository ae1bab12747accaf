"""Many calls over a few rented machines: a `concurrent.futures.Executor` whose workers are GPUs."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from gpujobs import lifecycle, settings
from gpujobs.call_files import Call
from gpujobs.call_fit import return_hint
from gpujobs.call_job import Silent
from gpujobs.call_outcome import Wanted
from gpujobs.call_recipe import OURS, template
from gpujobs.call_source import Source, find_any
from gpujobs.errors import BadInput
from gpujobs.fleet_book import parameters_of
from gpujobs.fleet_call import CallTask, pack_task
from gpujobs.fleet_program import FleetRun
from gpujobs.ledger import open_ledger
from gpujobs.models import Machine, Reporter
from gpujobs.recipe import Recipe

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Fleet(Executor):
    """Up to `machines` rented machines that take calls, one after another on each GPU; all is one run with one bill.

    Machines are rented as tasks come, kept from task to task, and released by `shutdown`, which the end of a `with`
    calls. A machine that is lost is replaced, and its tasks go to others. An exception that leaves the `with`, Ctrl-C
    among them, cancels everything. All else is as `concurrent.futures` documents it for process pools.
    """

    def __init__(
        self,
        recipe: Recipe | Mapping[str, Any] | None = None,
        *,
        machines: int,
        reporter: Reporter | None = None,
        **keys: Any,
    ) -> None:
        """Check what is wanted; rents nothing yet.

        Args:
            recipe: what machines to rent: a Recipe, whose `run` is left out of account, or the keywords of `gpu_job`.
            machines: how many at a time, at most.
            reporter: whom the run tells what it does; left out: nobody, and all is in its log.
            keys: keywords of `gpu_job`; beside a Recipe `workdir`, `python` and `trust_remote` alone.

        Raises:
            BadInput: a keyword is none, or its value cannot be.
        """
        if type(machines) is not int or machines < 1:
            raise BadInput(f"machines= must be a number from 1 on, not {machines!r}")
        if isinstance(recipe, Recipe):
            if strange := keys.keys() - set(OURS):
                raise BadInput(f"{min(strange)}= goes into the recipe, where there is one")
            common, keys = recipe, ({"workdir": recipe.workdir} if recipe.workdir else {}) | keys
        else:
            keys = {**(recipe or {}), **keys}
            common = template(keys, name="fleet", folder=Path.cwd())
        self._common, self._keys, self._workdir = common, keys, keys.get("workdir")
        self._lock = threading.Lock()
        self._numbers = count()
        self._shut = False
        self._sources: weakref.WeakKeyDictionary[Callable[..., Any], Source] = weakref.WeakKeyDictionary()
        self._place: str | None = None
        found = settings.load()
        self._database_url = found.database_url
        self._run = FleetRun(lifecycle.new_run_id(), found, machines=machines, reporter=reporter or Silent())
        self._begun = False
        weakref.finalize(self, self._run.close).atexit = False

    @property
    def run_id(self) -> str:
        """The id of the fleet's run; the ledger knows it from the first task on."""
        return self._run.run_id

    @property
    def cost(self) -> float | None:
        """What the fleet has cost so far, in CNY; None while that is not known."""
        with open_ledger(self._database_url) as ledger:
            return ledger.cost_cny(self.run_id)

    @property
    def machines(self) -> Sequence[Machine]:
        """The machines that are rented now; `gpujobs ssh RUN --attempt N` logs in to the one whose name ends with N."""
        return self._run.machines

    @property
    def folder(self) -> Path:
        """The run's folder here; `attempt-N.log` in it is what the machine of attempt N writes."""
        return self._run.folder.path

    def logs(self) -> str:
        """Give what all machines have written so far; each one's own is in the file attempt-N.log of `folder`."""
        log = self._run.folder.log
        return log.read_text("utf-8", "replace") if log.exists() else ""

    def submit(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        """Queue a call; what cannot be sent is the future's exception (BadInput).

        Raises:
            RuntimeError: after `shutdown`; BrokenExecutor where the fleet has ended by itself (budget, time, set-up).
        """
        return self._submitted(fn, Call(function=fn, args=args, kwargs=kwargs), chunk=False)

    def map(
        self, fn: Callable[..., _R], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[_R]:
        """Be as `Executor.map`: results in order; a task is a chunk of `chunksize` calls."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        chunks = _batched(zip(*iterables, strict=False), chunksize)
        marked: Callable[..., list[_R]] = _Chunk(fn)
        return chain.from_iterable(super().map(marked, chunks, timeout=timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; machines are released as the queue empties. Idempotent.

        `wait` waits until all are gone and the bill is written; Ctrl-C in it cancels what is left. `cancel_futures`
        cancels what no machine has begun.
        """
        with self._lock:
            self._shut = True
            self._run.close()
        if cancel_futures:
            self._run.drop_queue()
        if not wait or not self._begun or self._run.dealer.is_here:
            return
        try:
            self._run.over.wait()
        except BaseException:
            self._run.cancel("it was interrupted")
            self._run.over.wait()
            raise

    def cancel(self) -> None:
        """Stop all tasks, begun or not, and release the machines; waits for none of it."""
        with self._lock:
            self._shut = True
        self._run.drop_queue()  # first: at the run's end, what no machine has begun would fail instead
        self._run.cancel("by its program")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all tasks and release the machines; where the block failed, cancel the tasks first."""
        if kind is not None:
            self.cancel()
        self.shutdown(wait=True)

    def _submitted(self, fn: Callable[..., Any], call: Call, *, chunk: bool) -> Future[Any]:
        if isinstance(fn, _Chunk):
            fn, chunk = fn.function, True
            call = Call(function=fn, args=call.args[0], kwargs={})
        inner = getattr(fn, "__wrapped__", fn) if hasattr(fn, "wanted") else fn
        wanted = self._wanted(fn, inner)
        future: Future[Any] = Future()
        try:
            source = self._source(inner)
            with self._lock:
                self._check_open()
                number = next(self._numbers)
            content, size = pack_task(
                Call(function=inner, args=call.args, kwargs=call.kwargs),
                source,
                chunk=chunk,
                trust_remote=wanted.trust_remote,
                place=self._run.folder.path / "tasks" / str(number),
            )
        except BadInput as error:
            self._check_open()
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        hint = Sequence[wanted.hint] if chunk else wanted.hint  # type: ignore[name-defined]
        wanted = Wanted(hint=hint, trust_remote=wanted.trust_remote)
        with self._lock:
            self._check_open()
            self._begin(source)
            book = self._run.book
            book.add(number, parameters_of(inner, call.args, call.kwargs, calls=len(call.args[0]) if chunk else None))
            self._run.add(CallTask(number=number, future=future, wanted=wanted, book=book, content=content, size=size))
        return future

    def _wanted(self, fn: Callable[..., Any], inner: Callable[..., Any]) -> Wanted:
        known = getattr(fn, "wanted", None)
        if isinstance(known, Wanted):
            return known
        return Wanted(hint=return_hint(inner), trust_remote=self._keys.get("trust_remote", False))

    def _check_open(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._run.error is not None:
            raise BrokenExecutor(f"run {self.run_id} of this fleet has ended: {self._run.error}") from self._run.error

    def _source(self, fn: Callable[..., Any]) -> Source:
        """Find how a function travels; all of a fleet's come from the one folder that goes up to its machines."""
        try:
            known = self._sources.get(fn)
        except TypeError:  # what cannot be hashed, or referred to weakly, is looked for each time
            return self._checked(find_any(fn, workdir=self._workdir), fn)
        if known is None:
            known = self._sources[fn] = self._checked(find_any(fn, workdir=self._workdir), fn)
        return known

    def _checked(self, source: Source, fn: Callable[..., Any]) -> Source:
        if self._place is None or source.workdir in ("", self._place):
            return source
        if source.by_value:
            return replace(source, workdir=self._place, roots=[])
        raise BadInput(
            f"{getattr(fn, '__qualname__', fn)!s} needs {source.workdir}, and {self._place or 'no folder'} is what "
            "goes up to this fleet's machines; name one folder that holds both with workdir="
        )

    def _begin(self, source: Source) -> None:
        if not self._begun:
            self._run.begin(self._common, workdir=source.workdir, python=self._keys.get("python", ""))
            self._place, self._begun = source.workdir, True


class _Chunk:
    """Marks that a task's one argument is a list of calls' arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, calls: list[Any]) -> list[Any]:
        """Make the calls here."""
        return [self.function(*one) for one in calls]


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    found = iter(items)
    while batch := [item for _, item in zip(range(size), found, strict=False)]:
        yield batch
