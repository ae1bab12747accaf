"""A run's tasks in words: how many are in which state, and the table that a page shows."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gpujobs.ledger_rows import TaskRecord

_STATES = ("waiting", "running", "succeeded", "failed", "lost", "cancelled")
_ERROR_CHARS = 200


def counts_in_words(rows: Sequence[TaskRecord]) -> str:
    """Say how many tasks there are, and how many of them are in which state."""
    counts = Counter(row.state for row in rows)
    return f"{len(rows)} tasks: " + ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state])


def task_table(rows: Sequence[TaskRecord]) -> list[dict[str, Any]]:
    """Give a row for each task; what says most stands first, since a page shows some five columns.

    It is the same as long as no task begins or ends, so that it need not be sent again.
    """
    return [
        {
            "task": row.number,
            "state": row.state,
            "parameters": _pairs(json.loads(row.parameters)),
            "metrics": _pairs(json.loads(row.metrics)),
            "seconds": _took_s(row),
            "attempt": row.machine.rpartition("-")[2],
            "tries": row.tries,
            "exit code": "" if row.exit_code is None else row.exit_code,
            "error": row.error[:_ERROR_CHARS],
        }
        for row in rows
    ]


def _took_s(row: TaskRecord) -> float | str:
    if row.began_at is None or row.ended_at is None:
        return ""
    return round((row.ended_at - row.began_at).total_seconds(), 1)


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
