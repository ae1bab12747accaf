"""A recipe as the run form of Prefect's UI shows it: groups of plain fields, each with a value, no unions.

What the form does not show (the schedule, and whatever a recipe may grow) travels beside it, in `rest`.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gpujobs.errors import BadInput
from gpujobs.recipe import AutoDLSection, MatrixDCSection, Recipe, Volume
from gpujobs.recipe_words import wrong_value
from gpujobs.recipe_yaml import dotted

DURATION = r"^\s*([0-9]+(\.[0-9]+)?\s*[smhd]\s*)+$"
ENV_LINE = r"^\s*[A-Za-z_][A-Za-z0-9_]*\s*="
OUTPUT_LINE = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}=."


class Group(BaseModel):
    """Fields that stand together; a text that was emptied in the UI is not sent, so each text has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Mount(Group):
    """A file or folder that goes up beside the workdir."""

    on_machine: str = Field(title="Path on the machine", pattern="^/", examples=["/root/data/train.csv"])
    on_host: str = Field(title="File or folder on the host that runs recipes", pattern="^/")


class Job(Group):
    """What runs on the machine, and what goes up and comes back."""

    name: str = Field(
        title="Name", pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$", description="Small letters, digits, hyphens"
    )
    run: str = Field(title="Command", min_length=1, description="Shell, run in the workdir; several lines are fine")
    setup: str = Field(default="", title="Set-up command", description="Shell, before the command")
    more_envs: list[str] = Field(
        default=[], title="More environment variables", description="Each as NAME=VALUE, as LR=0.01"
    )
    secrets: list[str] = Field(
        default=[],
        title="Secrets",
        description="Names alone, as HF_TOKEN; the values come from the host's environment or settings",
    )
    workdir: str = Field(default="", title="Folder that goes up", description="Absolute path, on the host")
    file_mounts: list[Mount] = Field(default=[], title="More files that go up")
    outputs: list[str] = Field(
        default=[],
        title="Results that come back",
        description="Each as NAME=PATH, the path on the machine, relative to the workdir, as checkpoints=runs/ckpt",
    )

    @field_validator("more_envs")
    @classmethod
    def _envs(cls, value: list[str]) -> list[str]:
        return _pairs(value, "NAME=VALUE, as LR=0.01")

    @field_validator("outputs")
    @classmethod
    def _outputs(cls, value: list[str]) -> list[str]:
        return _pairs(value, "NAME=PATH, as checkpoints=runs/ckpt")


class Machine(Group):
    """What to rent, and where."""

    gpus: list[str] = Field(title="GPU", min_length=1, description="Any of these; the cheapest that fits is rented")
    gpu_count: int = Field(title="GPUs per machine", ge=1, le=99, description="Of each that is given without a count")
    places: list[str] = Field(
        default=[], title="Clouds and regions", description="In order of preference; none: every cloud that has a token"
    )
    cpus: int = Field(title="CPU cores, at least", ge=1)
    memory_gb: int = Field(title="Memory in GB, at least", ge=1)
    cuda: str = Field(
        default="",
        title="CUDA version of the driver, at least",
        pattern=r"^([0-9]{1,2}\.[0-9]\+?)?$",
        examples=["11.8"],
    )
    max_price_cny_per_h: float = Field(title="Highest price, CNY per hour", ge=0, description="0: no bound")
    volumes: list[Volume] = Field(default=[], title="Data disks", description="Size in GB")


class Limits(Group):
    """Time, money, and what happens when something fails."""

    max_duration: str = Field(
        title="Longest duration", pattern=DURATION, description="The work is stopped after it, as 90s, 30m, 6h, 2d"
    )
    budget_cny: float = Field(title="Budget, CNY", ge=0, description="For the whole run, retries included; 0: none")
    wait: str = Field(title="Wait for a free GPU", pattern=DURATION, description="So long, as 2h; 0s: do not wait")
    attempts: int = Field(title="Attempts", ge=1, le=50)
    retry_on: list[Literal["no-capacity", "machine-lost", "boot-timeout"]] = Field(title="New attempt after")
    keep: str = Field(
        title="Keep a failed run's machine", pattern=DURATION, description="For a look, so long, at its price; 0s: no"
    )
    linger: str = Field(
        title="Machine waits for its results to be pulled", pattern=DURATION, description="Then it ends itself"
    )


class Save(Group):
    """Whether the machine's disk is saved as an image."""

    name: str = Field(default="", title="Save the disk as", description="Empty: it is not saved")
    tag: str = Field(default="latest", title="Tag")
    on: Literal["success", "failure", "always"] = Field(default="success", title="After")


class Form(Group):
    """All of the form. A form made of a recipe gives that recipe back."""

    job: Job
    envs: dict[str, str] = {}
    machine: Machine
    images: dict[str, str] = {}
    limits: Limits
    snapshot: Save = Save()
    autodl: AutoDLSection = AutoDLSection()
    matrixdc: MatrixDCSection = MatrixDCSection()
    rest: dict[str, Any] = {}

    @classmethod
    def of(cls, recipe: Recipe, backends: tuple[str, ...]) -> Self:
        """Show `recipe`, which may run on `backends`."""
        want = recipe.resources
        counts = {count for _, count in want.wanted}
        count = counts.pop() if len(counts) == 1 else 1
        return cls(
            job=Job(
                name=recipe.name,
                run=recipe.run,
                setup=recipe.setup or "",
                secrets=recipe.secrets,
                workdir=recipe.workdir,
                file_mounts=[Mount(on_machine=remote, on_host=here) for remote, here in recipe.file_mounts.items()],
                outputs=[f"{name}={path}" for name, path in recipe.outputs.items()],
            ),
            envs=recipe.envs,
            machine=Machine(
                gpus=[name if many == count else f"{name}:{many}" for name, many in want.wanted],
                gpu_count=count,
                places=want.infra,
                cpus=want.cpus,
                memory_gb=want.memory,
                cuda=want.cuda,
                max_price_cny_per_h=want.max_price or 0.0,
                volumes=want.volumes,
            ),
            images={name: image for name in backends if (image := want.image_for(name))},
            limits=Limits(
                max_duration=duration(recipe.max_duration),
                budget_cny=recipe.budget or 0.0,
                wait=duration(recipe.retry.wait),
                attempts=recipe.retry.attempts,
                retry_on=recipe.retry.on,
                keep=duration(recipe.on_failure.keep),
                linger=duration(recipe.linger),
            ),
            snapshot=Save(**recipe.snapshot.model_dump()) if recipe.snapshot else Save(),
            autodl=recipe.autodl,
            matrixdc=recipe.matrixdc,
            rest=_rest(recipe),
        )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """Take what the UI sent; raises BadInput that names every field that is wrong."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            words = [f"{dotted(one['loc'])}: {_said(one)}" for one in error.errors(include_url=False)]
            raise BadInput("; ".join(words)) from error

    def recipe(self) -> Recipe:
        """Give the recipe that the form describes; raises BadInput in the recipe's own words."""
        try:
            return Recipe.model_validate(_laid_over(self.rest, self._shown()))
        except ValidationError as error:
            words = [wrong_value(_keys(one["loc"]), one) for one in error.errors(include_url=False)]
            raise BadInput("; ".join(dict.fromkeys(words))) from error

    def _shown(self) -> dict[str, Any]:
        job, machine, limits = self.job, self.machine, self.limits
        optional = {
            "setup": job.setup,
            "budget": limits.budget_cny,
            "snapshot": self.snapshot.model_dump() if self.snapshot.name else None,
        }
        return {
            "name": job.name,
            "run": job.run,
            "envs": self.envs | dict(_pair(line) for line in job.more_envs),
            "secrets": job.secrets,
            "workdir": job.workdir,
            "file_mounts": {mount.on_machine: mount.on_host for mount in job.file_mounts},
            "outputs": dict(_pair(line) for line in job.outputs),
            "resources": self._resources(machine),
            "max_duration": limits.max_duration,
            "linger": limits.linger,
            "retry": {"on": limits.retry_on, "attempts": limits.attempts, "wait": limits.wait},
            "on_failure": {"keep": limits.keep},
            "autodl": self.autodl.model_dump(mode="json"),
            "matrixdc": self.matrixdc.model_dump(mode="json"),
        } | {key: value for key, value in optional.items() if value}

    def _resources(self, machine: Machine) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "infra": machine.places,
            "accelerators": [gpu if ":" in gpu else f"{gpu}:{machine.gpu_count}" for gpu in machine.gpus],
            "cpus": machine.cpus,
            "memory": machine.memory_gb,
            "cuda": machine.cuda,
            "image": {name: image for name, image in self.images.items() if image} or "",
            "volumes": [volume.model_dump() for volume in machine.volumes],
        }
        return shown | ({"max_price": machine.max_price_cny_per_h} if machine.max_price_cny_per_h else {})


def duration(seconds: int) -> str:
    """Write a duration as people do: 6h, 90m, 45s."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


_SHOWN = {
    "resources": {"infra", "accelerators", "cpus", "memory", "cuda", "image", "max_price", "volumes"},
    "retry": {"on", "attempts", "wait"},
    "on_failure": {"keep"},
    **dict.fromkeys(("name", "run", "setup", "envs", "secrets", "workdir", "file_mounts", "outputs"), None),
    **dict.fromkeys(("max_duration", "linger", "budget", "snapshot", "autodl", "matrixdc"), None),
}


def _rest(recipe: Recipe) -> dict[str, Any]:
    """Give what the recipe sets and the form does not show."""
    rest: dict[str, Any] = {}
    for key, value in recipe.model_dump(mode="json", exclude_unset=True).items():
        if key not in _SHOWN:
            rest[key] = value
        elif (shown := _SHOWN[key]) and (left := {name: value[name] for name in value.keys() - shown}):
            rest[key] = left
    return rest


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key for key in under.keys() & over.keys() if isinstance(under[key], dict) and isinstance(over[key], dict)}
    return {**under, **over, **{key: _laid_over(under[key], over[key]) for key in both}}


def _pairs(lines: list[str], shape: str) -> list[str]:
    names = [_pair(line)[0] for line in lines]
    for line in lines:
        if not all(_pair(line)[:1]) or "=" not in line:
            raise ValueError(f"{line!r} is not {shape}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{twice[0]} stands there twice; leave one")
    return lines


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    return name.strip(), value


def _keys(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return tuple(part for part in loc if part != "[key]")


def _said(error: Any) -> str:
    return str(error["ctx"]["error"]) if error["type"] == "value_error" else str(error["msg"])
