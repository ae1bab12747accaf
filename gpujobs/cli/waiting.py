"""Runs that were handed in and that no host has begun: only the Prefect server knows of them, not our ledger."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gpujobs import controller_record, prefect_api
from gpujobs.cli.flow_watch import FlowRunWatch
from gpujobs.cli.interrupts import Interrupts
from gpujobs.cli.opening import find_run
from gpujobs.cli.output import Output
from gpujobs.errors import BadInput, Cancelled, GpujobsError
from gpujobs.ledger_rows import WAITING, Run
from gpujobs.prefect_api import run_id_of
from gpujobs.progress import TerminalReporter, time_text
from gpujobs.settings import Settings

if TYPE_CHECKING:
    from gpujobs.ledger import Ledger

_LOOK_EVERY_S = 0.15
_TAG = "recipe:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A run that waits for a host, or for its place under the team's limit."""

    run_id: str
    name: str
    prefect_state: str
    due_at: datetime
    flow_run_id: str
    api: str

    def as_run(self) -> Run:
        """Give it as the ledger would, for a list."""
        return Run(
            id=self.run_id,
            name=self.name,
            owner="",
            recipe_json="",
            state=WAITING,
            created_at=self.due_at,
            flow_run_id=self.flow_run_id,
        )


def waiting_runs(found: Settings, within_s: float = prefect_api.BUSY_S) -> Sequence[Waiting]:
    """Give the runs that are due, newest first, also those that wait for their retry; none where there is no server.

    Raises GpujobsError where there is a server, and it does not tell in `within_s`.
    """
    api = controller_record.server_url(found)
    if api is None:
        return []
    runs = [
        Waiting(
            run_id=run_id_of(one["id"]),
            name=next((tag.removeprefix(_TAG) for tag in one["tags"] if tag.startswith(_TAG)), one["name"]),
            prefect_state=one["state"]["name"],
            due_at=datetime.fromisoformat(one["expected_start_time"]),
            flow_run_id=one["id"],
            api=api,
        )
        for one in prefect_api.waiting(api, within_s)
    ]
    return sorted(runs, key=lambda one: one.due_at, reverse=True)


def find_waiting(found: Settings, ledger: "Ledger", word: str, unknown: BadInput) -> Waiting:
    """Give the waiting run that `word` means: an id, a name (the latest so called), or the start of one id alone.

    Raises `unknown`, the ledger's word on it, where the server knows of no such run either; GpujobsError where there is
    a server, and it does not tell.
    """
    begun = {run.id for run in ledger.list_runs()}
    try:
        runs = [one for one in waiting_runs(found) if one.run_id not in begun]
    except GpujobsError as error:
        raise GpujobsError(f"{unknown}; whether it waits for a host is not known: {error}") from error
    named = [one for one in runs if word in {one.run_id, one.name}]
    started = [one for one in runs if word and one.run_id.startswith(word)]
    alone = len(started) == 1 and not any(run_id.startswith(word) for run_id in begun)
    if not named and not alone:
        raise unknown
    return (named or started)[0]


def find_begun(found: Settings, ledger: "Ledger", word: str, reporter: TerminalReporter) -> Run:
    """Give the run that `word` means, once a host has begun it; raises as `find_waiting` and `FlowRunWatch` do."""
    try:
        return find_run(ledger, word)
    except BadInput as error:
        one = find_waiting(found, ledger, word, error)
    with Interrupts() as interrupts:
        reporter.say(f"run {one.run_id} ({one.name}) waits for a host")
        run = await_begun(ledger, one.run_id, FlowRunWatch(one.api, one.flow_run_id, reporter), interrupts)
    if run is None:
        raise Cancelled(f"no longer waiting; run {one.run_id} still waits for a host")
    return run


def await_begun(
    ledger: "Ledger", run_id: str, watch: FlowRunWatch, interrupts: Interrupts, within_s: float = math.inf
) -> Run | None:
    """Wait until the ledger knows the run; None where a signal comes, or `within_s` is over. Raises as `watch` does."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < within_s and interrupts.wait(_LOOK_EVERY_S) is None:
        try:
            return ledger.get_run(run_id)
        except BadInput:
            watch.look()
    return None


def tell_waiting(one: Waiting, out: Output) -> int:
    """Say that the run waits, and when a host last gave a sign of life."""
    heard_at = prefect_api.host_heard_at(one.api)
    sign = f"{time_text((datetime.now(UTC) - heard_at).total_seconds())} ago" if heard_at else "never"
    out.value({**asdict(one), "state": WAITING, "host_heard_at": heard_at})
    out.text(f"run {one.run_id}: waiting ({one.prefect_state} at {one.api}); nothing is rented yet")
    out.text(f"last sign of life of a host: {sign} (start one: gpujobs serve)")
    return 0
