"""The network of machines in memory: the command of a given number is cut, frozen, refused or slowed."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from gpujobs.errors import Unreachable

FROZEN_S = 30.0  # so long after the last sign of life a frozen connection is given up
REFUSED_S = 90.0
SLOW_S = 20.0
KINDS = ("cut before it", "cut amid it", "cut after it", "half-open before it", "half-open after it", "refused", "slow")


class Time(Protocol):
    """The clock of the simulation, in seconds."""

    def monotonic(self) -> float: ...

    def move(self, seconds: float) -> None: ...


class SimNetwork:
    """Counts the commands that go over it, and strikes some of them."""

    def __init__(self) -> None:
        self.mend()

    def mend(self) -> None:
        """Strike nothing; count anew."""
        self._due: dict[int, str] = {}
        self._carried = 0
        self._refused_until = float("-inf")
        self.struck: Counter[str] = Counter()

    def strike(self, due: Mapping[int, str]) -> None:
        """Strike the commands of these numbers, each by a kind."""
        self._due = dict(due)

    def refuses(self, time: Time) -> bool:
        """Say whether no new connection is let in."""
        return time.monotonic() < self._refused_until

    @contextmanager
    def carrying(self, time: Time) -> Iterator[Callable[[bytes], bytes]]:
        """Carry one command; what its output goes through gives what arrives of it. Raises Unreachable where struck."""
        kind = self._due.pop(self._carried, "")
        self._carried += 1
        if kind:
            self.struck[kind] += 1
        if kind == "slow":
            time.move(SLOW_S)
        if kind == "refused":
            self._refused_until = time.monotonic() + REFUSED_S
        if kind in {"cut before it", "half-open before it", "refused"}:
            self._lose(kind, time)
        if kind == "cut amid it":
            yield self._amid(kind, time)
            self._lose(kind, time)
        elif kind in {"cut after it", "half-open after it"}:
            yield lambda _: b""
            self._lose(kind, time)
        else:
            yield lambda data: data

    def _amid(self, kind: str, time: Time) -> Callable[[bytes], bytes]:
        """Let half of the first piece arrive, and nothing after it."""
        came: list[bytes] = []

        def half(data: bytes) -> bytes:
            if came:
                self._lose(kind, time)
            came.append(data)
            return data[: (len(data) + 1) // 2]

        return half

    def _lose(self, kind: str, time: Time) -> None:
        if kind.startswith("half-open"):
            time.move(FROZEN_S)
        raise Unreachable(f"{kind}, said the network")
