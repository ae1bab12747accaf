"""Fixtures of the fake's own tests."""

from collections.abc import Iterator

import pytest

from fake_server.server import FakeServer
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import Wires


@pytest.fixture
def quiet() -> Iterator[FakeServer]:
    """A fake with containers that are only remembered, and a clock that only `advance` moves."""
    with FakeServer(speed=0, seed=7, containers=QuietContainers) as fake:
        yield fake


@pytest.fixture
def wires(quiet: FakeServer) -> Iterator[Wires]:
    wires = Wires(quiet)
    with wires.session:
        yield wires


@pytest.fixture
def containers(quiet: FakeServer) -> QuietContainers:
    """The remembered containers of `quiet`."""
    double = quiet.world.ground.containers
    assert isinstance(double, QuietContainers)
    return double


@pytest.fixture(scope="module")
def real() -> Iterator[Wires]:
    """A fake with real machines, on real time."""
    with FakeServer() as fake:
        wires = Wires(fake)
        with wires.session:
            yield wires
