"""What becomes of a fleet's calls, for the ledger's table of tasks: gathered in memory, written many at a time."""

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Unpack

from gpujobs.clock import Clock, SystemClock
from gpujobs.errors import GpujobsError, LetGo, RemoteError
from gpujobs.fleet_task import state_after
from gpujobs.ledger import Ledger
from gpujobs.ledger_rows import TaskChanges, TaskRecord

MOST = 10_000  # calls that the table tells of; a fleet may do any number
EVERY_S = 1.0
_OPEN = frozenset({"waiting", "running"})
_NAME_CHARS = 60
_LARGEST = 2**32
_log = logging.getLogger(__name__)


class Book:
    """The table of one fleet's calls by index, from 0; whoever notes something in it waits for no ledger.

    It has the function's name and those arguments that are numbers: a text may be a secret.
    """

    def __init__(self, run_id: str, *, clock: Clock | None = None) -> None:
        """Have noted nothing."""
        self._run_id, self._clock = run_id, clock or SystemClock()
        self._lock = threading.Lock()
        self._rows: dict[int, TaskRecord] = {}  # of the calls that are not over, or not written down yet
        self._changed: set[int] = set()
        self._news = threading.Event()

    def add(self, number: int, parameters: str) -> None:
        """Note that a call waits; `parameters` are as `parameters_of` gives them."""
        if number < MOST:
            with self._lock:
                self._rows[number] = TaskRecord(run_id=self._run_id, number=number, parameters=parameters)
            self._change(number)

    def began(self, number: int, machine: str, tries: int) -> None:
        """Note that it is at a machine."""
        self._change(number, state="running", machine=machine, tries=tries, began_at=self._clock.now())

    def waits(self, number: int) -> None:
        """Note that its machine was lost, and that it waits again."""
        self._change(number, state="waiting")

    def succeeded(self, number: int) -> None:
        """Note that its result came."""
        self._change(number, state="succeeded", ended_at=self._clock.now())

    def failed(self, number: int, error: BaseException) -> None:
        """Note why it has no result; of what the call itself raised only the kind, since its text may be a secret."""
        ours = isinstance(error, GpujobsError) and not isinstance(error, RemoteError)
        text = str(error) if ours else type(error).__name__
        self._change(number, state=state_after(error), error=text, ended_at=self._clock.now())

    def dropped(self, number: int) -> None:
        """Note that it was cancelled before it began."""
        self._change(number, state="cancelled", error="", ended_at=self._clock.now())

    def write(self, ledger: Ledger) -> None:
        """Write what has changed since the last time; raises what the ledger raises, and then nothing is forgotten."""
        with self._lock:
            numbers = sorted(self._changed)
            rows = [self._rows[number] for number in numbers]
            self._changed.clear()
            self._news.clear()
        try:
            ledger.put_tasks(rows)
        except BaseException:
            with self._lock:
                self._changed.update(numbers)
            raise
        self._forget(rows)

    @contextmanager
    def kept(self, ledger: Ledger) -> Iterator[None]:
        """Write on a thread of its own while the block runs, and once more at its end; trouble costs no call."""
        over = threading.Event()
        thread = threading.Thread(
            target=self._keep, args=(ledger, over), name=f"gpujobs-{self._run_id}-book", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            over.set()
            self._news.set()
            thread.join()

    def _keep(self, ledger: Ledger, over: threading.Event) -> None:
        ended = False
        while not ended:
            self._news.wait()
            ended = over.wait(EVERY_S)
            try:
                self.write(ledger)
            except LetGo:
                return
            except GpujobsError as error:
                _log.warning("run %s: its table of tasks is not up to date: %s", self._run_id, error)

    def _change(self, number: int, **changes: Unpack[TaskChanges]) -> None:
        with self._lock:
            row = self._rows.get(number)
            if row is not None:
                self._rows[number] = replace(row, **changes)
                self._changed.add(number)
        self._news.set()

    def _forget(self, written: Sequence[TaskRecord]) -> None:
        with self._lock:
            for row in written:
                if row.state not in _OPEN and self._rows.get(row.number) is row:
                    del self._rows[row.number]


def parameters_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, calls: int | None = None
) -> str:
    """Give as JSON what the table shows of a call, or of a chunk of so many `calls`."""
    name = str(getattr(function, "__qualname__", type(function).__name__))[:_NAME_CHARS]
    if calls is not None:
        return json.dumps({"call": name, "calls": calls})
    code = getattr(function, "__code__", None)
    names = code.co_varnames[hasattr(function, "__self__") : code.co_argcount] if code else ()
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    numbers = {key: value for key, value in named.items() if key != "call" and _can_be_shown(value)}
    return json.dumps({"call": name, **numbers})


def _can_be_shown(value: Any) -> bool:
    return type(value) in {bool, int, float} and math.isfinite(value) and abs(value) < _LARGEST
