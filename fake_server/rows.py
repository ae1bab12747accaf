"""The shapes of what the control room tells, the same over HTTP and in Python."""

from typing import Any, TypedDict


class CommandRow(TypedDict):
    """One start of one command on a machine; times are simulated, a negative exit code is a signal."""

    run_token: str
    command: str
    kind: str
    exit_code: int
    bytes_written: int
    sha256: str
    output_head: str
    started_at: float
    ended_at: float


class DiskChangeRow(TypedDict):
    """What a released machine had written to its own disks."""

    files: int
    size_bytes: int


class MachineRow(TypedDict):
    """One machine ever made. gone_at is None while it exists; paid_fen is cost_fen less coupon and package."""

    provider: str
    id: str
    name: str
    owner: str
    gpu: str
    gpu_count: int
    region: str
    price_cny_per_h: float
    made_at: float
    powered_at: float | None
    gone_at: float | None
    powered: bool
    billed_s: float
    prepaid_cny: float
    coupon_cny: float
    package_s: float
    cost_cny: float
    cost_fen: int
    paid_fen: int
    commands: list[CommandRow]
    disk_change: DiskChangeRow | None


class Ledger(TypedDict):
    """The truth: every machine ever made, oldest first, and how often each endpoint was called."""

    now: float
    machines: list[MachineRow]
    calls: dict[str, int]


class CallRow(TypedDict):
    """One call of either cloud's API, without its secrets. `at` is simulated; `endpoint` is "" for an unknown path.

    `code` is AutoDL's business code, `fault` the kind of fault that was played, `cut` says that no reply was sent.
    """

    number: int
    at: float
    endpoint: str
    method: str
    path: str
    request: str
    status: int
    code: str
    fault: str
    cut: bool


State = dict[str, Any]
