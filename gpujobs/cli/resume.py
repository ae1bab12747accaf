"""resume: go on with a run whose driver is dead, where it stands, to its end."""

from argparse import Namespace

from gpujobs import process
from gpujobs.cli.interrupts import Interrupts
from gpujobs.cli.opening import find_run, load_settings
from gpujobs.cli.output import Output
from gpujobs.cli.submit_here import drive_here
from gpujobs.cli.summary import tell_end
from gpujobs.errors import BadInput, Busy
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED, Run


def resume(args: Namespace, out: Output) -> int:
    """Drive a run on in this process; the exit code is the run's own. Refused while somebody drives it."""
    with Host.open(load_settings()) as host, Interrupts() as interrupts:
        run = find_run(host.ledger, args.run)
        if process.driver_died(run.driver):  # its lease need not be waited out
            host.ledger.release_claim(run.id, run.driver)
            run = host.ledger.get_run(run.id)
        _check_free(host, run)
        reporter = out.reporter()
        reporter.say(f"going on with run {run.id} ({run.name}), {where(run)}")
        outcome = drive_here(host, run.id, interrupts, reporter)
        return tell_end(host, run.id, out) or outcome.exit_code


def where(run: Run) -> str:
    """Say how far a run had come."""
    return f"which stood at {run.phase} {run.detail}".rstrip() if run.phase else "which had not begun"


def _check_free(host: Host, run: Run) -> None:
    if run.state in ENDED:
        how = f"{run.state}, exit code {run.exit_code}" + (f": {run.error}" if run.error else "")
        raise BadInput(f"run {run.id} is over ({how}), so there is nothing to go on with; submit its recipe again")
    left_s = (run.lease_until - host.clock.now()).total_seconds() if run.lease_until else 0.0
    if left_s > 0:
        raise Busy(
            f"run {run.id} is driven by {run.driver}; follow it with: gpujobs logs -f {run.id}\n"
            f"if that process is dead, its lease ends in {left_s:.0f} s: resume it then"
        )
    if run.state == "submitted" and run.flow_run_id:
        raise Busy(f"run {run.id} waits for a host to take it: gpujobs up starts one here")
