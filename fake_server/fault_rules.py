"""Faults on demand: the kinds, the rules that arm them, and whom a rule strikes. No HTTP here."""

import itertools
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Layer = Literal["call", "machine", "connection"]

RELEASES = (
    "autodl.delete_deployment|autodl.operate_deployment|autodl.stop_container|autodl.set_replica_num"
    "|matrixdc.delete_instance"
)
_DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of fault: what it does, what it strikes (calls, machines, SSH connections), and a rule's defaults.

    `endpoint` is for calls: None means that the rule must name it. `count` None is no limit, `seconds` 0 no end.
    """

    meaning: str
    layer: Layer
    endpoint: str | None = None
    count: int | None = 1
    seconds: float = 0.0


def _call(meaning: str, *, endpoint: str | None = None, count: int | None = 1, seconds: float = 0.0) -> Kind:
    return Kind(meaning=meaning, layer="call", endpoint=endpoint, count=count, seconds=seconds)


def _machine(meaning: str, *, seconds: float = 0.0) -> Kind:
    return Kind(meaning=meaning, layer="machine", seconds=seconds)


def _connection(meaning: str, *, count: int | None = 1) -> Kind:
    return Kind(meaning=meaning, layer="connection", count=count)


KINDS: Mapping[str, Kind] = {
    "timeout": _call("does nothing, holds the reply for `seconds`, then closes the connection", seconds=1.0),
    "reset": _call("does nothing and resets the connection (RST)"),
    "error_500": _call("does nothing and replies HTTP 500, or another `status` of 5xx, in plain text"),
    "rate_limit_429": _call("does nothing and replies HTTP 429 with Retry-After"),
    "broken_json": _call("acts, and cuts the reply's JSON in half"),
    "lost_reply": _call("acts, and resets the connection in place of the reply"),
    "late_act": _call("replies HTTP 500 and acts `seconds` of simulated time later", seconds=1.0),
    "error_envelope": _call("does nothing and replies HTTP 200 with the provider's error body"),
    "reset_in_body": _call("acts, sends the reply's head and half of its body, and resets the connection (RST)"),
    "truncated_body": _call("acts, sends the reply's head and half of its body, and closes the connection"),
    "token_expired": _call(
        "refuses the token as a wrong one, from `after` calls or `seconds` of simulated time on",
        endpoint="*",
        count=None,
    ),
    "stale_list": _call(
        "answers a list with what the same question was answered last time, or with nothing if it was never put",
        endpoint="*.list_*",
    ),
    "duplicated_events": _call("lists every event twice", endpoint="autodl.list_events"),
    "reordered_events": _call("lists the events in an order drawn by lot", endpoint="autodl.list_events"),
    "release_fails": _call(
        "fails every call that would release a machine (delete, stop) with HTTP 500 and does nothing",
        endpoint=RELEASES,
    ),
    "never_scheduled": _machine(
        "finds no host: an AutoDL deployment stays without a container, a MatrixDC instance in Creating"
    ),
    "stuck_in_creating": _machine("stays in creating, for `seconds` of simulated time where given"),
    "dies_in_boot": _machine("fails when it should start to run; the provider says so"),
    "dies_mid_run": _machine("dies after `seconds` of simulated time in running; the provider says so"),
    "dies_unnoticed": _machine(
        "dies after `seconds` of simulated time in running; the provider goes on to say running, and to bill"
    ),
    "snapshot_fails": _machine("is not saved when it is powered off; it shuts down and no image appears"),
    "ssh_refused": _machine("refuses SSH connections for `seconds`, those that stand live on", seconds=5.0),
    "wrong_password": _machine("takes every password for wrong for `seconds`, keys are let in", seconds=5.0),
    "changed_host_key": _machine("shows another host key to new SSH connections"),
    "disk_full": _machine("lets no file grow on any of its disks (EFBIG), for `seconds` where given"),
    "ssh_cut": _connection("is reset after `bytes` more bytes, counted both ways; at once without `bytes`"),
    "ssh_half_open": _connection("freezes both ways after `bytes` more bytes and stays open, for `seconds` if given"),
    "ssh_slow": _connection("passes `bytes_per_s` each way and delays all by `latency_s`", count=None),
}
"""Every kind of fault, with a sentence each; `seconds` is real time but where it says simulated, and 0 is no end."""


class FaultRule(BaseModel):
    """One rule, as the control room takes it.

    endpoint (faults of calls) is a published name such as "autodl.create_deployment", a pattern such as "autodl.*", or
    several with | between them; a name without its provider is completed from `provider`. machine is a pattern for the
    machine's id or the name that its owner gave it. Of all calls, machines or connections that match, the first `after`
    pass, then each is struck with `probability` (drawn from `seed`), `count` of them in all (null: no limit).
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: str
    endpoint: str = ""
    provider: Literal["autodl", "matrixdc"] | None = None
    machine: str = "*"
    after: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1)] | None = 1
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int | None = None
    seconds: Annotated[float, Field(ge=0, le=30 * _DAY_S)] = 0.0
    retry_after: Annotated[int, Field(ge=0)] = 1
    status: Annotated[int, Field(ge=500, le=599)] = 500
    bytes: Annotated[int, Field(ge=0)] = 0
    bytes_per_s: Annotated[int, Field(ge=1)] | None = None
    latency_s: Annotated[float, Field(ge=0, le=60)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, given: Any) -> Any:
        kind = KINDS.get(str(given.get("kind"))) if isinstance(given, dict) else None
        if kind is None:
            return given
        own = {"count": kind.count, "seconds": kind.seconds, "endpoint": kind.endpoint or ""}
        return own | given

    @model_validator(mode="after")
    def _makes_sense(self) -> "FaultRule":
        if self.kind not in KINDS:
            raise ValueError(f"no fault is named {self.kind}; the kinds are {', '.join(KINDS)}")
        if (self.layer == "call") != bool(self.endpoint):
            raise ValueError(f"{self.kind} {'needs an' if self.layer == 'call' else 'takes no'} endpoint")
        if self.kind == "ssh_slow" and self.bytes_per_s is None and not self.latency_s:
            raise ValueError("ssh_slow needs bytes_per_s or latency_s")
        return self

    @property
    def layer(self) -> Layer:
        """What the rule strikes."""
        return KINDS[self.kind].layer

    @property
    def patterns(self) -> list[str]:
        """The endpoints' full names or patterns."""
        return [self._completed(part) for part in self.endpoint.split("|")]

    def _completed(self, name: str) -> str:
        if self.provider is None or name.startswith((f"{self.provider}.", "*")):
            return name
        return f"{self.provider}.{name}"

    def covers(self, endpoint: str) -> bool:
        """Say whether the rule is about this endpoint."""
        foreign = self.provider is not None and not endpoint.startswith(f"{self.provider}.")
        return not foreign and any(fnmatchcase(endpoint, pattern) for pattern in self.patterns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A machine as rules see it: its id, and the name that its owner gave it."""

    provider: str
    id: str
    name: str


@dataclass(slots=True, kw_only=True)
class Strike:
    """A rule that has struck one machine or connection, and when (time.monotonic)."""

    rule_id: int
    rule: FaultRule
    at: float
    until: float | None = None  # simulated, for kinds whose seconds are

    def left_s(self) -> float | None:
        """Return how many real seconds it still lasts: None for no end, 0 or less when it is over."""
        return self.at + self.rule.seconds - time.monotonic() if self.rule.seconds else None

    @property
    def in_force(self) -> bool:
        """Say whether it still lasts, for kinds whose seconds are real."""
        left_s = self.left_s()
        return left_s is None or left_s > 0


@dataclass(slots=True)
class _Armed:
    id: int
    rule: FaultRule
    dice: random.Random
    armed_at: float
    seen: int = 0
    fired: int = 0
    decided: dict[str, Strike | None] = field(default_factory=dict)

    def fires(self) -> bool:
        self.seen += 1
        over = self.rule.count is not None and self.fired >= self.rule.count
        if self.seen <= self.rule.after or over or self.dice.random() >= self.rule.probability:
            return False
        self.fired += 1
        return True

    def due(self, now: float) -> bool:
        return self.rule.kind != "token_expired" or now >= self.armed_at + self.rule.seconds

    def strike(self, key: str) -> Strike | None:
        """Decide once for each key, and stay with it."""
        if key not in self.decided:
            self.decided[key] = Strike(rule_id=self.id, rule=self.rule, at=time.monotonic()) if self.fires() else None
        return self.decided[key]

    def concerns(self, target: Target) -> bool:
        named = any(fnmatchcase(name, self.rule.machine) for name in (target.id, target.name))
        return named and self.rule.provider in (None, target.provider)


class Rules:
    """The rules in force. Thread-safe; whoever wants to know of a change watches.

    Its lock comes after the world's: nothing is asked of the world while it is held.
    """

    def __init__(self, *, now: Callable[[], float] = time.time, seed: int | None = None) -> None:
        self._lock = threading.RLock()
        self._armed: list[_Armed] = []
        self._ids = itertools.count(1)
        self._endpoints: set[str] = set()
        self._watchers: list[Callable[[], None]] = []
        self._now, self._seed = now, seed

    def register(self, endpoint: str) -> None:
        """Publish an endpoint's name."""
        self._endpoints.add(endpoint)

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each change of the rules, on the thread that made it; return what ends that."""
        with self._lock:
            self._watchers.append(callback)

        def unwatch() -> None:
            with self._lock:
                if callback in self._watchers:
                    self._watchers.remove(callback)

        return unwatch

    def add(self, rule: FaultRule) -> int:
        """Arm a rule and return its id; ValueError if it can match no endpoint."""
        if rule.layer == "call" and not any(rule.covers(name) for name in self._endpoints):
            raise ValueError(f"no endpoint is named {rule.endpoint}; GET /_fake/faults lists them")
        now = self._now()  # it takes the world's lock, which must not be waited for while this one is held
        with self._lock:
            number = next(self._ids)
            lot = rule.seed if rule.seed is not None else self._seed
            dice = random.Random(None if lot is None else f"{lot}:{number if rule.seed is None else 0}")  # noqa: S311
            self._armed.append(_Armed(number, rule, dice, now))
        self._tell()
        return number

    def arm(self, kind: str, **fields: Any) -> int:
        """Arm a rule by its fields, from Python; return its id."""
        return self.add(FaultRule.model_validate({"kind": kind, **fields}))

    def remove(self, rule_id: int | None = None) -> None:
        """Disarm one rule, or all."""
        with self._lock:
            self._armed = [armed for armed in self._armed if rule_id is not None and armed.id != rule_id]
        self._tell()

    def call(self, endpoint: str, names: Callable[[], Collection[str]]) -> tuple[FaultRule, random.Random] | None:
        """Return the first due rule for this call, with its dice. Every matching rule before it counts the call.

        `names` tells which machines the call is about; it is asked only when a rule wants to know.
        """
        with self._lock:
            calls = [each for each in self._armed if each.rule.layer == "call" and each.rule.covers(endpoint)]
        if not calls:
            return None
        about = names() if any(each.rule.machine != "*" for each in calls) else ()
        now = self._now()
        with self._lock:
            for armed in calls:
                named = armed.rule.machine == "*" or any(fnmatchcase(name, armed.rule.machine) for name in about)
                if named and armed.due(now) and armed.fires():
                    return armed.rule, armed.dice
        return None

    def strike(self, kind: str, target: Target) -> Strike | None:
        """Return the rule that strikes this machine, if any; once decided it stays so while the rule is armed."""
        with self._lock:
            return next(filter(None, (armed.strike(target.id) for armed in self._about(kind, target))), None)

    def happens(self, kind: str, target: Target) -> bool:
        """Say whether this one thing that the machine does now goes wrong."""
        with self._lock:
            return any(armed.fires() for armed in self._about(kind, target))

    def connection(self, kind: str, target: Target, key: str) -> Strike | None:
        """Return the rule that strikes this connection of the machine, if any; `key` tells connections apart."""
        with self._lock:
            return next(filter(None, (armed.strike(key) for armed in self._about(kind, target))), None)

    def as_json(self) -> dict[str, Any]:
        """Return rules, kinds and endpoint names."""
        with self._lock:
            rules = [
                {"id": each.id, **each.rule.model_dump(), "seen": each.seen, "fired": each.fired}
                for each in self._armed
            ]
        kinds = {name: kind.meaning for name, kind in KINDS.items()}
        return {"rules": rules, "kinds": kinds, "endpoints": sorted(self._endpoints)}

    def _about(self, kind: str, target: Target) -> list[_Armed]:
        return [each for each in self._armed if each.rule.kind == kind and each.concerns(target)]

    def _tell(self) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for callback in watchers:
            callback()
