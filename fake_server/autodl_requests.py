"""The request bodies of AutoDL's API, strict about what the document calls required and about types.

A pydantic ValidationError here becomes RequestParameterIsWrong. Unknown keys are ignored, as a Go server ignores them,
unless the fake is told to refuse them.
"""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fake_server.autodl_types import Span, StockFilter, Template
from fake_server.wire import CHINA

_NO_BOUND = 2**62
_NEWEST_CUDA_V = 999

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Protocol = Literal["http", "tcp"]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Paged(_Body):
    """page_index counts from 1; 0 is read as the first page. offset skips the newest rows."""

    page_index: Count
    page_size: Count
    offset: Count = 0


class ImageList(Paged):
    """POST image/private/list."""


class TemplateBody(_Body):
    """container_template. Memory is in GB, prices in 元 × 1000 an hour, CUDA 118 is 11.8."""

    region_sign: str = ""
    dc_list: Annotated[list[Text], Field(min_length=1)]
    gpu_name_set: Annotated[list[Text], Field(min_length=1)]
    gpu_num: Positive
    cuda_v: Count = 0
    cuda_v_from: Count | None = None
    cuda_v_to: Count | None = None
    cpu_num_from: Count
    cpu_num_to: Count
    memory_size_from: Count
    memory_size_to: Count
    price_from: Count
    price_to: Count
    image_uuid: Text
    cmd: Text
    cmd_before_shutdown: str = ""

    def template(self) -> Template:
        """Return it as the rules know it; the deprecated cuda_v means that version or newer."""
        return Template(
            deprecated_region_sign=self.region_sign,
            data_centers=tuple(self.dc_list),
            gpu_names=tuple(self.gpu_name_set),
            gpu_count=self.gpu_num,
            cuda_v=Span(
                low=self.cuda_v if self.cuda_v_from is None else self.cuda_v_from,
                high=_NEWEST_CUDA_V if self.cuda_v_to is None else self.cuda_v_to,
            ),
            cpus=Span(low=self.cpu_num_from, high=self.cpu_num_to),
            memory_gb=Span(low=self.memory_size_from, high=self.memory_size_to),
            price_milli_cny_per_h=Span(low=self.price_from, high=self.price_to),
            image_uuid=self.image_uuid,
            cmd=self.cmd,
            cmd_before_shutdown=self.cmd_before_shutdown,
        )


class CreateDeployment(_Body):
    """POST deployment."""

    name: Text
    deployment_type: Literal["ReplicaSet", "Job", "Container"]
    replica_num: Count | None = None
    parallelism_num: Positive | None = None
    reuse_container: bool = False
    service_port_protocol: Protocol = "http"
    service_6006_port_protocol: Protocol = "http"
    service_6008_port_protocol: Protocol = "http"
    container_template: TemplateBody

    @model_validator(mode="after")
    def _what_each_type_needs(self) -> Self:
        template = self.container_template
        ranged = template.cuda_v_from is not None and template.cuda_v_to is not None
        if self.deployment_type != "Container" and not self.replica_num:
            raise ValueError("replica_num is required for a ReplicaSet and for a Job")
        if self.deployment_type == "Job" and self.parallelism_num is None:
            raise ValueError("parallelism_num is required for a Job")
        if not ranged and not (self.deployment_type == "Container" and template.cuda_v):
            raise ValueError("cuda_v_from and cuda_v_to are required")
        return self


class DeploymentList(Paged):
    """POST deployment/list; "" is no filter."""

    name: str = ""
    status: Literal["", "running", "stopped"] = ""
    deployment_uuid: str = ""


class EventList(Paged):
    """POST deployment/container/event/list; an empty container uuid is all of them."""

    deployment_uuid: Text
    deployment_container_uuid: str = ""


def _moment(text: str) -> str:
    if text:
        moment(text)
    return text


def moment(text: str) -> float:
    """Read a date or a time (China's unless it says otherwise) as seconds since 1970; ValueError if it is neither."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=CHINA)).timestamp()


Moment = Annotated[str, AfterValidator(_moment)]


class ContainerList(_Body):
    """POST deployment/container/list; 0 and "" are no filter."""

    deployment_uuid: Text
    container_uuid: str = ""
    date_from: Moment = ""
    date_to: Moment = ""
    gpu_name: str = ""
    cpu_num_from: Count = 0
    cpu_num_to: Count = 0
    memory_size_from: Count = 0
    memory_size_to: Count = 0
    price_from: float = 0
    price_to: float = 0
    released: bool = False
    status: list[str] = []
    page_index: Count = 0
    page_size: Count = 10
    offset: Count = 0


class StopContainer(_Body):
    """PUT deployment/container/stop."""

    deployment_container_uuid: Text
    decrease_one_replica_num: bool = False
    no_cache: bool = False
    cmd_before_shutdown: str = ""


class ScaleRequest(_Body):
    """PUT deployment/replica_num."""

    deployment_uuid: Text
    replica_num: Count


class OperateRequest(_Body):
    """PUT deployment/operate."""

    deployment_uuid: Text
    operate: Literal["stop"]


class DeploymentRef(_Body):
    """DELETE deployment, and the query of ddp/overview."""

    deployment_uuid: Text


class BanRequest(_Body):
    """POST deployment/blacklist."""

    deployment_container_uuid: Text
    expire_in_minutes: Annotated[int, Field(ge=1, le=43200)] = 1440
    comment: str = ""


class Nothing(_Body):
    """A call without a body."""


class StockRequest(_Body):
    """POST machine/region/gpu_stock; 0 is no bound."""

    region_sign: Text
    cuda_v: Count = 0
    cuda_v_from: Count = 0
    cuda_v_to: Count = 0
    gpu_name_set: list[str] = []
    memory_size_from: Count = 0
    memory_size_to: Count = 0
    cpu_num_from: Count = 0
    cpu_num_to: Count = 0
    price_from: Count = 0
    price_to: Count = 0

    def filter(self) -> StockFilter:
        """Return it as the rules know it."""
        return StockFilter(
            gpu_names=tuple(self.gpu_name_set),
            cuda_v=open_span(max(self.cuda_v, self.cuda_v_from), self.cuda_v_to),
            cpus=open_span(self.cpu_num_from, self.cpu_num_to),
            memory_gb=open_span(self.memory_size_from, self.memory_size_to),
            price_milli_cny_per_h=open_span(self.price_from, self.price_to),
        )


def open_span(low: float, high: float) -> Span:
    """Return a range where 0 leaves the upper end open."""
    return Span(low=low, high=high or _NO_BOUND)
