"""Machines that run now, and when a fault rule lets one of them die."""

from collections.abc import Callable, Mapping
from functools import partial

from fake_server.clock import Action, Timeline
from fake_server.fault_rules import Rules, Strike, Target

Deaths = Mapping[str, Action]
"""What each kind of death does to the machine."""


class Mortals:
    """Called with the world's lock held."""

    def __init__(self, timeline: Timeline, rules: Rules) -> None:
        self._timeline, self._rules = timeline, rules
        self._living: dict[str, tuple[Target, Deaths]] = {}

    def enter(self, target: Target, deaths: Deaths) -> None:
        """Note a machine that runs from now on; a rule may be waiting for it."""
        self._living[target.id] = target, deaths
        self._doom(target, deaths)

    def leave(self, machine_id: str) -> None:
        """Forget a machine that is being stopped. Idempotent."""
        self._living.pop(machine_id, None)

    def reconsider(self) -> None:
        """See whom new rules strike."""
        for target, deaths in list(self._living.values()):
            self._doom(target, deaths)

    def _doom(self, target: Target, deaths: Deaths) -> None:
        for kind, death in deaths.items():
            strike = self._rules.strike(kind, target)
            if strike is not None and strike.until is None:
                strike.until = self._timeline.now() + strike.rule.seconds
                self._timeline.at(strike.until, partial(self._die, kind, target, strike, death))

    def _die(self, kind: str, target: Target, strike: Strike, death: Callable[[], None]) -> None:
        still_armed = self._rules.strike(kind, target) is strike
        if still_armed and self._living.pop(target.id, None) is not None:
            death()
