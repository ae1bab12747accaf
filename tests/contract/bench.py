"""What the contract's tests need to know of a backend: `BENCH` of `tests/contract/bench_<backend>.py`."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fake_server.server import FakeServer
from gpujobs.backends import Backend
from gpujobs.clock import Clock
from gpujobs.settings import Account


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One backend at its fake."""

    open: Callable[[Account, Clock], Backend]
    gpu: str  # one that is free
    near_gpu: tuple[str, str]  # a misspelt one, and the one that was meant
    near_region: tuple[str, str]
    near_image: tuple[str, str] | None  # None: the provider has no list to look in
    image: str
    create: str  # the fake's names of endpoints
    reads: Sequence[str]
    saves: bool  # whether its power_off can save the disk as an image
    release: str
    power_off: str
    take_all: Callable[[FakeServer], None]  # leaves nothing free of `gpu`


def bench_of(backend: str) -> Bench:
    """Find a backend's bench by its name."""
    bench: Bench = importlib.import_module(f"tests.contract.bench_{backend}").BENCH
    return bench
