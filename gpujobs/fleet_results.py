"""The results of one function over many arguments, as they come from a fleet of its own."""

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, as_completed
from typing import Any, Generic, Self, TypeVar

from gpujobs.fleet import Fleet

_R = TypeVar("_R")


class Results(Generic[_R]):
    """An iterator over the results, in the order of the arguments; the calls go on whether or not it is read.

    It raises what a call raised, and then the calls that are left are cancelled; with `return_exceptions` the exception
    is given in the result's place. At its end, all machines are released. Ctrl-C while it waits cancels.
    """

    def __init__(self, fleet: Fleet, futures: Sequence[Future[_R]], *, return_exceptions: bool) -> None:
        """Take a fleet that is for these calls alone."""
        self._fleet, self._futures, self._return_exceptions = fleet, futures, return_exceptions
        self._ordered = self._each((index, future) for index, future in enumerate(futures))

    @property
    def run_id(self) -> str:
        """The id of the run that all the calls are."""
        return self._fleet.run_id

    @property
    def cost(self) -> float | None:
        """What they have cost so far, in CNY; None while that is not known."""
        return self._fleet.cost

    def logs(self) -> str:
        """Give what the calls have written so far."""
        return self._fleet.logs()

    def cancel(self) -> None:
        """Stop all calls, begun or not; the machines are released in the background."""
        self._fleet.cancel()

    def as_completed(self) -> Generator[tuple[int, _R], None, None]:
        """Give pairs of a call's index and its result, as they are done."""
        places = {future: index for index, future in enumerate(self._futures)}
        return self._each((places[future], future) for future in as_completed(self._futures))

    def __iter__(self) -> Self:
        """Be its own iterator."""
        return self

    def __next__(self) -> _R:
        """Wait for the next result in order."""
        return next(self._ordered)[1]

    def _each(self, pairs: Iterable[tuple[int, Future[Any]]]) -> Generator[tuple[int, _R], None, None]:
        try:
            for index, future in pairs:
                error: Any = future.exception() if self._return_exceptions else None
                yield index, error if error is not None else future.result()
        except GeneratorExit:
            self._fleet.cancel()
            raise
        except BaseException:
            self._fleet.cancel()
            self._fleet.shutdown()
            raise
        self._fleet.shutdown()
