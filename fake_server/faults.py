"""Faults on demand: which call goes wrong, when, and how."""

import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from flask import Response
from pydantic import BaseModel, ConfigDict, Field

Act = Callable[[], Response]
Cut = Literal["reset", "close"]
Kind = Literal[
    "timeout", "reset", "error_500", "rate_limit_429", "broken_json", "lost_reply", "late_act", "error_envelope"
]


class FaultRule(BaseModel):
    """One rule, as the control room takes it.

    endpoint is a published name such as "autodl.create_deployment", or a pattern such as "autodl.*"; a name without
    its provider is completed from `provider`. The first `after` matching calls pass, the next `count` (null: all) fail.
    `seconds` is real time for timeout, simulated time for late_act. `retry_after` is for rate_limit_429.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    endpoint: str
    kind: Kind
    provider: Literal["autodl", "matrixdc"] | None = None
    after: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1)] | None = 1
    seconds: Annotated[float, Field(ge=0, le=3600)] = 1.0
    retry_after: Annotated[int, Field(ge=0)] = 1

    @property
    def pattern(self) -> str:
        """The endpoint's full name or pattern."""
        if self.provider is None or self.endpoint.startswith(f"{self.provider}."):
            return self.endpoint
        return f"{self.provider}.{self.endpoint}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the client gets: a response, or a cut connection."""

    response: Response
    cut: Cut | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that goes wrong. `act` does what was asked; `later` does it so many simulated seconds from now."""

    rule: FaultRule
    act: Act
    later: Callable[[float], None]
    envelope: Any
    ended: threading.Event


def _timeout(call: Call) -> Outcome:
    call.ended.wait(call.rule.seconds)
    return Outcome(Response(), "close")


def _reset(_call: Call) -> Outcome:
    return Outcome(Response(), "reset")


def _error_500(_call: Call) -> Outcome:
    return Outcome(Response("Internal Server Error", status=500, content_type="text/plain"))


def _rate_limit(call: Call) -> Outcome:
    headers = {"Retry-After": str(call.rule.retry_after)}
    return Outcome(Response('{"message": "too many requests"}', 429, headers, content_type="application/json"))


def _broken_json(call: Call) -> Outcome:
    whole = call.act().get_data()
    return Outcome(Response(whole[: len(whole) // 2], content_type="application/json"))


def _lost_reply(call: Call) -> Outcome:
    call.act()
    return Outcome(Response(), "reset")


def _late_act(call: Call) -> Outcome:
    call.later(call.rule.seconds)
    return _error_500(call)


def _error_envelope(call: Call) -> Outcome:
    return Outcome(Response(json.dumps(call.envelope, ensure_ascii=False), content_type="application/json"))


KINDS: dict[Kind, tuple[str, Callable[[Call], Outcome]]] = {
    "timeout": ("does nothing, holds the reply for `seconds`, then closes the connection", _timeout),
    "reset": ("does nothing and resets the connection (RST)", _reset),
    "error_500": ("does nothing and replies HTTP 500 in plain text", _error_500),
    "rate_limit_429": ("does nothing and replies HTTP 429 with Retry-After", _rate_limit),
    "broken_json": ("acts, and cuts the reply's JSON in half", _broken_json),
    "lost_reply": ("acts, and resets the connection in place of the reply", _lost_reply),
    "late_act": ("replies HTTP 500 and acts `seconds` of simulated time later", _late_act),
    "error_envelope": ("does nothing and replies HTTP 200 with the provider's error body", _error_envelope),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One call's fault."""

    rule: FaultRule
    ended: threading.Event

    def apply(self, act: Act, *, later: Callable[[float], None], envelope: Any) -> Outcome:
        """Carry the fault out."""
        call = Call(rule=self.rule, act=act, later=later, envelope=envelope, ended=self.ended)
        return KINDS[self.rule.kind][1](call)


@dataclass(slots=True)
class _Armed:
    id: int
    rule: FaultRule
    seen: int = 0
    fired: int = field(default=0)

    def fires(self) -> bool:
        self.seen += 1
        over = self.rule.count is not None and self.fired >= self.rule.count
        if self.seen <= self.rule.after or over:
            return False
        self.fired += 1
        return True


class Faults:
    """The rules in force. The first that matches a call and is due decides it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._ids = itertools.count(1)
        self._endpoints: set[str] = set()
        self._ended = threading.Event()

    def register(self, endpoint: str) -> None:
        """Publish an endpoint's name."""
        self._endpoints.add(endpoint)

    def add(self, rule: FaultRule) -> int:
        """Arm a rule and return its id; ValueError if it can match no endpoint."""
        if not any(fnmatchcase(name, rule.pattern) for name in self._endpoints):
            raise ValueError(f"no endpoint is named {rule.pattern}; GET /_fake/faults lists them")
        with self._lock:
            armed = _Armed(next(self._ids), rule)
            self._armed.append(armed)
            return armed.id

    def remove(self, rule_id: int | None = None) -> None:
        """Disarm one rule, or all."""
        with self._lock:
            self._armed = [armed for armed in self._armed if rule_id is not None and armed.id != rule_id]

    def next_for(self, endpoint: str) -> Fault | None:
        """Return what happens to this call; None is nothing. Every matching rule counts the call."""
        with self._lock:
            matching = [armed for armed in self._armed if fnmatchcase(endpoint, armed.rule.pattern)]
            for armed in matching:
                if armed.fires():
                    return Fault(armed.rule, self._ended)
        return None

    def end(self) -> None:
        """Let go of replies that are being held."""
        self._ended.set()

    def as_json(self) -> dict[str, Any]:
        """Return rules, kinds and endpoint names."""
        with self._lock:
            rules = [
                {"id": each.id, **each.rule.model_dump(), "seen": each.seen, "fired": each.fired}
                for each in self._armed
            ]
        kinds = {kind: meaning for kind, (meaning, _) in KINDS.items()}
        return {"rules": rules, "kinds": kinds, "endpoints": sorted(self._endpoints)}
