"""The fixture `fake_gpu_cloud`, which every pytest run finds once this package is installed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fake_server.cloud import FakeCloud


def pytest_configure(config: pytest.Config) -> None:
    """Publish the marker that gives the fixture its options."""
    config.addinivalue_line("markers", "fake_gpu_cloud(**options): how the fixture's FakeCloud is made, say speed=60")


@pytest.fixture
def fake_gpu_cloud(request: pytest.FixtureRequest) -> Iterator["FakeCloud"]:
    """A running FakeCloud for this test alone; the clients' environment variables point at it meanwhile."""
    from fake_server.cloud import FakeCloud  # noqa: PLC0415 -- runs that do not use it need not load a web server

    marker = request.node.get_closest_marker("fake_gpu_cloud")
    with FakeCloud(**{"environment": True, **(marker.kwargs if marker else {})}) as cloud:
        yield cloud
