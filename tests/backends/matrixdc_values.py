"""What MatrixDC says, as its documents have it, and backends on servers that say so."""

from collections.abc import Callable
from typing import Any

from gpujobs.backends._http import Door
from gpujobs.backends._matrixdc_wire import MatrixDCClient, provider
from gpujobs.backends.matrixdc import MatrixDC, open_backend
from gpujobs.models import Machine, MachineStatus, Offer
from gpujobs.settings import Account
from tests.backends.clouds import TOKEN, Answer, Request, recipe_of
from tests.clocks import ManualClock, eventually

REGION = {
    "id": "14c5a9e3-0d09-4aa0-99d3-c096b80cceaa",
    "region": "北京一区",
    "clusterName": "host-cluster",
    "harborAddr": "images.neolink-ai.com",
    "howlerID": "69e377a7-99d1-cca0-ef58-cfce14a336b2",
    "createdAt": "2024-07-15T12:00:23.227+08:00",
    "updatedAt": "2024-07-15T12:00:23.227+08:00",
}
SKU = {
    "name": "H20",
    "regionID": REGION["id"],
    "cpuArch": "x86-64",
    "cpucores": 24,
    "memoryCount": 192,
    "gpuResourceKey": "nvidia.com/gpu-h20",
    "gpuCounts": 1,
    "gpuMemory": 96,
    "systemstorage": 30,
    "datastorage": 50,
    "skusID": "2",
    "clusterName": "host-cluster",
    "sellingType": "1",
    "ratio": 0.48,
    "discountStartTime": "2024-08-15T15:26:38+08:00",
    "discountEndTime": "2024-10-01T00:05:00+08:00",
    "price": 10,
    "remainGPUCount": 8,
}
CREATING = {
    "name": "instance-ccffxxxx",
    "namespace": "xxx",
    "Region": "host-cluster",
    "displayName": "gj-tester-run1-1",
    "annotations": {
        "demo.cdc.datenfab.com/cost-gpu-sku-id": "66",
        "demo.cdc.datenfab.com/unit-price": "250",
    },
    "uid": "8d40c2e6-a0b0-45c2-9b40-a0de065104f5",
    "image": "images.neolink-ai.com/matrixdc/tensorflow:2.15.0",
    "replicas": 1,
    "resources": {"cpu": "16", "memory": "96Gi", "GPUNum": "1", "GPUType": "4090"},
    "volumeMounts": [
        {"PathInContainer": "/", "Type": "local-filesystem", "Size": 30, "filesystemType": "system"},
        {"PathInContainer": "/root/data", "Type": "shared-filesystem", "Size": 0, "filesystemType": "data"},
    ],
    "creationTimestamp": "2024-09-02T18:34:33+08:00",
    "updateTimestamp": "0001-01-01T00:00:00Z",
    "ScheduleStopTimestamp": "0001-01-01T00:00:00Z",
    "status": "Creating",
    "cost": {"CostType": "1", "CostTime": "", "DiscountID": "", "GPUSKUID": "66", "DiskSKUID": "1", "CouponID": ""},
}
SSH = {
    "sshAddr": "ssh -p30099 root@8d40c2e6.gws.demo.cdc.datenfab.com",
    "sshPassword": "canary-password",
}
RUNNING = {
    **CREATING,
    "status": "Running",
    "servers": {
        "Jupyterlab": "http://8d40c2e6.gw.neolink-ai.com/jupyter?token=canary-7d27",
        "Tensorboard": "http://8d40c2e6.gw.neolink-ai.com/monitor",
        "SSH": SSH,
    },
    "Pods": [
        {
            "Name": "instance-ccff84c2-dd6nm",
            "Containers": [{"Name": "worker"}],
            "nodeScheduled": "gpu-4090-03",
            "ip": "172.31.213.79",
        }
    ],
}
NAME = "gj-tester-run1-1"
MACHINE = Machine(
    backend="matrixdc", id="instance-ccffxxxx", name=NAME, region="host-cluster", status=MachineStatus.BOOTING
)
INSTANCES = "/clusters/host-cluster/instances"
MISSING = Answer(404, {"message": "实例不存在"})


def account_at(url: str, **more: Any) -> Account:
    return Account(api_url=url, token=TOKEN, namespace="me", **more)


def backend_at(url: str, clock: ManualClock | None = None, **more: Any) -> MatrixDC:
    return open_backend(account_at(url, **more), clock=clock or ManualClock(runs_by_itself=True))


def client_at(url: str) -> MatrixDCClient:
    return MatrixDCClient(Door(provider(account_at(url)), clock=ManualClock(runs_by_itself=True)))


def offer_at(backend: MatrixDC, gpu: str = "4090", **parts: Any) -> Offer:
    return backend.offers(recipe_of(gpu, **parts))[0]


def make(backend: MatrixDC, name: str = NAME, **parts: Any) -> Machine:
    recipe = recipe_of("4090", **parts)
    return backend.create(recipe, backend.offers(recipe)[0], name=name, image="")


def until(backend: MatrixDC, machine: Machine, status: MachineStatus) -> None:
    eventually(lambda: backend.events([machine])[-1].status is status, what=str(status))


def listed(*nodes: Any, more: bool = False, total: int | None = None) -> Answer:
    return Answer(
        body={
            "hasNextPage": more,
            "nodes": list(nodes) or None,
            "totalCount": len(nodes) if total is None else total,
        }
    )


def cloud(*nodes: Any, single: Answer = MISSING, **more: Any) -> Callable[[Request], Answer]:
    """Answer as a cloud of these instances; `single` is what one that is asked for by itself gets."""

    def answer(asked: Request) -> Answer:
        if asked.path == "/regions":
            return Answer(body=[REGION])
        return listed(*nodes, **more) if asked.path == INSTANCES else single

    return answer
