"""A run's tasks: their table for people, their list for JSON, and the recipe that does again those that failed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from gpujobs.cli.output import Output
from gpujobs.errors import BadInput
from gpujobs.ledger import Ledger
from gpujobs.ledger_rows import ENDED, Run, TaskRecord
from gpujobs.progress import time_text
from gpujobs.recipe import Recipe
from gpujobs.task_words import counts_in_words

_SHOWN_CHARS = 24
_ERROR_CHARS = 60
_SHOWN_ROWS = 200  # of a longer table only what is at work, or went wrong


def tasks_value(rows: Sequence[TaskRecord]) -> Sequence[Mapping[str, Any]]:
    """Give the tasks as JSON carries them."""
    return [
        {**asdict(row), "parameters": json.loads(row.parameters), "metrics": json.loads(row.metrics)} for row in rows
    ]


def show_tasks(rows: Sequence[TaskRecord], out: Output) -> None:
    """Print how many tasks there are of each state, and a line for each: its variables, where and how long, metrics.

    Of more than 200 tasks only those at work and those that went wrong have a line, the first 200.
    """
    if not rows:
        return
    out.text(counts_in_words(rows))
    if len(rows) > _SHOWN_ROWS:
        rows = [row for row in rows if row.state in {"running", "failed", "lost"}][:_SHOWN_ROWS]
        if not rows:
            return
    found = tasks_value(rows)
    variables, metrics = _names(one["parameters"] for one in found), _names(one["metrics"] for one in found)
    table = [
        (
            one["number"],
            one["state"],
            *(_short(one["parameters"].get(name, "")) for name in variables),
            one["machine"].rpartition("-")[2],
            one["tries"] or "",
            _took(row),
            "" if one["exit_code"] is None else one["exit_code"],
            *(_short(one["metrics"].get(name, "")) for name in metrics),
            _short(one["error"], _ERROR_CHARS),
        )
        for one, row in zip(found, rows, strict=True)
    ]
    head = ("TASK", "STATE", *variables, "ATTEMPT", "TRIES", "TOOK", "EXIT", *metrics, "")
    out.table(head, table, none="")


def failed_tasks(ledger: Ledger, run: Run) -> Recipe:
    """Give the recipe that does again what of a run's tasks did not succeed; raises BadInput where there is none."""
    if run.kind == "fleet":
        raise BadInput(f"run {run.id} ({run.name}) is a fleet's, whose tasks its program knows; run that again")
    recipe = Recipe.model_validate_json(run.recipe_json)
    if not recipe.wanted_tasks:
        raise BadInput(f"run {run.id} ({run.name}) has no tasks, only one job; submit its recipe again")
    if run.state not in ENDED:
        raise BadInput(f"run {run.id} ({run.name}) is not over; wait for it, or stop it: gpujobs cancel {run.id}")
    done = {row.number for row in ledger.tasks(run.id) if row.state == "succeeded"}
    left = [number for number in recipe.wanted_tasks if number not in done]
    if not left:
        raise BadInput(f"all {len(done)} tasks of run {run.id} ({run.name}) succeeded; there is nothing to do again")
    return recipe.model_copy(update={"only_tasks": left})


def _names(maps: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for one in maps for name in one))


def _short(value: object, most: int = _SHOWN_CHARS) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def _took(row: TaskRecord) -> str:
    if row.began_at is None:
        return ""
    return time_text(((row.ended_at or datetime.now(UTC)) - row.began_at).total_seconds())
