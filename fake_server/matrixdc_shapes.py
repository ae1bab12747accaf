# ruff: noqa: N815 -- the provider's own field names, as they stand in the JSON
"""The replies of MatrixDC's API as models: what /_fake/openapi.json publishes. Source: the provider's API document."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, RootModel


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RegionShown(_Shape):
    """One region and its cluster."""

    id: str
    region: str
    clusterName: str
    harborAddr: str
    howlerID: str
    createdAt: str
    updatedAt: str


class Regions(RootModel[list[RegionShown]]):
    """GET regions."""


class SkuShown(_Shape):
    """One machine size; memory in GB, sellingType 1 by use, 2 by month, 3 by week, 4 by day."""

    name: str
    regionID: str
    cpuArch: str
    cpuSeries: str
    cpucores: int
    memoryCount: int
    cpuVendor: str
    gpuSeries: str
    gpuProduct: str
    gpuResourceKey: str
    gpuCounts: int
    gpuMemory: int
    systemstorage: int
    datastorage: int
    skusID: str
    regionName: str
    clusterName: str
    sellingType: str
    ratio: float
    discountID: str
    discountStartTime: str
    discountEndTime: str
    price: float
    remainGPUCount: int


class Skus(RootModel[list[SkuShown]]):
    """GET skus/computings."""


class Ssh(_Shape):
    """How to log in."""

    sshAddr: str
    sshPassword: str


class Servers(_Shape):
    """Where a running instance's services are."""

    Jupyterlab: str
    Tensorboard: str
    SSH: Ssh


class Resources(_Shape):
    """What an instance has, as text."""

    cpu: str
    memory: str
    GPUNum: str
    GPUType: str


class VolumeShown(_Shape):
    """A disk of an instance; Size in GB, 0 while it is being made."""

    PathInContainer: str
    Type: str
    Size: int
    PVCName: str
    displayName: str
    filesystemType: Literal["system", "data"]


class CostShown(_Shape):
    """How an instance is paid for."""

    CostType: str
    CostTime: str
    DiscountID: str
    GPUSKUID: str
    DiskSKUID: str
    CouponID: str


class PodContainer(_Shape):
    """A container of a pod."""

    Name: str


class Pod(_Shape):
    """Where an instance runs."""

    Name: str
    Containers: list[PodContainer]
    nodeScheduled: str
    ip: str


class InstanceShown(_Shape):
    """One instance; `servers` and `Pods` are there only while it runs."""

    name: str
    namespace: str
    Region: str
    displayName: str
    description: str
    annotations: dict[str, str]
    uid: str
    servers: Servers | None = None
    image: str
    replicas: int
    resources: Resources
    volumeMounts: list[VolumeShown]
    creationTimestamp: str
    updateTimestamp: str
    ScheduleStopTimestamp: str
    status: str
    cost: CostShown
    Pods: list[Pod] | None = None


class InstanceList(_Shape):
    """GET instances."""

    hasNextPage: bool
    nodes: list[InstanceShown]
    totalCount: int


class Ok(RootModel[Literal["ok"] | None]):
    """What an order is answered with."""


class Refusal(BaseModel):
    """An error; the document shows none, so this is the fake's guess."""

    message: str
