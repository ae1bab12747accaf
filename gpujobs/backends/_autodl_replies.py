"""What AutoDL's elastic deployment API answers, typed. Each class names the section of the API document."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr

from gpujobs.backends._reading import Count, Moment, Number, Reply, Text

T = TypeVar("T")

_BYTES_PER_GB = 2**30
_CNY = 1000  # prices are in CNY × 1000

Uuid = Annotated[str, Field(validation_alias=AliasChoices("uuid", "deployment_container_uuid", "container_uuid"))]


Names = Annotated[Sequence[str], BeforeValidator(lambda value: value or [])]


def listed(value: Any) -> Any:
    """Make a list of a list, of one object alone, of null, or of {"list": ...}: samples and types differ on it."""
    if isinstance(value, Mapping):
        return value.get("list", [value])
    return [] if value is None else value


def stock_by_name(value: Any) -> Any:
    """Make one mapping of a list of single-key objects, or of a mapping."""
    if isinstance(value, Mapping) and "list" in value:
        value = value["list"]
    items = [value] if isinstance(value, Mapping) else value or []
    return {name: stock for item in items for name, stock in item.items()}


class Page(Reply, Generic[T]):
    """One page of a list."""

    list: Annotated[Sequence[T], BeforeValidator(lambda value: value or [])] = ()
    page_index: Count = 1
    max_page: Count | None = None
    result_total: Count | None = None


class PrivateImage(Reply):
    """获取镜像: an image saved on AutoDL's web site."""

    shown: ClassVar[frozenset[str]] = frozenset({"image_uuid", "image_name", "status"})
    id: Count = 0
    image_name: Text = ""
    image_uuid: str
    status: Text = ""
    created_at: Moment = None


class Template(Reply):
    """The container template as a deployment's reply gives it; memory in bytes, prices in CNY × 1000 per hour."""

    shown: ClassVar[frozenset[str]] = frozenset({"dc_list", "gpu_name_set", "gpu_num"})
    dc_list: Names = ()
    gpu_name_set: Names = ()
    gpu_num: Count = 0
    image_uuid: Text = ""
    memory_size_from: Count = 0
    memory_size_to: Count = 0
    price_from: Number = 0.0
    price_to: Number = 0.0


class Deployment(Reply):
    """获取部署列表: a deployment."""

    shown: ClassVar[frozenset[str]] = frozenset({"uuid", "name", "status", "deployment_type"})
    uuid: Annotated[str, Field(validation_alias=AliasChoices("uuid", "deployment_uuid"))]
    name: Text = ""
    deployment_type: Text = ""
    status: Text = ""
    replica_num: Count = 0
    parallelism_num: Count = 0
    starting_num: Count = 0
    running_num: Count = 0
    finished_num: Count = 0
    template: Template | None = Field(default=None, validation_alias=AliasChoices("template", "container_template"))
    price_estimates: Number = 0.0
    created_at: Moment = None
    updated_at: Moment = None
    stopped_at: Moment = None


class ContainerEvent(Reply):
    """查询容器事件: a container reached a status."""

    shown: ClassVar[frozenset[str]] = frozenset({"uuid", "status", "created_at"})
    uuid: Uuid
    status: Text
    created_at: Moment = None


class ContainerInfo(Reply):
    """How to reach a container."""

    ssh_command: Text = ""
    root_password: Annotated[SecretStr, BeforeValidator(lambda value: value or "")] = SecretStr("")
    service_6006_port_url: Text = ""
    service_6008_port_url: Text = ""


class Container(Reply):
    """查询容器: a container of a deployment."""

    shown: ClassVar[frozenset[str]] = frozenset({"uuid", "status", "machine_id", "data_center"})
    uuid: Uuid
    deployment_uuid: Text = ""
    data_center: Text = ""
    machine_id: Text = ""
    status: Text = ""
    gpu_name: Text = ""
    gpu_num: Count = 0
    cpu_num: Count = 0
    memory_size: Count = 0  # bytes
    image_uuid: Text = ""
    price: Number | None = None  # CNY × 1000 per hour
    info: Annotated[ContainerInfo, BeforeValidator(lambda value: value or {})] = ContainerInfo()
    started_at: Moment = None
    stopped_at: Moment = None
    created_at: Moment = None

    @property
    def price_cny_per_h(self) -> float | None:
        """Price of the whole container in CNY per hour; the document does not say whether it is that of one GPU."""
        return None if self.price is None else self.price / _CNY

    @property
    def memory_gb(self) -> float:
        """Memory in GB."""
        return self.memory_size / _BYTES_PER_GB


class BlockedHost(Reply):
    """获取生效中的调度黑名单: a host that our deployments are kept off."""

    shown: ClassVar[frozenset[str]] = frozenset({"machine_id", "data_center", "expired_time"})
    machine_id: Text = ""
    data_center: Text = ""
    comment: Annotated[Text, Field(validation_alias=AliasChoices("msg", "comment"))] = ""
    created_at: Moment = None
    updated_at: Moment = None
    expired_time: Moment = None


class GpuStock(Reply):
    """获取弹性部署GPU库存: GPUs of one name in one region."""

    shown: ClassVar[frozenset[str]] = frozenset({"idle_gpu_num", "total_gpu_num"})
    idle_gpu_num: Count = 0
    total_gpu_num: Count = 0


class TimePackage(Reply):
    """获取已购时长包数据: prepaid hours of one GPU name."""

    shown: ClassVar[frozenset[str]] = frozenset({"gpu_type", "total", "balance", "dc_list"})
    gpu_type: Text = ""
    total: Count = 0  # seconds
    balance: Count = 0  # seconds
    dc_list: Annotated[
        Sequence[str], BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value or [])
    ] = ()
