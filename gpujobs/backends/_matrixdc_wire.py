"""MatrixDC's API, endpoint by endpoint, with its replies typed. What they mean is `matrixdc`'s."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import quote

from pydantic import BeforeValidator, Field, SecretStr, TypeAdapter

from gpujobs.backends._http import Call, Door, Provider, message_of
from gpujobs.backends._reading import Count, Moment, Number, Reply, Text
from gpujobs.settings import Account

T = TypeVar("T")

URL = "https://demo.cdc.datenfab.com/mdc/api/v1"
_NO_STOCK = re.compile(r"库存不足|暂无库存|资源不足|(?i:out of stock|no stock|insufficient)")
_GB = {"Ki": 2**-20, "Mi": 2**-10, "Gi": 1.0, "Ti": 1024.0, "K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3, "": 2**-30}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?|)B?", re.IGNORECASE)


class Region(Reply):
    """获取 region id 和 clusterName: a region with its cluster."""

    shown: ClassVar[frozenset[str]] = frozenset({"id", "region", "cluster_name", "harbor_addr"})
    id: str
    region: Text = ""
    cluster_name: str = Field(alias="clusterName", min_length=1)
    harbor_addr: Text = Field(default="", alias="harborAddr")
    howler_id: Text = Field(default="", alias="howlerID")
    created_at: Moment = Field(default=None, alias="createdAt")
    updated_at: Moment = Field(default=None, alias="updatedAt")


class Sku(Reply):
    """查看 GPU 规格信息: a size of machine. Its price's unit is not documented."""

    shown: ClassVar[frozenset[str]] = frozenset({"name", "gpu_counts", "skus_id", "selling_type", "remain_gpu_count"})
    name: str
    region_id: Text = Field(default="", alias="regionID")
    cluster_name: Text = Field(default="", alias="clusterName")
    gpu_counts: Count = Field(alias="gpuCounts")
    gpu_memory: Number = Field(default=0.0, alias="gpuMemory")  # GB
    cpucores: Count = 0
    memory_count: Number = Field(default=0.0, alias="memoryCount")  # GB
    systemstorage: Number = 0.0  # GB
    datastorage: Number = 0.0  # GB
    skus_id: Text = Field(alias="skusID")
    selling_type: Text = Field(default="", alias="sellingType")
    ratio: Number = 0.0
    discount_start: Moment = Field(default=None, alias="discountStartTime")
    discount_end: Moment = Field(default=None, alias="discountEndTime")
    price: float | None = None
    remain_gpu_count: Count = Field(default=0, alias="remainGPUCount")


class Ssh(Reply):
    """How to reach an instance."""

    address: Text = Field(default="", alias="sshAddr")
    password: Annotated[SecretStr, BeforeValidator(lambda value: value or "")] = Field(
        default=SecretStr(""), alias="sshPassword"
    )


class Servers(Reply):
    """The services of an instance; their addresses carry tokens."""

    jupyterlab: Text = Field(default="", alias="Jupyterlab")
    tensorboard: Text = Field(default="", alias="Tensorboard")
    ssh: Annotated[Ssh, BeforeValidator(lambda value: value or {})] = Field(default=Ssh(), alias="SSH")


class Quantities(Reply):
    """What an instance has; amounts come as text, "16" and "96Gi"."""

    shown: ClassVar[frozenset[str]] = frozenset({"cpu", "memory", "gpu_count", "gpu_type"})
    cpu: Text = ""
    memory: Text = ""
    gpu_count: Text = Field(default="", alias="GPUNum")
    gpu_type: Text = Field(default="", alias="GPUType")

    @property
    def memory_gb(self) -> float | None:
        """Memory in GB (2³⁰ bytes), None where it is not readable."""
        found = _QUANTITY.fullmatch(self.memory.strip())
        return float(found[1]) * _GB[found[2]] if found and found[2] in _GB else None


class VolumeMount(Reply):
    """A disk of an instance; its size reads 0 while the instance is being made."""

    shown: ClassVar[frozenset[str]] = frozenset({"path", "kind", "size_gb"})
    path: Text = Field(default="", alias="PathInContainer")
    kind: Text = Field(default="", alias="Type")
    size_gb: Count = Field(default=0, alias="Size")


class Pod(Reply):
    """Where an instance runs."""

    shown: ClassVar[frozenset[str]] = frozenset({"node"})
    name: Text = Field(default="", alias="Name")
    node: Text = Field(default="", alias="nodeScheduled")


class Instance(Reply):
    """获取实例详情: an instance. `display_name` is the name that we gave it, `name` is the provider's id."""

    shown: ClassVar[frozenset[str]] = frozenset({"name", "display_name", "status"})
    name: str = Field(min_length=1)
    display_name: Text = Field(default="", alias="displayName")
    namespace: Text = ""
    status: Text = ""
    annotations: Annotated[Mapping[str, Any], BeforeValidator(lambda value: value or {})] = {}
    uid: Text = ""
    image: Text = ""
    servers: Annotated[Servers, BeforeValidator(lambda value: value or {})] = Servers()
    resources: Annotated[Quantities, BeforeValidator(lambda value: value or {})] = Quantities()
    volume_mounts: Annotated[Sequence[VolumeMount], BeforeValidator(lambda value: value or [])] = Field(
        default=(), alias="volumeMounts"
    )
    created_at: Moment = Field(default=None, alias="creationTimestamp")
    updated_at: Moment = Field(default=None, alias="updateTimestamp")
    stop_at: Moment = Field(default=None, alias="ScheduleStopTimestamp")
    pods: Annotated[Sequence[Pod], BeforeValidator(lambda value: value or [])] = Field(default=(), alias="Pods")

    def annotation(self, name: str) -> str:
        """Give an annotation by the end of its name, which begins with the deployment's host."""
        found = (value for key, value in self.annotations.items() if key.rpartition("/")[2] == name)
        return str(next(found, ""))


class InstanceList(Reply):
    """获取实例列表: the instances of a cluster; no parameter for a next page is documented."""

    shown: ClassVar[frozenset[str]] = frozenset({"has_next_page", "total_count"})
    has_next_page: Annotated[bool, BeforeValidator(lambda value: value or False)] = Field(
        default=False, alias="hasNextPage"
    )
    nodes: Annotated[Sequence[Instance], BeforeValidator(lambda value: value or [])] = ()
    total_count: Count | None = Field(default=None, alias="totalCount")

    @property
    def complete(self) -> bool:
        """Whether these are all that there are."""
        return not self.has_next_page and len(self.nodes) >= (self.total_count or 0)


def provider(account: Account) -> Provider:
    """Say where MatrixDC is and how it is spoken to (API 凭证: lowercase bearer, and the namespace)."""
    return Provider(
        name="MatrixDC",
        setting="MATRIXDC",
        url=account.api_url or URL,
        headers={"Authorization": f"bearer {account.token}", "namespace": account.namespace},
        secrets=(account.token,),
        no_stock=_NO_STOCK,
    )


class MatrixDCClient:
    """MatrixDC's API: one method an endpoint. Each may raise what `Door.send` raises."""

    def __init__(self, door: Door) -> None:
        """Speak through `door`."""
        self._door = door

    def regions(self) -> Sequence[Region]:
        """List the regions (获取 region id 和 clusterName)."""
        return self._send(Call(what="list regions", method="GET", path="/regions"), TypeAdapter(list[Region]))

    def skus(self, region_id: str) -> Sequence[Sku]:
        """List the sizes of machine in a region (查看 GPU 规格信息)."""
        params = {"region_id": region_id}
        call = Call(what="list sizes in", about=region_id, method="GET", path="/skus/computings", params=params)
        return self._send(call, TypeAdapter(Annotated[list[Sku], BeforeValidator(lambda value: value or [])]))

    def create_instance(self, cluster: str, body: Mapping[str, Any]) -> Instance:
        """Make an instance (创建算力实例). Sent once, never repeated."""
        name = str(body.get("displayName", ""))
        path = _path(cluster)
        call = Call(what="create instance", about=name, method="POST", path=path, body=body, safe=False)
        return self._send(call, TypeAdapter(Instance))

    def instances(self, cluster: str) -> InstanceList:
        """List the instances of a cluster (获取实例列表)."""
        call = Call(what="list instances in", about=cluster, method="GET", path=_path(cluster))
        return self._send(call, TypeAdapter(InstanceList))

    def instance(self, cluster: str, name: str) -> Instance:
        """Describe one instance (获取实例详情). Raises NotFound."""
        call = Call(what="describe instance", about=name, method="GET", path=_path(cluster, name))
        return self._send(call, TypeAdapter(Instance))

    def power_off(self, cluster: str, name: str, *, grace_s: int = 10, image_name: str = "", tag: str = "") -> None:
        """Stop an instance, saving its disk as `image_name`:`tag` where given (停止实例); idempotent."""
        body = {
            "gracePeriodSeconds": grace_s,
            "needSnapshot": bool(image_name),
            "imageName": image_name,
            "tag": tag,
        }
        self._act("power off instance", "POST", _path(cluster, name, "power_off"), about=name, body=body)

    def power_on(self, cluster: str, name: str) -> None:
        """Start a stopped instance (启动实例; its heading says power_off, its sample power_on); idempotent."""
        self._act("power on instance", "POST", _path(cluster, name, "power_on"), about=name)

    def delete_instance(self, cluster: str, name: str) -> None:
        """Delete an instance (删除实例); idempotent. Raises NotFound where it is gone already."""
        self._act("delete instance", "DELETE", _path(cluster), about=name, params={"name": name})

    def _act(
        self,
        what: str,
        method: str,
        path: str,
        *,
        about: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        call = Call(what=what, about=about, method=method, path=path, body=body, params=params)
        self._door.send(call, _accept)

    def _send(self, call: Call, adapter: TypeAdapter[T]) -> T:
        return self._door.send(call, lambda raw: adapter.validate_python(json.loads(raw)))


def _accept(raw: bytes) -> None:
    """Take any body, documented as "ok", but one that carries an error's message."""
    if message_of(raw):
        raise ValueError("an error in the place of ok")


def _path(cluster: str, *parts: str) -> str:
    return "/".join(["/clusters", quote(cluster, safe=""), "instances", *(quote(part, safe="") for part in parts)])
