"""Fixtures of the fake's own tests."""

import threading
from collections.abc import Iterator

import pytest

from fake_server.server import FakeServer
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import OwnThreads, Wires


@pytest.fixture
def own_threads(monkeypatch: pytest.MonkeyPatch) -> OwnThreads:
    """Name the threads that the test or one of its own threads has started, and that live; other fakes live on here."""
    own, start = {threading.current_thread()}, threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        if threading.current_thread() in own:
            own.add(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    main = threading.current_thread()
    return lambda: [thread.name for thread in tuple(own) if thread is not main and thread.is_alive()]


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
