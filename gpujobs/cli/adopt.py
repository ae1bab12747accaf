"""adopt: rebuild a lost ledger from the providers' lists and what the machines tell of themselves."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

from gpujobs import adopt as adoption
from gpujobs import backends
from gpujobs.adopt import Finding
from gpujobs.cli.interrupts import Interrupts
from gpujobs.cli.opening import load_settings
from gpujobs.cli.output import Output
from gpujobs.cli.submit_here import drive_here
from gpujobs.errors import BadInput, GpujobsError
from gpujobs.host import Host
from gpujobs.lifecycle import Outcome
from gpujobs.progress import time_text
from gpujobs.settings import Account

_OVER = frozenset({"ended", "lost"})


def adopt(args: Namespace, out: Output) -> int:
    """Show what machines of ours the ledger lacks; with --yes, know their runs again, and finish those that ended."""
    with Host.open(load_settings()) as host, Interrupts() as interrupts:
        found, failed = _look_everywhere(host, out)
        adopted = adoption.adopt(host, found) if args.yes else []
        ended = [drive_here(host, one.run_id, interrupts, out.reporter()) for one in adopted if one.phase in _OVER]
    out.value(
        {
            "found": [_row(one) for one in found],
            "adopted": [one.run_id for one in adopted],
            "ended": [{"run_id": one.run_id, "state": one.state, "exit_code": one.exit_code} for one in ended],
            "failed": [{"name": name, "error": str(error)} for name, error in failed],
        }
    )
    _tell(found, adopted, ended, out, yes=args.yes)
    if failed:
        raise GpujobsError("; ".join(f"{name}: {error}" for name, error in failed))
    return 0


def _look_everywhere(host: Host, out: Output) -> tuple[Sequence[Finding], Sequence[tuple[str, GpujobsError]]]:
    found: list[Finding] = []
    failed: list[tuple[str, GpujobsError]] = []
    asked = 0
    for name in backends.names():
        for account in _accounts(host, name, out):
            asked += 1
            try:
                found += adoption.look(host, name, account)
            except GpujobsError as error:
                failed.append((name, error))
    if not asked:
        tokens = " or ".join(f"{name.upper()}_TOKEN" for name in backends.names())
        raise BadInput(f"no backend has a token; set {tokens}, or use the fake cloud: --fake")
    return found, failed


def _accounts(host: Host, name: str, out: Output) -> Sequence[Account]:
    try:
        return host.settings.accounts(name)
    except GpujobsError as error:
        out.tell(f"{name}: accounts that Prefect blocks keep are left out: {error}")
        return replace(host.settings, blocks=None).accounts(name)


def _row(one: Finding) -> dict[str, object]:
    return {
        "machine": one.machine.name,
        "backend": one.machine.backend,
        "run_id": one.run_id,
        "name": one.recipe.name if one.recipe else None,
        "phase": one.phase,
        "adoptable": one.recipe is not None,
        "why": one.why,
    }


def _tell(
    found: Sequence[Finding], adopted: Sequence[Finding], ended: Sequence[Outcome], out: Output, *, yes: bool
) -> None:
    rows = (
        (
            one.machine.name,
            f"{one.machine.backend}/{one.machine.region}",
            one.recipe.name if one.recipe else "-",
            one.phase or "-",
            time_text(one.recipe.max_duration) if one.recipe else "-",
            one.why or "can be adopted",
        )
        for one in found
    )
    head = ("MACHINE", "PLACE", "RECIPE", "PHASE", "AT MOST", "WHY")
    out.table(head, rows, none="nothing is rented that the ledger does not know")
    if any(one.recipe is None for one in found):
        out.text("what cannot be adopted can be released: gpujobs reap --yes")
    if any(one.recipe for one in found) and not yes:
        out.text("nothing was written; where no other computer drives these runs: gpujobs adopt --yes")
    over = {one.run_id: one for one in ended}
    for one in adopted:
        if outcome := over.get(one.run_id):
            out.text(f"run {one.run_id} is known again, and {outcome.state}; its output: gpujobs logs {one.run_id}")
        else:
            out.text(f"run {one.run_id} is known again; go on with it: gpujobs resume {one.run_id}, or gpujobs up")
