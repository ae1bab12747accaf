"""Faults of calls: what the client of an API gets instead of the right reply."""

import json
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from flask import Response
from werkzeug.http import HTTP_STATUS_CODES

from fake_server.distortion import Distortion, distorted
from fake_server.fault_rules import KINDS, FaultRule, Rules

__all__ = ["KINDS", "Act", "Cut", "Fault", "FaultRule", "Faults", "Outcome"]

Act = Callable[[], Response]
Cut = Literal["reset", "close", "reset_in_body", "close_in_body"]
_REMEMBERED_LISTS = 128


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the client gets: a response, or a cut connection."""

    response: Response
    cut: Cut | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that goes wrong. `act` does what was asked; `later` does it so many simulated seconds from now."""

    rule: FaultRule
    dice: random.Random
    act: Act
    later: Callable[[float], None]
    envelope: Any
    unauthorized: Act
    old_reply: Response | None
    ended: threading.Event


def _timeout(call: Call) -> Outcome:
    call.ended.wait(call.rule.seconds)
    return Outcome(Response(), "close")


def _reset(_call: Call) -> Outcome:
    return Outcome(Response(), "reset")


def _error_500(call: Call) -> Outcome:
    status = call.rule.status
    return Outcome(Response(HTTP_STATUS_CODES.get(status, "Error"), status=status, content_type="text/plain"))


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


def _reset_in_body(call: Call) -> Outcome:
    return Outcome(call.act(), "reset_in_body")


def _truncated_body(call: Call) -> Outcome:
    return Outcome(call.act(), "close_in_body")


def _token_expired(call: Call) -> Outcome:
    return Outcome(call.unauthorized())


def _stale_list(call: Call) -> Outcome:
    if call.old_reply is not None:
        return Outcome(call.old_reply)
    with distorted(Distortion(hide_all=True)):
        return Outcome(call.act())


def _duplicated_events(call: Call) -> Outcome:
    with distorted(Distortion(repeat_events=2)):
        return Outcome(call.act())


def _reordered_events(call: Call) -> Outcome:
    with distorted(Distortion(shuffle_events=call.dice)):
        return Outcome(call.act())


_ACTIONS: dict[str, Callable[[Call], Outcome]] = {
    "timeout": _timeout,
    "reset": _reset,
    "error_500": _error_500,
    "rate_limit_429": _rate_limit,
    "broken_json": _broken_json,
    "lost_reply": _lost_reply,
    "late_act": _late_act,
    "error_envelope": _error_envelope,
    "reset_in_body": _reset_in_body,
    "truncated_body": _truncated_body,
    "token_expired": _token_expired,
    "stale_list": _stale_list,
    "duplicated_events": _duplicated_events,
    "reordered_events": _reordered_events,
    "release_fails": _error_500,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One call's fault."""

    rule: FaultRule
    dice: random.Random
    old_reply: Response | None
    ended: threading.Event

    def apply(self, act: Act, *, later: Callable[[float], None], envelope: Any, unauthorized: Act) -> Outcome:
        """Carry the fault out."""
        call = Call(
            rule=self.rule,
            dice=self.dice,
            act=act,
            later=later,
            envelope=envelope,
            unauthorized=unauthorized,
            old_reply=self.old_reply,
            ended=self.ended,
        )
        return _ACTIONS[self.rule.kind](call)


class Faults(Rules):
    """The rules in force, and what carrying them out needs. The first that matches a call and is due decides it."""

    def __init__(self, *, now: Callable[[], float] = time.time, seed: int | None = None) -> None:
        super().__init__(now=now, seed=seed)
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._lists: OrderedDict[object, bytes] = OrderedDict()

    def next_for(
        self, endpoint: str, *, about: Callable[[], Collection[str]] = tuple, question: object = None
    ) -> Fault | None:
        """Return what happens to this call; None is nothing.

        `about` names the machines that the call is about; `question` is what an old reply would answer as well.
        """
        found = self.call(endpoint, about)
        if found is None:
            return None
        with self._guard:
            old = self._lists.get(question)
        reply = None if old is None else Response(old, content_type="application/json; charset=utf-8")
        return Fault(*found, reply, self._ended)

    def remember(self, question: object, reply: Response) -> None:
        """Keep a list's reply for the day that the list is stale."""
        if reply.status_code == 200:  # noqa: PLR2004 -- OK
            with self._guard:
                self._lists[question] = reply.get_data()
                self._lists.move_to_end(question)
                if len(self._lists) > _REMEMBERED_LISTS:
                    self._lists.popitem(last=False)

    def forget(self) -> None:
        """Disarm all rules and forget old replies, for a new world."""
        self.remove()
        with self._guard:
            self._lists.clear()

    def end(self) -> None:
        """Let go of replies that are being held."""
        self._ended.set()
