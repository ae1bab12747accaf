"""Named places at which a process may die, for tests that kill it there: around each act that outlives the process.

Off, which is always outside tests, a place costs less than a microsecond. Nothing but Python code arms it: no
setting, no environment variable.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_strike: Callable[[str], None] | None = None


class Point:
    """Surrounds one act with two places: `before NAME`, and `after NAME` where it is done and nobody knows of it."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: str) -> None:
        """Take the parts of the name: the door, then what goes through it."""
        self._parts = parts

    def __enter__(self) -> None:
        """Pass the place before the act."""
        if _strike is not None:
            _strike(" ".join(("before", *self._parts)))

    def __exit__(self, *_: object) -> None:
        """Pass the place after the act, which may have failed."""
        if _strike is not None:
            _strike(" ".join(("after", *self._parts)))


@contextmanager
def armed(strike: Callable[[str], None]) -> Iterator[None]:
    """Call `strike` with the name of each place that any thread passes while the block runs."""
    global _strike  # noqa: PLW0603 - one switch for all threads, as a kill strikes all of them
    before, _strike = _strike, strike
    try:
        yield
    finally:
        _strike = before
