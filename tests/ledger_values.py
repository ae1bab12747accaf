"""Rows for the tests of the ledger."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from gpujobs.ledger_rows import Attempt, Bill, MachineRecord, Run

NOW = datetime(2026, 11, 21, 10, 0, 0, 123456, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def a_run(run_id: str = "k3x9", **fields: object) -> Run:
    base = Run(id=run_id, name="digits", owner="ada", recipe_json='{"name": "digits"}', state="new", created_at=NOW)
    return replace(base, **fields)  # type: ignore[arg-type]


def an_attempt(run_id: str = "k3x9", number: int = 1) -> Attempt:
    return Attempt(
        run_id=run_id,
        number=number,
        name=f"gj-ada-{run_id}-{number}",
        backend="autodl",
        region="westDC2",
        offer_json="{}",
        state="new",
    )


def a_machine(run_id: str = "k3x9", number: int = 1, **fields: object) -> MachineRecord:
    base = MachineRecord(
        name=f"gj-ada-{run_id}-{number}",
        run_id=run_id,
        attempt=number,
        backend="autodl",
        region="westDC2",
        intent_at=NOW,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def a_bill(number: int, cost_cny: float | None) -> Bill:
    return Bill(
        run_id="k3x9",
        attempt=number,
        seconds=60.0,
        price_cny_per_h=None,
        cost_cny=cost_cny,
        from_at=NOW,
        until_at=NOW + MINUTE,
    )
