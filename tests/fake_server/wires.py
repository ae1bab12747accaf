"""The two APIs and the control room as plain calls, for the fake's own tests; nothing of gpujobs takes part."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import requests

from fake_server.server import FakeServer

BASE_IMAGE = "base-image-l2t43iu6uk"
OFFICIAL_IMAGE = "images.neolink-ai.com/matrixdc/tensorflow:2.15.0-python3.10-cuda12.1.0-cudnn8-devel-ubuntu22.04"
INSTANCES = "/clusters/host-cluster/instances"
Found = TypeVar("Found")
OwnThreads = Callable[[], list[str]]


def eventually(look: Callable[[], Found], *, within_s: float = 60.0) -> Found:
    """Return what look returns once it is true; the world's work is done by its own threads."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
    return found


def template(**changes: Any) -> dict[str, Any]:
    """A container template that fits many hosts."""
    return {
        "dc_list": ["westDC2", "westDC3"],
        "gpu_name_set": ["RTX 4090"],
        "gpu_num": 1,
        "cuda_v_from": 113,
        "cuda_v_to": 128,
        "cpu_num_from": 1,
        "cpu_num_to": 400,
        "memory_size_from": 1,
        "memory_size_to": 4000,
        "price_from": 10,
        "price_to": 99000,
        "image_uuid": BASE_IMAGE,
        "cmd": "sleep 100",
        **changes,
    }


def job(*, name: str = "work", replica_num: int = 1, parallelism_num: int = 1, **changes: Any) -> dict[str, Any]:
    """A Job's body."""
    return {
        "name": name,
        "deployment_type": "Job",
        "replica_num": replica_num,
        "parallelism_num": parallelism_num,
        "container_template": template(**changes),
    }


def replica_set(*, replica_num: int, reuse_container: bool = False, **changes: Any) -> dict[str, Any]:
    """A ReplicaSet's body."""
    return {
        "name": "service",
        "deployment_type": "ReplicaSet",
        "replica_num": replica_num,
        "reuse_container": reuse_container,
        "container_template": template(**changes),
    }


def instance(**changes: Any) -> dict[str, Any]:
    """A MatrixDC instance's body, 4090 by the hour."""
    return {
        "Cost": {"CostType": "1", "CouponID": "", "DiskSKUID": "1", "GPUSKUID": "66", "CostTime": ""},
        "VolumeMount": [{"PathInContainer": "/root/data", "Size": 50, "Type": "shared-filesystem"}],
        "namespace": "fake-user",
        "displayName": "box",
        "image": OFFICIAL_IMAGE,
        "Region": "",
        **changes,
    }


class Wires:
    """Calls on one fake. `autodl` and `matrixdc` return the reply's JSON, whatever it is."""

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake
        self.session = requests.Session()

    def autodl(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
        headers = {"Authorization": self.fake.token if token is None else token}
        url = f"{self.fake.autodl_url}/api/v1/dev{path}"
        reply = self.session.request(method, url, json=body, headers=headers, timeout=30)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def data(self, method: str, path: str, body: Any = None) -> Any:
        """What a successful AutoDL call returns."""
        reply = self.autodl(method, path, body)
        assert (reply["code"], reply["msg"]) == ("Success", ""), reply
        return reply["data"]

    def deploy(self, body: Mapping[str, Any]) -> str:
        return str(self.data("POST", "/deployment", body)["deployment_uuid"])

    def deployments(self, **filters: Any) -> list[dict[str, Any]]:
        asked = {"page_index": 1, "page_size": 100, **filters}
        return list(self.data("POST", "/deployment/list", asked)["list"])

    def containers(self, deployment: str, **filters: Any) -> list[dict[str, Any]]:
        asked = {"deployment_uuid": deployment, "page_index": 1, "page_size": 100, **filters}
        return list(self.data("POST", "/deployment/container/list", asked)["list"])

    def events(self, deployment: str, container: str = "") -> list[str]:
        """The statuses, newest first."""
        asked = {
            "deployment_uuid": deployment,
            "deployment_container_uuid": container,
            "page_index": 1,
            "page_size": 1000,
        }
        return [row["status"] for row in self.data("POST", "/deployment/container/event/list", asked)["list"]]

    def running(self, deployment: str, count: int = 1) -> list[dict[str, Any]]:
        """The deployment's running containers, once there are so many, newest first."""

        def look() -> list[dict[str, Any]]:
            found = self.containers(deployment, status=["running"])
            return found if len(found) == count else []

        return eventually(look)

    def matrixdc(self, method: str, path: str, body: Any = None, *, status: int = 200, **headers: str) -> Any:
        given = {"Authorization": f"bearer {self.fake.token}", "namespace": self.fake.namespace, **headers}
        url = f"{self.fake.matrixdc_url}{path}"
        reply = self.session.request(method, url, json=body, headers=given, timeout=30)
        assert reply.status_code == status, reply.text
        return reply.json()

    def rent(self, **changes: Any) -> str:
        return str(self.matrixdc("POST", INSTANCES, instance(**changes))["name"])

    def box(self, name: str) -> dict[str, Any]:
        return dict(self.matrixdc("GET", f"{INSTANCES}/{name}"))

    def boxed(self, name: str, status: str) -> dict[str, Any]:
        """The instance, once it has that status."""
        return eventually(lambda: box if (box := self.box(name))["status"] == status else None) or {}

    def boxes(self) -> list[str]:
        return [node["name"] for node in self.matrixdc("GET", INSTANCES)["nodes"]]

    def control(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        headers = {"X-Fake-Control": self.fake.control_token}
        reply = self.session.request(method, f"{self.fake.url}/_fake/{path}", json=body, headers=headers, timeout=30)
        assert reply.status_code == status, reply.text
        return reply.json()

    def advance(self, seconds: float) -> None:
        self.control("POST", "clock", {"advance": seconds})

    def truth(self) -> list[dict[str, Any]]:
        return list(self.control("GET", "ledger")["machines"])
