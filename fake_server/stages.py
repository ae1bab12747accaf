"""The steps of a machine's life that take time: immediate, timed, or waiting until they are told to go on."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from fake_server.clock import Action, Timeline
from fake_server.fault_rules import Rules, Target
from fake_server.timings import MANUAL, Timings

_CREATING = ("autodl_creating", "matrixdc_creating")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    stage: str
    target: Target
    action: Action
    faulted: bool  # by a rule, else by a manual timing


class Stages:
    """Lets each step begin when its time has come. Called with the world's lock held."""

    def __init__(self, timeline: Timeline, rules: Rules, timings: Callable[[], Timings]) -> None:
        self._timeline, self._rules, self._timings = timeline, rules, timings
        self._held: list[_Held] = []

    def after(self, stage: str, target: Target, action: Action, *, since: float | None = None) -> None:
        """Act once the stage (a field of Timings without its _s) is over; `since` is when it began, else now."""
        seconds = getattr(self._timings(), f"{stage}_s")
        if self._stuck(stage, target):
            self._held.append(_Held(stage=stage, target=target, action=action, faulted=True))
        elif seconds == MANUAL:
            self._held.append(_Held(stage=stage, target=target, action=action, faulted=False))
        else:
            self._timeline.at((self._timeline.now() if since is None else since) + seconds, action)

    def advance(self, machine: str = "*", stage: str = "*") -> list[dict[str, str]]:
        """Let the machines whose id or name matches go on from the stages that match; return what went on."""
        going = self._let_go(lambda held: _matches(held, machine, stage))
        for each in going:
            each.action()
        return [_as_json(each) for each in going]

    def reconsider(self) -> None:
        """Let go on what no rule and no manual timing holds any more; called when either has changed."""
        for each in self._let_go(lambda held: held.faulted):
            self.after(each.stage, each.target, each.action)
        for each in self._let_go(lambda held: getattr(self._timings(), f"{held.stage}_s") != MANUAL):
            self.after(each.stage, each.target, each.action)

    def waiting(self) -> list[dict[str, str]]:
        """Return which machines wait to be told, and in which stage."""
        return [_as_json(each) for each in self._held]

    def _stuck(self, stage: str, target: Target) -> bool:
        if stage not in _CREATING:
            return False
        kinds = ["stuck_in_creating"] + (["never_scheduled"] if target.provider == "matrixdc" else [])
        return any(self.struck(kind, target, self.reconsider) for kind in kinds)

    def struck(self, kind: str, target: Target, over: Action) -> bool:
        """Say whether a rule whose `seconds` are simulated holds this machine now; `over` is called when it ends."""
        strike = self._rules.strike(kind, target)
        if strike is None:
            return False
        if not strike.rule.seconds:
            return True
        now = self._timeline.now()
        if strike.until is None:
            strike.until = now + strike.rule.seconds
            self._timeline.at(strike.until, over)
        return now < strike.until

    def _let_go(self, wanted: Callable[[_Held], bool]) -> list[_Held]:
        gone = [each for each in self._held if wanted(each)]
        self._held = [each for each in self._held if each not in gone]
        return gone


def _matches(held: _Held, machine: str, stage: str) -> bool:
    named = any(fnmatchcase(name, machine) for name in (held.target.id, held.target.name))
    return named and fnmatchcase(held.stage, stage)


def _as_json(held: _Held) -> dict[str, str]:
    reason = "fault" if held.faulted else "manual"
    return {
        "provider": held.target.provider,
        "id": held.target.id,
        "name": held.target.name,
        "stage": held.stage,
        "held_by": reason,
    }


def timings_as_json(timings: Timings) -> dict[str, Any]:
    """Return the timings in seconds; a stage that waits to be told is "manual"."""
    values = {each.name: getattr(timings, each.name) for each in fields(timings)}
    return {name: "manual" if value == MANUAL else value for name, value in values.items()}


def changed_timings(timings: Timings, changes: dict[str, Any]) -> Timings:
    """Return timings with some of them changed to seconds or to "manual"; ValueError for what is neither."""
    return Timings(**{**_fields_of(timings), **dict(_read(changes))})


def _fields_of(timings: Timings) -> dict[str, float]:
    return {each.name: getattr(timings, each.name) for each in fields(timings)}


def _read(changes: dict[str, Any]) -> Iterator[tuple[str, float]]:
    known = {each.name for each in fields(Timings)}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"no timing is named {name}; there are {', '.join(sorted(known))}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value != "manual" and not (is_number and math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a number of seconds or manual")
        if value == "manual" and name in {"sshd_s", "list_lag_s"}:
            raise ValueError(f"{name} is no stage that can be told to go on")
        yield name, MANUAL if value == "manual" else float(value)
