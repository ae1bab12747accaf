"""submit --here: the lifecycle in this process, without a controller."""

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
from gpujobs.recipe import Recipe


def run_here(host: Host, recipe: Recipe, interrupts: Interrupts, out: Output) -> int:
    """Run the recipe to its end; the exit code is the run's own. A signal cancels, and the third leaves."""
    reporter, run_id, stop = out.reporter(), lifecycle.new_run_id(), StopToken()
    lifecycle.open_run(host, recipe, run_id=run_id)
    reporter.say(f"run {run_id} ({recipe.name})")
    stopped = Cancelled(f"run {run_id} was cancelled")
    stopping = Stopping(run_id, reporter, cancel=lambda: stop.stop(stopped), can_detach=False)

    def react(signal: Signals) -> None:
        if stopping.react(signal, interrupts):
            raise stopping.left()

    def work() -> Outcome:
        return lifecycle.execute(host, run_id, stop=stop, reporter=reporter)

    in_background(interrupts, work, react=react)
    reporter.rest()
    return tell_end(host, run_id, out)
