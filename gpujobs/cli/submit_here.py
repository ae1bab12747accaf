"""A run driven by this process, without a controller: submit --here, and resume."""

from signal import Signals

from gpujobs import lifecycle
from gpujobs.cli.interrupts import Interrupts, in_background
from gpujobs.cli.output import Output
from gpujobs.cli.stopping import Stopping
from gpujobs.cli.summary import tell_end
from gpujobs.clock import StopToken
from gpujobs.errors import Cancelled
from gpujobs.host import Host
from gpujobs.lifecycle import Outcome
from gpujobs.progress import TerminalReporter
from gpujobs.recipe import Recipe


def run_here(host: Host, recipe: Recipe, interrupts: Interrupts, out: Output) -> int:
    """Run the recipe to its end; the exit code is the run's own. A signal cancels, and the third leaves."""
    reporter, run_id = out.reporter(), lifecycle.new_run_id()
    lifecycle.open_run(host, recipe, run_id=run_id)
    reporter.say(f"run {run_id} ({recipe.name})")
    outcome = drive_here(host, run_id, interrupts, reporter)
    return tell_end(host, run_id, out) or outcome.exit_code


def drive_here(host: Host, run_id: str, interrupts: Interrupts, reporter: TerminalReporter) -> Outcome:
    """Drive a run of the ledger to its end, as `run_here` does; raises Busy where it is driven, or over."""
    stop = StopToken()
    stopped = Cancelled(f"run {run_id} was cancelled")
    stopping = Stopping(run_id, reporter, cancel=lambda: stop.stop(stopped), can_detach=False)

    def react(signal: Signals) -> None:
        if stopping.react(signal, interrupts):
            raise stopping.left()

    def work() -> Outcome:
        return lifecycle.execute(host, run_id, stop=stop, reporter=reporter, unended=True)

    outcome = in_background(interrupts, work, react=react)
    reporter.rest()
    if outcome.state == "running":
        reporter.say(f"this process lets go of run {run_id}: {outcome.error}")
    return outcome
