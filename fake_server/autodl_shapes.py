"""The replies of AutoDL's API as models: what /_fake/openapi.json publishes. Source: the provider's API document."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Envelope(_Shape):
    """What every reply comes in; any code but Success is an error, told by msg, with HTTP 200 all the same."""

    code: str
    msg: str
    data: Any = None


class DeploymentMade(_Shape):
    """POST deployment."""

    deployment_uuid: str


class Page(_Shape):
    """What every list is wrapped in; max_page counts from 1."""

    page_index: int
    page_size: int
    offset: int
    max_page: int


class Image(_Shape):
    """One private image."""

    id: int
    created_at: str
    updated_at: str
    image_uuid: str
    image_name: str
    status: str


class ImagePage(Page):
    """POST image/private/list."""

    list: Sequence[Image]


class TemplateShown(_Shape):
    """The container template of a deployment; memory in bytes, prices in 元 × 1000 an hour."""

    region_sign: str
    dc_list: list[str]
    gpu_name_set: list[str]
    gpu_num: int
    image_uuid: str
    image_name: str | None
    cmd: str
    cmd_before_shutdown: str
    memory_size_from: float
    memory_size_to: float
    cpu_num_from: float
    cpu_num_to: float
    price_from: float
    price_to: float
    cuda_v_from: float
    cuda_v_to: float


class DeploymentShown(_Shape):
    """One deployment; status is running or stopped."""

    id: int
    uid: int
    uuid: str
    name: str
    deployment_type: str
    status: str
    replica_num: int
    parallelism_num: int
    reuse_container: bool
    service_port_protocol: str
    service_6006_port_protocol: str
    service_6008_port_protocol: str
    starting_num: int
    running_num: int
    finished_num: int
    image_uuid: str
    template: TemplateShown
    price_estimates: float
    created_at: str
    updated_at: str
    stopped_at: str | None


class DeploymentPage(Page):
    """POST deployment/list, newest first."""

    list: Sequence[DeploymentShown]
    result_total: int
    page: int


class EventShown(_Shape):
    """A container reached a status."""

    deployment_container_uuid: str
    status: str
    created_at: str


class EventPage(Page):
    """POST deployment/container/event/list, newest first."""

    list: Sequence[EventShown]


class Info(_Shape):
    """How to reach a container; empty until it runs."""

    ssh_command: str
    root_password: str
    service_6006_port_url: str
    service_6008_port_url: str
    service_url: str
    proxy_host: str
    custom_port: int


class ContainerShown(_Shape):
    """One container; memory in bytes, price in 元 × 1000 an hour."""

    id: int
    uuid: str
    version: str
    data_center: str
    machine_id: str
    deployment_uuid: str
    status: str
    gpu_name: str
    gpu_num: int
    cpu_num: int
    memory_size: int
    image_uuid: str
    price: float
    info: Info
    started_at: str | None
    stopped_at: str | None
    created_at: str
    updated_at: str


class ContainerPage(Page):
    """POST deployment/container/list, newest first."""

    list: Sequence[ContainerShown]


class BanShown(_Shape):
    """A host in the blacklist."""

    created_at: str
    data_center: str
    expired_time: str
    machine_id: str
    msg: str
    updated_at: str


class Bans(RootModel[list[BanShown]]):
    """GET deployment/blacklist."""


class Idle(_Shape):
    """GPUs of one model."""

    idle_gpu_num: int
    total_gpu_num: int


class Stock(RootModel[list[dict[str, Idle]]]):
    """POST machine/region/gpu_stock: one object with one key a GPU model."""


class Hours(_Shape):
    """A bought package of GPU hours, in seconds; dc_list is a text with commas."""

    gpu_type: str
    total: int
    balance: int
    dc_list: str


class Overview(RootModel[list[Hours]]):
    """GET deployment/ddp/overview."""


class Empty(RootModel[None]):
    """A call whose data is null."""
