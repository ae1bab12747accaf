"""What AutoDL says, as its documents have it, and backends on servers that say so."""

from typing import Any

from gpujobs.backends.autodl import AutoDL, open_backend
from gpujobs.models import Machine, MachineStatus, Offer
from gpujobs.settings import Account
from tests.backends.clouds import TOKEN, Answer
from tests.clocks import ManualClock, eventually

CONTAINER = {
    "id": 195,
    "uuid": "53a677bb3e281b8-f94411a60c-63c24009",
    "data_center": "westDC2",
    "machine_id": "f94411a60c",
    "deployment_uuid": "da497aea1eb8343",
    "status": "running",
    "gpu_name": "TITAN Xp",
    "gpu_num": 1,
    "cpu_num": 4,
    "memory_size": 2147483648,
    "image_uuid": "image-db8346e037",
    "price": 1881,
    "info": {
        "ssh_command": "ssh -p 21305 root@region-1.autodl.com",
        "root_password": "canary-password",
        "service_6006_port_url": "https://region-1.autodl.com:21294",
        "service_6008_port_url": "region-1.autodl.com:21295",
    },
    "started_at": "2022-12-13T16:43:03+08:00",
    "stopped_at": None,
    "created_at": "2022-12-13T16:42:50+08:00",
    "updated_at": "2022-12-13T16:43:03+08:00",
}
DEPLOYMENT = {
    "id": 214,
    "uid": 58,
    "uuid": "53a677bb3e281b8",
    "name": "xxxx",
    "deployment_type": "Container",
    "status": "stopped",
    "replica_num": 1,
    "parallelism_num": 1,
    "reuse_container": True,
    "service_port_protocol": "http",
    "starting_num": 0,
    "running_num": 0,
    "finished_num": 2,
    "image_uuid": "image-db8346e037",
    "template": {
        "region_sign": "",
        "dc_list": ["westDC2", "westDC3"],
        "gpu_name_set": ["Tesla V100-SXM2-32GB"],
        "gpu_num": 1,
        "image_uuid": "image-db8346e037",
        "cmd": "sleep 100",
        "memory_size_from": 1073741824,
        "memory_size_to": 274877906944,
        "price_from": 10,
        "price_to": 9000,
    },
    "price_estimates": 0,
    "created_at": "2023-01-05T20:34:07+08:00",
    "updated_at": "2023-01-05T20:34:07+08:00",
    "stopped_at": None,
}
OFFER = Offer(
    backend="autodl",
    region="westDC2",
    gpu="RTX 4090",
    gpu_count=1,
    gpu_memory_gb=None,
    cpus=None,
    memory_gb=None,
    price_cny_per_h=2.0,
    price_is_estimate=True,
    free=3,
)
NAME = "gj-tester-run1-1"
MACHINE = Machine(backend="autodl", id="d1", name=NAME, region="westDC2", status=MachineStatus.QUEUED)
NO_REGION = Answer(body={"code": "RequestParameterIsWrong", "msg": "请求参数错误", "data": None})
OTHER = {**DEPLOYMENT, "uuid": "d2"}


def backend_at(url: str, clock: ManualClock | None = None) -> AutoDL:
    account = Account(api_url=url, token=TOKEN)
    return open_backend(account, clock=clock or ManualClock(runs_by_itself=True))


def until(backend: AutoDL, machine: Machine, status: MachineStatus) -> None:
    eventually(lambda: backend.events([machine])[-1].status is status, what=str(status))


def ok(data: Any) -> Answer:
    return Answer(body={"code": "Success", "msg": "", "data": data})


def page(*items: Any) -> Answer:
    return ok({"list": list(items), "page_index": 1, "page_size": 10, "offset": 0, "max_page": 1})
