"""The nouns of AutoDL's elastic deployment, in the fake's own units."""

from dataclasses import dataclass, field
from typing import Literal

from fake_server.catalog import AutodlHost
from fake_server.spec import Endpoint

Kind = Literal["ReplicaSet", "Job", "Container"]
Status = Literal[
    "creating", "created", "starting", "oss_merged", "running", "shutting_down", "shutdown", "in_cache", "failed"
]
ENDED: frozenset[str] = frozenset({"shutdown", "in_cache", "failed"})
BOOTING: frozenset[str] = frozenset({"creating", "created", "starting", "oss_merged"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A closed range."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What a deployment's containers are made of."""

    data_centers: tuple[str, ...]
    gpu_names: tuple[str, ...]
    gpu_count: int
    cuda_v: Span
    cpus: Span
    memory_gb: Span
    price_milli_cny_per_h: Span
    image_uuid: str
    cmd: str
    cmd_before_shutdown: str = ""
    deprecated_region_sign: str = ""


@dataclass(slots=True, kw_only=True)
class Deployment:
    """One deployment. Times are simulated seconds since 1970."""

    id: int
    uuid: str
    name: str
    kind: Kind
    replica_num: int
    parallelism_num: int
    reuse_container: bool
    port_protocols: tuple[str, str]
    deprecated_port_protocol: str = "http"
    template: Template
    version: str
    created_at: float
    updated_at: float
    status: Literal["running", "stopped"] = "running"
    stopped_at: float | None = None
    finished_num: int = 0
    delete_asked: bool = False
    queued: bool = True  # its time in the queue, or between a container and the next, is not over


@dataclass(slots=True, kw_only=True)
class Container:
    """One container of a deployment. `disk` names the folders of its own disk, which a reused container inherits."""

    id: int
    uuid: str
    deployment: Deployment
    host: AutodlHost
    disk: str
    password: str = field(repr=False)
    created_at: float
    updated_at: float
    status: Status = "creating"
    started_at: float | None = None
    stopped_at: float | None = None
    endpoint: Endpoint | None = None
    cmd_ended: bool = False
    keep_for_reuse: bool = False

    @property
    def ended(self) -> bool:
        """Say whether it holds nothing any more."""
        return self.status in ENDED

    @property
    def gpu_count(self) -> int:
        """GPUs of the whole container."""
        return self.deployment.template.gpu_count

    @property
    def cpus(self) -> int:
        """CPU cores of the whole container."""
        return self.host.cpus_per_gpu * self.gpu_count

    @property
    def memory_gb(self) -> int:
        """Memory of the whole container."""
        return self.host.memory_gb_per_gpu * self.gpu_count

    @property
    def price_milli_cny_per_h(self) -> int:
        """Price of the whole container."""
        return self.host.price_milli_cny_per_h * self.gpu_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A container reached a status."""

    container_uuid: str
    status: Status
    at: float


@dataclass(slots=True, kw_only=True)
class Ban:
    """A host that this account does not want containers on for a while."""

    host: AutodlHost
    comment: str
    created_at: float
    updated_at: float
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StockFilter:
    """What a stock query asks for; no GPU names means any. Ranges are for one GPU."""

    gpu_names: tuple[str, ...]
    cuda_v: Span
    cpus: Span
    memory_gb: Span
    price_milli_cny_per_h: Span
