"""Fixtures of the backends' tests: a fake cloud without SSH, and a clock that waits for nothing."""

from collections.abc import Iterator

import pytest

from fake_server.server import FakeServer
from tests.backends.clouds import quiet_server
from tests.clocks import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(runs_by_itself=True)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with quiet_server() as server:
        yield server
