"""Fixtures: a cloud of real machines, and one machine of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_server.machines.clients import Client, Cloud


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path)
    if cloud.containers.isolation == "none":
        pytest.skip(
            "NEITHER unshare NOR bubblewrap WORKS HERE: the fake's machines are not isolated, nothing was tested"
        )
    yield cloud
    for client in cloud.clients:
        client.close()
    cloud.containers.close()


@pytest.fixture
def machine(cloud: Cloud) -> Client:
    return cloud.boot()
