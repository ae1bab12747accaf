"""The values that the house speaks in: offers, machines, events, access. Plain data, cheap to import."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

NAME_PATTERN = re.compile(r"gj-(?P<owner>[a-z0-9]{1,16})-(?P<run>[a-z0-9]{4,16})-(?P<attempt>[0-9]{1,4})")


class MachineStatus(StrEnum):
    """Where a machine stands, in our words; each backend maps its own words here in one table."""

    QUEUED = "queued"  # accepted, no host yet; costs nothing
    BOOTING = "booting"
    RUNNING = "running"  # says the provider; SSH may not answer yet
    STOPPING = "stopping"
    OFF = "off"  # powered off and kept: its disk may still cost
    ENDED = "ended"  # its work is over and it costs nothing; it is still listed
    FAILED = "failed"
    UNKNOWN = "unknown"  # a word that we do not know: keep polling
    GONE = "gone"  # the provider no longer lists it


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a machine; never stored, never logged."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    links: Mapping[str, str] = field(default_factory=dict, repr=False)  # "jupyter": url; may carry tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """The name under which a snapshot is saved."""

    name: str
    tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that a backend can boot."""

    backend: str
    ref: str  # what `resources.image` takes
    title: str
    private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What a backend's document names, for forms to choose from; it may rent more than that."""

    gpus: tuple[str, ...]
    regions: tuple[str, ...]
    snapshots: bool  # whether it can save a machine's disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a backend will rent now."""

    backend: str
    region: str
    gpu: str  # the provider's own name, "RTX 4090"
    gpu_count: int
    gpu_memory_gb: float | None
    cpus: int | None  # None: the provider says it only once the machine runs
    memory_gb: float | None
    price_cny_per_h: float | None  # for the whole machine; None: unknown, which is never 0
    price_is_estimate: bool
    free: int  # machines of this shape that could be rented now
    sku: str = ""  # the provider's id of this shape, where it has one
    in_doubt: bool = False  # what is free may lie on hosts that we had blocked, where a machine would wait in vain

    def __str__(self) -> str:
        """Name it as one line of a table would."""
        price = "price unknown" if self.price_cny_per_h is None else f"{self.price_cny_per_h:.2f} CNY/h"
        return f"{self.gpu} x{self.gpu_count} on {self.backend}/{self.region} ({price}, {self.free} free)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One rented instance or container, as its provider last described it."""

    backend: str
    id: str  # the provider's id of what we created
    name: str  # ours: gj-<owner>-<run>-<attempt>
    region: str
    status: MachineStatus
    raw_status: str = ""  # in the provider's words
    unit: str = ""  # the id of the container inside, where the provider has both (AutoDL)
    host: str = ""  # the physical host, where the provider tells it
    price_cny_per_h: float | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a provider reported of a machine; `key` is the same whenever it is reported again."""

    machine_id: str
    unit: str
    status: MachineStatus
    raw_status: str
    at: datetime | None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two reports the same event."""
        return (self.machine_id, self.unit, self.raw_status, self.at.isoformat() if self.at else "")


class Reporter(Protocol):
    """Whom a run tells what it is doing: a terminal, a log, a Prefect page. Called from the run's own thread."""

    def phase(self, name: str, detail: str) -> None:
        """A phase begins, or has news worth a line."""
        ...

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Bytes (push, pull) or seconds (waits) done of a total; the last call has done == total."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...

    def output(self, data: bytes) -> None:
        """The next bytes that the job wrote, each once and in order."""
        ...


def machine_name(*, owner: str, run: str, attempt: int) -> str:
    """Give the attempt's unique name; raises ValueError where a part does not fit the pattern."""
    name = f"gj-{owner}-{run}-{attempt}"
    if NAME_PATTERN.fullmatch(name) is None:
        raise ValueError(f"not a machine name: {name}")
    return name
