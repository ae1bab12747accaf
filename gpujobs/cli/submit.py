"""submit: plan, ask, then run the recipe here or through the controller, and follow it to its end."""

import sys
import time
from argparse import Namespace
from functools import partial
from signal import Signals

from gpujobs import controller, lifecycle, prefect_api
from gpujobs.cli.cancel import FlowRunWatch, request_cancel
from gpujobs.cli.interrupts import Interrupts, in_background
from gpujobs.cli.opening import load_settings
from gpujobs.cli.output import Output
from gpujobs.cli.recipes import show_plan
from gpujobs.cli.stopping import Stopping
from gpujobs.cli.summary import show_end, summary
from gpujobs.cli.watching import follow_to_end
from gpujobs.clock import StopToken
from gpujobs.errors import BadInput, Cancelled, NoCapacity
from gpujobs.follow import Follower
from gpujobs.host import Host
from gpujobs.lifecycle import Outcome
from gpujobs.plan import check_local, make_plan
from gpujobs.recipe import Recipe
from gpujobs.recipe_file import load_recipe

_START_S = 90.0
_BEGIN_S = 20.0  # a worker that is up takes a run within two
_LOOK_EVERY_S = 0.15
NOT_RENTED = "cancelled; nothing was rented"


def submit(args: Namespace, out: Output) -> int:
    """Run a recipe; the exit code is the run's own."""
    if args.here and args.detach:
        raise BadInput("--here runs in this process, which --detach leaves; take one of them")
    recipe = load_recipe(args.recipe, args.overrides).recipe
    with Host.open(load_settings()) as host:
        check_local(host, recipe)
        plan = make_plan(host, recipe)
        show_plan(recipe, plan, out)
        if not plan.choices and not recipe.retry.wait:
            raise NoCapacity(plan.nothing_free)
        with Interrupts() as interrupts:
            if not args.yes:
                _confirm(interrupts, out)
            if args.here:
                return _Here(host, out).run(recipe, interrupts)
            return _Controlled(host, out).run(recipe, interrupts, detach=args.detach)


def _confirm(interrupts: Interrupts, out: Output) -> None:
    """Ask before money is spent, where somebody is there to answer."""
    if out.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if interrupts.ask("Rent this? [y/N] ", ("y", "yes", "n", "no", "")) not in ("y", "yes"):
        raise Cancelled(NOT_RENTED)


class _Here:
    """Runs the lifecycle in this process, without a controller."""

    def __init__(self, host: Host, out: Output) -> None:
        self._host, self._out, self._reporter = host, out, out.reporter()

    def run(self, recipe: Recipe, interrupts: Interrupts) -> int:
        host, reporter, run_id, stop = self._host, self._reporter, lifecycle.new_run_id(), StopToken()
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
        return _tell_end(host, run_id, self._out)


class _Controlled:
    """Hands the recipe to the controller, started where there is none, and follows the run."""

    def __init__(self, host: Host, out: Output) -> None:
        self._host, self._out, self._reporter = host, out, out.reporter()
        self._came: list[Signals] = []

    def run(self, recipe: Recipe, interrupts: Interrupts, *, detach: bool) -> int:
        api = in_background(interrupts, self._api, react=self._before_renting)
        if self._came:
            raise Cancelled(NOT_RENTED)
        settings, reporter = self._host.settings, self._reporter
        run_id, flow_run_id = in_background(
            interrupts, lambda: prefect_api.submit(settings, api, recipe), react=self._came.append
        )
        reporter.say(f"run {run_id} ({recipe.name}) is with the controller at {api}")
        waiting = FlowRunWatch(api, flow_run_id, reporter)
        if detach:
            self._await_begin(run_id, waiting, interrupts)
            return self._detached(run_id, flow_run_id)
        follower = Follower(
            self._host.ledger,
            run_id,
            folder=settings.runs / run_id,
            reporter=reporter,
            clock=self._host.clock,
            absent=waiting.look,
        )
        ask_to_stop = partial(request_cancel, self._host, run_id, api, flow_run_id)
        stopping = Stopping(run_id, reporter, cancel=ask_to_stop, can_detach=True)

        def react(signal: Signals) -> bool:
            return stopping.react(signal, interrupts)

        left = any(react(signal) for signal in self._came)
        ended = None if left else follow_to_end(follower, interrupts, react=react, reporter=reporter)
        if stopping.detached:
            return self._detached(run_id, flow_run_id)
        if ended is None:
            raise stopping.left()
        return _tell_end(self._host, run_id, self._out)

    def _api(self) -> str:
        settings = self._host.settings
        if url := prefect_api.api_url(settings):
            return url
        self._reporter.say("starting the local controller; it stays until: gpujobs down")
        return controller.up(settings, _START_S).url

    def _before_renting(self, signal: Signals) -> None:
        self._came.append(signal)
        self._reporter.say("nothing is rented yet; ending once the controller has answered")

    def _await_begin(self, run_id: str, waiting: FlowRunWatch, interrupts: Interrupts) -> None:
        """Wait until the ledger knows the run, so that whatever is asked of it next finds it; not for ever."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < _BEGIN_S and interrupts.wait(_LOOK_EVERY_S) is None:
            try:
                self._host.ledger.get_run(run_id)
            except BadInput:
                waiting.look()
            else:
                return

    def _detached(self, run_id: str, flow_run_id: str) -> int:
        self._out.value({"run_id": run_id, "flow_run_id": flow_run_id})
        self._out.text(f"run {run_id} goes on by itself; follow it: gpujobs logs -f {run_id}")
        self._out.text(f"stop it: gpujobs cancel {run_id}")
        return 0


def _tell_end(host: Host, run_id: str, out: Output) -> int:
    run = host.ledger.get_run(run_id)
    value = summary(run, host.ledger, host.settings)
    out.value(value)
    show_end(run, value, out)
    return run.exit_code or 0
