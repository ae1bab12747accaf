"""AutoDL's prepaid packages of GPU hours: what is left of them, and whose bill they pay."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fake_server.catalog import PrepaidHours


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draw:
    package: int
    gpu_count: int


class Packages:
    """Draws the account's packages down, a second of each GPU a second. Called with the world's lock held.

    Containers that share the last of a package share it equally. Whatever the moments at which it is settled, the
    result is the same, so that looking changes nothing.
    """

    def __init__(self, packages: Sequence[PrepaidHours], *, now: float, pay: Callable[[str, float], None]) -> None:
        self._packages = tuple(packages)
        self._left_s = [float(each.balance_s) for each in packages]
        self._draws: dict[str, _Draw] = {}
        self._at = now
        self._pay = pay

    def begin(self, machine_id: str, *, gpu: str, data_center: str, gpu_count: int, now: float | None) -> None:
        """Let a container draw on the package of its GPU and region, if there is one with anything left.

        With `now` as None it has drawn since the last settling: it ran while no fake did.
        """
        if now is not None:
            self.settle(now)
        for index, package in enumerate(self._packages):
            if package.gpu_type == gpu and data_center in package.data_centers and self._left_s[index] > 0:
                self._draws[machine_id] = _Draw(package=index, gpu_count=gpu_count)
                return

    def end(self, machine_id: str, now: float) -> None:
        """Let a container draw no more. Idempotent."""
        self.settle(now)
        self._draws.pop(machine_id, None)

    def settle(self, now: float) -> None:
        """Draw what was used until now, and tell for each machine how many seconds were paid."""
        passed_s, self._at = max(0.0, now - self._at), max(now, self._at)
        for index, left_s in enumerate(self._left_s):
            draws = {machine: draw for machine, draw in self._draws.items() if draw.package == index}
            wanted_s = passed_s * sum(draw.gpu_count for draw in draws.values())
            if wanted_s > 0:
                drawn_s = min(wanted_s, left_s)
                self._left_s[index] = left_s - drawn_s
                for machine in draws:
                    self._pay(machine, passed_s * drawn_s / wanted_s)

    def overview(self, gpus: Sequence[str], now: float) -> list[tuple[PrepaidHours, int]]:
        """Return the packages for these GPUs that are not used up, with the whole seconds left of each."""
        self.settle(now)
        pairs = zip(self._packages, self._left_s, strict=True)
        return [(package, int(left_s)) for package, left_s in pairs if package.gpu_type in gpus and int(left_s) > 0]

    def saved(self, now: float) -> list[float]:
        """Return the seconds left of each package now."""
        self.settle(now)
        return list(self._left_s)

    def restore(self, left_s: Sequence[float], at: float) -> None:
        """Be again what `saved` told at that time."""
        self._left_s, self._at = list(left_s), at
