"""ls, status, cost: what the ledger knows of runs, and what waits to be in it."""

from argparse import Namespace
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gpujobs import controller_record, ledger_glance
from gpujobs.cli.opening import find_run, ledger_of, load_settings
from gpujobs.cli.output import UNKNOWN, Output, money, price
from gpujobs.errors import BadInput, GpujobsError
from gpujobs.ledger_rows import WAITING, Run
from gpujobs.progress import time_text
from gpujobs.settings import Settings

if TYPE_CHECKING:
    from gpujobs.ledger import Ledger

_STATUS_FIELDS = ("kind", "phase", "detail", "created_at", "started_at", "ended_at", "estimate_cny", "flow_run_id")
_SOON_S = 2.0
_LS_FIELDS = ("id", "name", "state", "phase", "detail", "created_at", "ended_at", "exit_code", "cost_cny", "error")


def ls(args: Namespace, out: Output) -> int:
    """List the runs, newest first: those that wait for a host, and those of the ledger."""
    settings = load_settings()
    found = [
        *_waiting(settings, args.state, out),
        *ledger_glance.list_runs(settings.database_url, limit=args.limit, states=args.state),
    ][: args.limit]
    now = datetime.now(UTC)
    out.value([{name: getattr(run, name) for name in _LS_FIELDS} for run in found])
    rows = (
        (
            run.id,
            run.name,
            run.state,
            run.phase,
            run.detail,
            time_text((now - run.created_at).total_seconds()),
            money(run.cost_cny) if run.ended_at else "",
        )
        for run in found
    )
    out.table(("RUN", "NAME", "STATE", "PHASE", "WHERE", "AGE", "COST"), rows, none="no runs yet")
    return 0


def _waiting(settings: Settings, states: Collection[str], out: Output) -> Sequence[Run]:
    """Give the runs that no host has begun, as the ledger would; a server that does not tell soon is only told of."""
    if states and WAITING not in states:
        return []
    try:
        if controller_record.server_url(settings) is None:
            return []
        from gpujobs.cli.waiting import waiting_runs  # noqa: PLC0415 - brings requests

        given = waiting_runs(settings, _SOON_S)
    except GpujobsError as error:
        out.tell(f"whether more runs wait for a host is not known: {error}")
        return []
    begun = {run.id for run in ledger_glance.list_runs(settings.database_url)} if given else set()
    return [one.as_run() for one in given if one.run_id not in begun]


def status(args: Namespace, out: Output) -> int:
    """Say where a run stands, with its attempts."""
    from gpujobs.cli.summary import output_lines, show_attempts, summary  # noqa: PLC0415 - brings SQLAlchemy, which ls cannot afford
    from gpujobs.cli.tasks import show_tasks, tasks_value  # noqa: PLC0415 - as above

    found = load_settings()
    with ledger_of(found) as ledger:
        try:
            run = find_run(ledger, args.run)
        except BadInput as error:
            from gpujobs.cli.waiting import find_waiting, tell_waiting  # noqa: PLC0415 - brings requests

            return tell_waiting(find_waiting(found, ledger, args.run, error), out)
        short = summary(run, ledger, found)
        attempts, machines = ledger.attempts(run.id), ledger.machines(run.id)
        events, tasks = ledger.events(run.id), ledger.tasks(run.id)
    more = {name: getattr(run, name) for name in _STATUS_FIELDS}
    told = {"attempts": attempts, "machines": machines, "events": events, "tasks": tasks_value(tasks)}
    out.value({**short, **more, **told})
    age = time_text((datetime.now(UTC) - run.created_at).total_seconds())
    phase = f", {run.phase} {run.detail}".rstrip() if run.phase else ""
    out.text(f"run {run.id} ({run.name}): {run.state}{phase}; submitted {age} ago")
    show_attempts(attempts, machines, out)
    show_tasks(tasks, out)
    for line in output_lines(short["outputs"]):
        out.text(line if tasks else f"output {line}")
    out.text(f"log: {short['log']}")
    out.text(f"cost: {money(short['cost_cny'])} (estimated before: {money(run.estimate_cny)})")
    if run.exit_code is not None:
        out.text(f"exit code {run.exit_code}" + (f": {run.error}" if run.error else ""))
    return 0


def cost(args: Namespace, out: Output) -> int:
    """Show the bills of one run, or of all runs and their sum."""
    with ledger_of(load_settings()) as ledger:
        if args.run is None:
            _cost_of_all(ledger, out)
        else:
            _cost_of_one(ledger, find_run(ledger, args.run), out)
    return 0


def _cost_of_one(ledger: "Ledger", run: Run, out: Output) -> None:
    bills, total = ledger.bills(run.id), ledger.cost_cny(run.id)
    out.value({"run_id": run.id, "name": run.name, "cost_cny": total, "bills": bills})
    rows = (
        (
            bill.attempt,
            UNKNOWN if bill.seconds is None else time_text(bill.seconds),
            price(bill.price_cny_per_h),
            money(bill.cost_cny),
        )
        for bill in bills
    )
    out.table(("ATTEMPT", "RENTED", "CNY/H", "COST"), rows, none=f"run {run.id} has no bills yet")
    out.text(f"run {run.id} ({run.name}): {money(total)}")


def _cost_of_all(ledger: "Ledger", out: Output) -> None:
    found = [(run, run.cost_cny if run.ended_at else ledger.cost_cny(run.id)) for run in ledger.list_runs()]
    known = [amount for _, amount in found if amount is not None]
    unknown = len(found) - len(known)
    out.value(
        {
            "runs": [{"run_id": run.id, "name": run.name, "cost_cny": amount} for run, amount in found],
            "known_cost_cny": round(sum(known), 6),
            "runs_of_unknown_cost": unknown,
        }
    )
    rows = ((run.id, run.name, run.state, money(amount)) for run, amount in found)
    out.table(("RUN", "NAME", "STATE", "COST"), rows, none="no runs yet")
    if found:
        out.text(f"in all: {money(sum(known))}" + (f", and {unknown} runs of unknown cost" if unknown else ""))
