"""What the fault rules have in store for one running machine and its connections."""

from collections.abc import Callable
from dataclasses import dataclass

from fake_server.fault_rules import Rules, Strike, Target


@dataclass(frozen=True, slots=True)
class Trouble:
    """The rules as one machine meets them. Thread-safe."""

    rules: Rules
    target: Target

    def of_machine(self, kind: str) -> Strike | None:
        """Return what strikes the machine now, of a kind whose seconds are real."""
        strike = self.rules.strike(kind, self.target)
        return strike if strike is not None and strike.in_force else None

    def of_connection(self, kind: str, key: str) -> Strike | None:
        """Return what strikes one of its connections, whose seconds begin when it shows; the key tells them apart."""
        return self.rules.connection(kind, self.target, key)

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each change of the rules, on any thread; return what ends that."""
        return self.rules.watch(callback)
