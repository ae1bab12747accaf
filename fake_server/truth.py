"""The ledger of truth: every machine ever made, its bill, its commands. No API call of either cloud reads it."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Provider = Literal["autodl", "matrixdc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command that a machine ran. Times are simulated; a negative exit code is a signal.

    `run_token` is given by the ledger and names this one start; `sha256` is that of stdout and stderr as they were
    sent, and `output_head` their first 200 bytes as text.
    """

    run_token: str = ""
    command: str
    kind: str
    exit_code: int
    bytes_written: int
    sha256: str = ""
    output_head: str = ""
    started_at: float
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskChange:
    """What a machine had written to its own disks when it was released: files new or changed, and their size."""

    files: int
    size_bytes: int


@dataclass(slots=True, kw_only=True)
class MachineTruth:
    """One machine ever made. Times are simulated seconds since 1970; gone_at is None while it exists.

    Of its price a coupon pays up to coupon_cny, and a package of GPU hours the whole of package_s seconds.
    """

    provider: Provider
    id: str
    name: str
    owner: str
    gpu: str
    gpu_count: int
    region: str
    price_cny_per_h: float
    made_at: float
    gone_at: float | None = None
    billed_s: float = 0.0
    prepaid_cny: float = 0.0
    coupon_cny: float = 0.0
    package_s: float = 0.0
    powered_at: float | None = None
    commands: list[Command] = field(default_factory=list)
    disk_change: DiskChange | None = None

    def billed_until(self, now: float) -> float:
        """Return the seconds billed so far."""
        return self.billed_s + (0.0 if self.powered_at is None else max(0.0, now - self.powered_at))

    def settle_coupon(self) -> float:
        """Keep of the coupon what the machine's use came to; return the rest."""
        used_cny = min(self.coupon_cny, self.billed_s / 3600 * self.price_cny_per_h)
        rest_cny, self.coupon_cny = self.coupon_cny - used_cny, used_cny
        return rest_cny

    def as_json(self, now: float) -> dict[str, Any]:
        """Return the row that the control room shows."""
        row = asdict(self)
        billed_s = self.billed_until(now)
        used_cny = billed_s / 3600 * self.price_cny_per_h
        cost_cny = self.prepaid_cny + used_cny
        package_cny = min(used_cny, self.package_s / 3600 * self.price_cny_per_h)
        row.update(
            billed_s=round(billed_s, 6),
            powered=self.powered_at is not None,
            cost_cny=round(cost_cny, 6),
            cost_fen=to_fen(cost_cny),
            paid_fen=to_fen(cost_cny - min(self.coupon_cny, used_cny) - package_cny),
        )
        return row


def to_fen(cny: float) -> int:
    """Return an amount in fen, half a fen up; what is off by less than a millionth of a yuan counts as even."""
    return math.floor(round(cny * 100, 4) + 0.5)


class Truth:
    """What really happened. The world's lock guards it."""

    def __init__(self) -> None:
        self.machines: dict[str, MachineTruth] = {}

    def made(self, machine: MachineTruth) -> None:
        """Enter a new machine."""
        self.machines[machine.id] = machine

    def powered_on(self, machine_id: str, now: float) -> None:
        """Start the meter."""
        self.machines[machine_id].powered_at = now

    def powered_off(self, machine_id: str, now: float) -> None:
        """Stop the meter; a stopped one stays as it is."""
        machine = self.machines[machine_id]
        machine.billed_s = machine.billed_until(now)
        machine.powered_at = None

    def gone(self, machine_id: str, now: float) -> None:
        """Note that the machine exists no more."""
        self.powered_off(machine_id, now)
        self.machines[machine_id].gone_at = now

    def ran(self, machine_id: str, command: Command) -> None:
        """Note a command that ended."""
        commands = self.machines[machine_id].commands
        commands.append(replace(command, run_token=f"{machine_id}#{len(commands) + 1}"))

    def paid_by_package(self, machine_id: str, seconds: float) -> None:
        """Note that a package of GPU hours paid for so many of its seconds."""
        self.machines[machine_id].package_s += seconds

    def left(self, machine_id: str, change: DiskChange) -> None:
        """Note what a released machine had written."""
        self.machines[machine_id].disk_change = change

    def alive(self) -> list[MachineTruth]:
        """Return the machines that exist now."""
        return [machine for machine in self.machines.values() if machine.gone_at is None]

    def as_json(self, now: float) -> list[dict[str, Any]]:
        """Return all machines, oldest first."""
        return [machine.as_json(now) for machine in self.machines.values()]
