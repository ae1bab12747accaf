"""A client that others wrote works with the fake, unchanged but for its base URL, where it follows the document.

It is autodl-api 1.0.2 (MIT): installed, or a wheel that AUTODL_API_WHEEL names; the tests are skipped where it is
neither. Where it departs from the document, the fake refuses it, as the provider would.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fake_server.wires import BASE_IMAGE, Wires, eventually


@pytest.fixture
def client(real: Wires, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if wheel := os.environ.get("AUTODL_API_WHEEL"):
        monkeypatch.syspath_prepend(wheel)
    autodl = pytest.importorskip("autodl", reason="NO OTHER CLIENT HERE: autodl-api is not installed")
    assert autodl.__version__ == "1.0.2"
    client = autodl.AutoDLElasticDeployment(real.fake.token)
    client.base_url = real.fake.autodl_url
    yield client
    for row in real.deployments():
        real.data("DELETE", "/deployment", {"deployment_uuid": row["uuid"]})
    eventually(lambda: real.deployments() == [])
    for name in [name for name in sys.modules if name.partition(".")[0] == "autodl"]:
        del sys.modules[name]


def test_it_rents_watches_scales_and_releases(client: Any, real: Wires) -> None:
    assert client.get_images()[0]["image_uuid"].startswith("image-")
    stock = client.get_gpu_stock("westDC2")
    assert {"RTX 4090", "RTX 3080 Ti"} <= {row["gpu_type"] for row in stock}
    uuid = client.create_replicaset_deployment("service", BASE_IMAGE, replica_num=1, memory_size_to=256)
    container = real.running(uuid)[0]
    assert client.query_containers(uuid)["list"][0]["info"]["ssh_command"].startswith("ssh -p ")
    events = client.query_container_events(uuid)
    assert [row["status"] for row in events][:2] == ["running", "oss_merged"]
    assert {row["deployment_container_uuid"] for row in events} == {container["uuid"]}
    assert client.get_ddp_overview(uuid)[0]["gpu_type"] == "RTX 4090"
    assert client.set_replicas(uuid, 2)
    real.running(uuid, 2)
    assert client.stop_deployment(uuid)
    eventually(lambda: real.deployments(deployment_uuid=uuid, status="stopped"))
    assert client.delete_deployment(uuid)
    eventually(lambda: real.deployments(deployment_uuid=uuid) == [])


def test_it_makes_all_three_types(client: Any, real: Wires) -> None:
    made = [
        client.create_replicaset_deployment("a", BASE_IMAGE, replica_num=1),
        client.create_job_deployment("b", BASE_IMAGE, replica_num=2, parallelism_num=1),
        client.create_container_deployment("c", BASE_IMAGE),
    ]
    shown = {row["uuid"]: row["deployment_type"] for row in real.deployments()}
    assert [shown[uuid] for uuid in made] == ["ReplicaSet", "Job", "Container"]


def test_its_job_runs_to_its_end(client: Any, real: Wires) -> None:
    uuid = client.create_job_deployment("job", BASE_IMAGE, replica_num=1, cmd="sleep 0.2")
    eventually(lambda: real.deployments(deployment_uuid=uuid, status="stopped"))
    assert real.deployments(deployment_uuid=uuid)[0]["finished_num"] == 1


def test_a_refusal_reaches_its_user(client: Any) -> None:
    with pytest.raises(Exception, match="私有镜像不存在"):
        client.create_job_deployment("job", "image-none")


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("get_deployments", ()),  # GET deployment/list: the document has POST
        ("stop_container", ("some-uuid",)),  # POST container/stop: the document has PUT
        ("set_scheduling_blacklist", ("some-uuid", 60, "")),  # another path
        ("get_scheduling_blacklist", ("some-uuid",)),
    ],
)
def test_what_the_document_does_not_have_is_refused(client: Any, call: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(Exception, match=r"40[45]"):
        getattr(client, call)(*arguments)
