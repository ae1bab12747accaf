"""What the ledger gives out: one plain dataclass a table, and the fields of each that may change. Cheap to import.

Every datetime is aware and in UTC; None is "not yet" or "unknown", and an unknown price or cost is never 0.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypedDict

from gpujobs.models import Machine, MachineStatus

REVISION = "0004"  # the newest of `migrations/versions`: what a ledger must stand at

Kind = Literal["job", "tasks", "fleet"]  # one job, the tasks of a recipe, or what a program's fleet does
ENDED = frozenset({"succeeded", "failed", "cancelled"})  # the states in which a run is over
WAITING = "waiting"  # said of a run that no host has begun: it is in no ledger yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution of one recipe."""

    id: str
    name: str
    owner: str
    recipe_json: str  # the recipe as validated: names of secrets, never their values
    state: str
    phase: str = ""
    detail: str = ""
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    error: str = ""
    cost_cny: float | None = None
    estimate_cny: float | None = None
    driver: str = ""  # who drives it now, "host:pid:nonce"; empty: nobody
    lease_until: datetime | None = None
    fence: int = 0  # counts the claims: who holds an older one is refused
    cancel_requested_at: datetime | None = None
    flow_run_id: str | None = None
    workdir: str = ""  # the local folder that goes up, absolute
    kind: Kind = "job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of a run on one machine."""

    run_id: str
    number: int
    name: str  # unique: the machine's name
    backend: str
    region: str
    offer_json: str
    state: str
    phase: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: str = ""
    exit_code: int | None = None
    outcome: str = ""
    log_sha256: str = ""
    rented_from: datetime | None = None
    rented_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """One machine that was asked for; `id` is None until a provider is known to have made it."""

    name: str
    run_id: str
    attempt: int
    backend: str
    id: str | None = None
    unit: str = ""
    region: str
    status: str = ""
    host_key: str = ""
    price_cny_per_h: float | None = None
    intent_at: datetime
    created_at: datetime | None = None
    running_at: datetime | None = None
    released_at: datetime | None = None  # when its release was asked for
    gone_at: datetime | None = None  # when the provider no longer listed it
    settled: bool = False  # whether the intent's outcome is known: made (id is set), or surely never made

    @property
    def alive(self) -> bool:
        """Whether it may cost money: made and not gone, or asked for with the answer still open."""
        return self.gone_at is None and not (self.settled and self.id is None)

    @property
    def machine(self) -> Machine:
        """The machine as backends take it, in a status that only its provider knows."""
        return Machine(
            backend=self.backend,
            id=self.id or "",
            name=self.name,
            region=self.region,
            unit=self.unit,
            status=MachineStatus.UNKNOWN,
            price_cny_per_h=self.price_cny_per_h,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """Something reported of a machine, kept once."""

    machine: str  # our name of it
    key: str
    status: str
    raw: str
    at: datetime | None
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What one attempt's machine cost."""

    run_id: str
    attempt: int
    seconds: float | None
    price_cny_per_h: float | None
    cost_cny: float | None
    from_at: datetime | None
    until_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """A machine's disk, saved as an image."""

    name: str
    tag: str
    backend: str
    region: str
    image: str  # what the backend boots it by
    run_id: str | None
    made_at: datetime
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One task of a run that has several."""

    run_id: str
    number: int  # its index among all that the recipe makes
    parameters: str = "{}"  # its own variables, as JSON
    state: str = "waiting"  # running, succeeded, failed, lost (with its machine), cancelled
    tries: int = 0
    machine: str = ""  # our name of the one where it runs, or ran last
    exit_code: int | None = None
    error: str = ""
    metrics: str = "{}"  # numbers and short texts that it left, as JSON
    began_at: datetime | None = None
    ended_at: datetime | None = None


class RunChanges(TypedDict, total=False):
    """What of a run may change; the claim has methods of its own."""

    state: str
    phase: str
    detail: str
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    error: str
    cost_cny: float | None
    estimate_cny: float | None
    cancel_requested_at: datetime | None
    flow_run_id: str | None
    workdir: str


class AttemptChanges(TypedDict, total=False):
    """What of an attempt may change."""

    state: str
    phase: str
    started_at: datetime | None
    ended_at: datetime | None
    error: str
    exit_code: int | None
    outcome: str
    log_sha256: str
    rented_from: datetime | None
    rented_until: datetime | None


class MachineChanges(TypedDict, total=False):
    """What of a machine may change."""

    id: str | None
    unit: str
    region: str
    status: str
    host_key: str
    price_cny_per_h: float | None
    created_at: datetime | None
    running_at: datetime | None
    released_at: datetime | None
    gone_at: datetime | None
    settled: bool


class TaskChanges(TypedDict, total=False):
    """What of a task may change."""

    state: str
    tries: int
    machine: str
    exit_code: int | None
    error: str
    metrics: str
    began_at: datetime | None
    ended_at: datetime | None
