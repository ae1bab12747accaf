"""What to run, as the user writes it: the recipe's model. Reading it from a file is `recipe_file`'s."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, ValidationInfo, field_validator, model_validator

from gpujobs.recipe_schedule import Schedule
from gpujobs.recipe_tasks import check_env_name, check_matrix, check_only, check_tasks
from gpujobs.recipe_types import (
    AtLeast,
    BlockName,
    Envs,
    Matrix,
    Names,
    NoticeName,
    Script,
    Seconds,
    Strict,
    Tasks,
    Text,
    Word,
)
from gpujobs.variables import ENV_NAME, flaw_of_all

_ACCELERATOR = re.compile(r"(?P<name>[^:]+?)\s*(?::\s*(?P<count>[1-9]\d?))?")
_CUDA = re.compile(r"(\d{1,2})\.(\d)\+?")
_INFRA = re.compile(r"[a-z][a-z0-9_]*(/[^/\s]+)?")
_SNAPSHOT_NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
_SNAPSHOT_TAG = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_SNAPSHOT_IMAGE = re.compile(rf"snapshot:{_SNAPSHOT_NAME}(:{_SNAPSHOT_TAG})?")


class Volume(Strict):
    """A data disk."""

    path: Word = Field(pattern=r"^/", description="Where it is mounted on the machine", examples=["/root/data"])
    size: int = Field(ge=1, le=100_000, description="Size in GB", examples=[50])


class Resources(Strict):
    """What machine the work needs."""

    infra: Names = Field(
        default=[],
        description="backend or backend/region, in order of preference; empty: all",
        examples=["autodl/westDC2"],
    )
    accelerators: Names = Field(
        validation_alias=AliasChoices("accelerators", "gpu"),
        min_length=1,
        description="NAME[:COUNT]; several mean any of these, cheapest first",
        examples=["RTX 4090:1"],
    )
    cpus: AtLeast = Field(default=1, description="At least so many CPU cores", examples=["4+"])
    memory: AtLeast = Field(default=1, description="At least so much memory, in GB", examples=["16+"])
    cuda: str = Field(
        default="", description='CUDA version that the driver must support, as "11.8+"', examples=["11.8+"]
    )
    image: Word | dict[str, Word] = Field(
        default="",
        description="The provider's image, or snapshot:NAME[:TAG], or a map of backend: image",
        examples=["base-image-l2t43iu6uk"],
    )
    max_price: float | None = Field(default=None, gt=0, description="CNY per hour and machine", examples=[4.0])
    volumes: list[Volume] = Field(default=[], description="Data disks", examples=[[{"path": "/root/data", "size": 50}]])

    @field_validator("infra")
    @classmethod
    def _infra(cls, value: list[str]) -> list[str]:
        for item in value:
            if not _INFRA.fullmatch(item):
                raise ValueError(f"{item!r} is not a place; write a backend or backend/region, as autodl/westDC2")
        return value

    @field_validator("accelerators")
    @classmethod
    def _accelerators(cls, value: list[str]) -> list[str]:
        for item in value:
            if not _ACCELERATOR.fullmatch(item):
                raise ValueError(f"{item!r} is not a GPU; write NAME or NAME:COUNT, as RTX 4090:1")
        return value

    @field_validator("cuda")
    @classmethod
    def _cuda(cls, value: str) -> str:
        if value and not _CUDA.fullmatch(value):
            raise ValueError(f'{value!r} is not a CUDA version; write it quoted, as "11.8+"')
        return value

    @field_validator("image", mode="before")
    @classmethod
    def _image_shape(cls, value: Any) -> Any:
        texts = list(value.values()) if isinstance(value, dict) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("must be an image's name, or a map of backend: image, as {autodl: base-image-l2t43iu6uk}")
        for text in texts:
            if text.startswith("snapshot:") and not _SNAPSHOT_IMAGE.fullmatch(text):
                raise ValueError(f"{text!r} is not a snapshot; write snapshot:NAME or snapshot:NAME:TAG")
        return value

    @property
    def wanted(self) -> Sequence[tuple[str, int]]:
        """GPU names with how many of each, as wanted."""
        found = [_ACCELERATOR.fullmatch(item) for item in self.accelerators]
        return [(match["name"].strip(), int(match["count"] or 1)) for match in found if match]

    @property
    def cuda_at_least(self) -> int | None:
        """The CUDA version as an integer, 118 for 11.8; None where any will do."""
        found = _CUDA.fullmatch(self.cuda)
        return int(found[1]) * 10 + int(found[2]) if found else None

    def image_for(self, backend: str) -> str:
        """Give the image for `backend`, "" where the recipe leaves it to the backend."""
        return self.image.get(backend, "") if isinstance(self.image, dict) else self.image

    def regions_for(self, backend: str) -> Sequence[str] | None:
        """Give the regions of `backend` in order; empty means all of them, None that the backend is not allowed."""
        if not self.infra:
            return []
        items = [item.partition("/") for item in self.infra if item.partition("/")[0] == backend]
        if not items:
            return None
        return [] if any(not region for _, _, region in items) else [region for _, _, region in items]


class Snapshot(Strict):
    """Whether and how the machine's disk is saved at power-off."""

    name: str = Field(pattern=rf"^{_SNAPSHOT_NAME}$", examples=["digits-env"])
    tag: str = Field(default="latest", pattern=rf"^{_SNAPSHOT_TAG}$", examples=["v1"])
    on: Literal["success", "failure", "always"] = Field(default="success", examples=["success"])

    def wanted_after(self, *, success: bool) -> bool:
        """Say whether a run that ended so is saved."""
        return self.on in ("always", "success" if success else "failure")


class Retry(Strict):
    """When a new attempt is made, and how long to wait for a free card."""

    on: list[Literal["no-capacity", "machine-lost", "boot-timeout"]] = Field(
        default=["no-capacity", "machine-lost", "boot-timeout"], examples=[["no-capacity", "machine-lost"]]
    )
    attempts: int = Field(default=3, ge=1, le=50, examples=[3])
    wait: Seconds = Field(
        default=0,
        json_schema_extra={"default": "0s"},
        description="How long to poll for stock when nothing is free",
        examples=["2h"],
    )


class OnFailure(Strict):
    """What happens to the machine when the work failed."""

    keep: Seconds = Field(
        default=0,
        json_schema_extra={"default": "0s"},
        description="Keep the machine for a look so long, then release it",
        examples=["30m"],
    )


class AutoDLSection(Strict):
    """What only AutoDL knows."""

    deployment_type: Literal["Job", "ReplicaSet", "Container"] = Field(default="Job", examples=["Job"])
    reuse_container: bool = Field(default=False, examples=[True])


class MatrixDCSection(Strict):
    """What only MatrixDC knows."""

    cost_type: Literal[1, 2, 3, 4] = Field(
        default=1, description="1 by use, 2 by month, 3 by week, 4 by day", examples=[1]
    )
    cost_time: str = Field(
        default="",
        pattern=r"^(\+?[0-9]{1,3}[DWM])?$",
        description="Paid time, as 3D; with cost_type 2-4",
        examples=["3D"],
    )
    coupon: Word = Field(default="", description="A coupon's id", examples=["coupon-id"])

    @model_validator(mode="after")
    def _paid_time_fits(self) -> Self:
        if self.cost_type == 1 and self.cost_time:
            raise ValueError("cost_time goes with cost_type 2, 3 or 4; 1 is paid by use")
        if self.cost_type != 1 and not self.cost_time:
            raise ValueError(f"cost_type {self.cost_type} needs cost_time, as 3D")
        if self.coupon and self.cost_type != 1:
            raise ValueError("a coupon can be used with cost_type 1 alone")
        return self


class Recipe(Strict):
    """What to run: where, with what, how long, and what comes back."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$", description="Small letters, digits, - _ .", examples=["digits"]
    )
    resources: Resources = Field(examples=[{"accelerators": "RTX 4090"}])
    workdir: Word = Field(
        default="", description="Local folder that goes up; .gitignore and .gpujobsignore honoured", examples=["."]
    )
    file_mounts: dict[Word, Word] = Field(
        default={},
        description="path on the machine: local file or folder",
        examples=[{"/root/data/train.csv": "./train.csv"}],
    )
    envs: Envs = Field(default={}, validation_alias=AliasChoices("envs", "env"), examples=[{"LR": "1e-3"}])
    secrets: list[str] = Field(
        default=[], description="Names; values come from the environment or the settings", examples=[["HF_TOKEN"]]
    )
    credentials: dict[str, BlockName] = Field(
        default={},
        description="backend: name of a Prefect credential block; left out: the host's own account",
        examples=[{"autodl": "my-team"}],
    )
    setup: Script | None = Field(default=None, examples=["pip install -r requirements.txt"])
    run: Script = Field(validation_alias=AliasChoices("run", "commands"), examples=["python train.py"])
    outputs: dict[str, Text] = Field(
        default={},
        description="local name: remote path, relative to the workdir",
        examples=[{"checkpoints": "runs/ckpt"}],
    )
    snapshot: Snapshot | None = Field(default=None, examples=[{"name": "digits-env"}])
    max_duration: Seconds = Field(
        default=6 * 3600,
        gt=0,
        json_schema_extra={"default": "6h"},
        description="The work is stopped after it",
        examples=["6h"],
    )
    idle_duration: Seconds = Field(
        default=0,
        json_schema_extra={"default": "0s"},
        description="The work is stopped when no GPU was used over 5 % for so long, set-up not counted; 0s: never",
        examples=["15m"],
    )
    linger: Seconds = Field(
        default=1800,
        json_schema_extra={"default": "30m"},
        description="How long a machine waits for its outputs to be pulled",
        examples=["30m"],
    )
    budget: float | None = Field(
        default=None, gt=0, description="CNY for the whole run, retries included", examples=[30]
    )
    retry: Retry = Field(default=Retry(), examples=[{"attempts": 3, "wait": "2h"}])
    on_failure: OnFailure = Field(default=OnFailure(), examples=[{"keep": "30m"}])
    matrix: Matrix = Field(
        default={},
        description="variable: values; a task for each combination, with these set",
        examples=[{"LR": ["1e-4", "1e-3"], "SEED": [1, 2, 3]}],
    )
    tasks: Tasks = Field(
        default=[],
        description="How many tasks, told apart by GPUJOBS_TASK_INDEX; or the variables of each",
        examples=[8],
    )
    only_tasks: list[Annotated[int, Field(ge=0)]] = Field(
        default=[], description="Of the tasks, those with these indices alone", examples=[[0, 3]]
    )
    concurrency: int = Field(
        default=1, ge=1, le=100, description="Machines at a time for the tasks, at most", examples=[2]
    )
    notify: list[NoticeName] = Field(
        default=[],
        description="Who is told of the end: names of Apprise URLs in the settings, or of notification blocks",
        examples=[["wecom"]],
    )
    schedule: Schedule | None = Field(default=None, examples=[{"cron": "0 2 * * *"}])
    autodl: AutoDLSection = Field(default=AutoDLSection(), examples=[{"deployment_type": "Job"}])
    matrixdc: MatrixDCSection = Field(default=MatrixDCSection(), examples=[{"cost_type": 1}])

    @field_validator("envs")
    @classmethod
    def _env_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            check_env_name(name)
        if flaw := flaw_of_all(value):
            raise ValueError(flaw)
        return value

    @field_validator("secrets")
    @classmethod
    def _secret_names(cls, value: list[str], info: ValidationInfo) -> list[str]:
        for name in value:
            if not ENV_NAME.fullmatch(name):  # not quoted: it may be the secret itself
                raise ValueError("give names of environment variables, not their values, as [HF_TOKEN]")
            check_env_name(name)
            if name in info.data.get("envs", {}):
                raise ValueError(f"{name!r} stands in both envs and secrets; leave it in one")
        return value

    @field_validator("file_mounts")
    @classmethod
    def _mount_points(cls, value: dict[str, str]) -> dict[str, str]:
        for remote in value:
            inside = remote.startswith("./") and ".." not in remote.split("/")
            if not (remote.startswith("/") or inside) or remote.endswith("/"):
                raise ValueError(f"{remote!r} must be an absolute path on the machine, or ./… for one in the workdir")
        return value

    @field_validator("outputs")
    @classmethod
    def _output_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name, remote in value.items():
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
                raise ValueError(f"{name!r} is not a local name; use letters, digits, - _ . and no folder")
            if not remote:
                raise ValueError(f"{name!r} names no path on the machine")
        return value

    @field_validator("matrix")
    @classmethod
    def _matrix(cls, value: dict[str, list[str]], info: ValidationInfo) -> dict[str, list[str]]:
        return check_matrix(value, info.data)

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: list[dict[str, str]], info: ValidationInfo) -> list[dict[str, str]]:
        return check_tasks(value, info.data)

    @field_validator("only_tasks")
    @classmethod
    def _only_tasks(cls, value: list[int], info: ValidationInfo) -> list[int]:
        return check_only(value, info.data)

    @field_validator("concurrency")
    @classmethod
    def _concurrency(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and not (info.data.get("matrix") or info.data.get("tasks")):
            raise ValueError("it is how many machines work at the tasks, and there are none; add matrix or tasks")
        return value

    @property
    def all_tasks(self) -> Sequence[Mapping[str, str]]:
        """The variables of every task that matrix or tasks make, in order; none where neither stands."""
        if not self.matrix:
            return self.tasks
        return [dict(zip(self.matrix, values, strict=True)) for values in itertools.product(*self.matrix.values())]

    @property
    def wanted_tasks(self) -> Mapping[int, Mapping[str, str]]:
        """The variables of the tasks that are to be run, by index."""
        found = dict(enumerate(self.all_tasks))
        return {number: found[number] for number in self.only_tasks} if self.only_tasks else found

    @property
    def machines_at_once(self) -> int:
        """How many machines this may rent at a time: as many as `concurrency` allows and the tasks can use."""
        slots = min(count for _, count in self.resources.wanted)
        return max(1, min(self.concurrency, -(-len(self.wanted_tasks) // slots)))
