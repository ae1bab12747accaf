"""submit: plan, ask, then run the recipe here or through the controller, and follow it to its end."""

import sys
from argparse import Namespace
from functools import partial
from signal import Signals

from gpujobs import controller, prefect_api
from gpujobs.cli.cancel import request_cancel
from gpujobs.cli.flow_watch import EndedElsewhere, FlowRunWatch
from gpujobs.cli.interrupts import Interrupts, in_background
from gpujobs.cli.opening import find_run, load_settings
from gpujobs.cli.output import Output
from gpujobs.cli.recipes import show_plan, up_to
from gpujobs.cli.stopping import Stopping
from gpujobs.cli.summary import tell_end
from gpujobs.cli.tasks import failed_tasks
from gpujobs.cli.waiting import await_begun
from gpujobs.cli.watching import follow_to_end
from gpujobs.errors import BadInput, Cancelled, NoCapacity
from gpujobs.follow import Follower
from gpujobs.host import Host
from gpujobs.ledger_rows import Run
from gpujobs.plan import Plan, check_local, make_plan
from gpujobs.recipe import Recipe
from gpujobs.recipe_file import load_recipe

_START_S = 90.0
_BEGIN_S = 20.0  # a worker that is up takes a run within two
NOT_RENTED = "cancelled; nothing was rented"


def submit(args: Namespace, out: Output) -> int:
    """Run a recipe; the exit code is the run's own."""
    if args.here and args.detach:
        raise BadInput("--here runs in this process, which --detach leaves; take one of them")
    if (args.recipe is None) == (args.retry_failed is None):
        raise BadInput("name a recipe, or with --retry-failed a run: gpujobs submit recipe.yaml")
    if args.retry_failed is not None and args.overrides:
        raise BadInput("--retry-failed does the same tasks again, so nothing can be --set; submit the recipe instead")
    with Host.open(load_settings()) as host:
        recipe = _recipe(args, host)
        check_local(host, recipe)
        try:
            plan = make_plan(host, recipe)
        except KeyboardInterrupt:
            raise Cancelled(NOT_RENTED) from None
        show_plan(recipe, plan, out)
        if recipe.schedule:
            out.tell("submit runs this once, now; its schedule is for: gpujobs deploy")
        if not plan.choices and not recipe.retry.wait:
            raise NoCapacity(plan.nothing_free)
        with Interrupts() as interrupts:
            if not args.yes:
                _confirm(recipe, plan, interrupts)
            if args.here:
                from gpujobs.cli.submit_here import run_here  # noqa: PLC0415 - brings paramiko

                return run_here(host, recipe, interrupts, out)
            return _Controlled(host, out).run(recipe, interrupts, detach=args.detach)


def _recipe(args: Namespace, host: Host) -> Recipe:
    if args.recipe is not None:
        return load_recipe(args.recipe, args.overrides).recipe
    return failed_tasks(host.ledger, find_run(host.ledger, args.retry_failed))


def _confirm(recipe: Recipe, plan: Plan, interrupts: Interrupts) -> None:
    """Ask before money is spent, where somebody is there to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    many = f"{up_to(recipe)} as " if recipe.machines_at_once > 1 else ""
    what = (
        f"Rent {many}{plan.choices[0].offer}?"
        if plan.choices
        else "Wait until something that fits is free, and rent it?"
    )
    if interrupts.ask(f"{what} [y/N] ", ("y", "yes", "n", "no", "")) not in ("y", "yes"):
        raise Cancelled(NOT_RENTED)


class _Controlled:
    """Hands the recipe to the controller, started where there is none, and follows the run."""

    def __init__(self, host: Host, out: Output) -> None:
        self._host, self._out, self._reporter = host, out, out.reporter()
        self._came: list[Signals] = []

    def run(self, recipe: Recipe, interrupts: Interrupts, *, detach: bool) -> int:
        api = in_background(interrupts, self._api, react=self._before_renting)
        if self._came:
            raise Cancelled(NOT_RENTED)
        run_id, flow_run_id = in_background(
            interrupts, lambda: prefect_api.submit(self._host.settings, api, recipe), react=self._came.append
        )
        self._reporter.say(f"run {run_id} ({recipe.name}) is with the controller at {api}")
        waiting = FlowRunWatch(api, flow_run_id, self._reporter)
        ask_to_stop = partial(request_cancel, self._host, run_id, api, flow_run_id)
        stopping = Stopping(run_id, self._reporter, cancel=ask_to_stop, can_detach=True)
        try:
            if detach:
                # Whatever is asked of it next then finds it in the ledger.
                await_begun(self._host.ledger, run_id, waiting, interrupts, _BEGIN_S)
                return self._detached(run_id, flow_run_id)
            ended = self._follow(run_id, waiting, stopping, interrupts)
        except EndedElsewhere as end:
            return end.tell(self._out)
        if stopping.detached:
            return self._detached(run_id, flow_run_id)
        if ended is None:
            raise stopping.left()
        return tell_end(self._host, run_id, self._out)

    def _follow(self, run_id: str, waiting: FlowRunWatch, stopping: Stopping, interrupts: Interrupts) -> Run | None:
        def react(signal: Signals) -> bool:
            return stopping.react(signal, interrupts)

        if any(react(signal) for signal in self._came):
            return None
        follower = Follower(
            self._host.ledger,
            run_id,
            folder=self._host.settings.runs / run_id,
            reporter=self._reporter,
            clock=self._host.clock,
            absent=waiting.look,
        )
        return follow_to_end(follower, interrupts, react=react, reporter=self._reporter)

    def _api(self) -> str:
        settings = self._host.settings
        if url := prefect_api.api_url(settings):
            return url
        self._reporter.say("starting the local controller; it stays until: gpujobs down")
        return controller.up(settings, _START_S).url

    def _before_renting(self, signal: Signals) -> None:
        self._came.append(signal)
        self._reporter.say("nothing is rented yet; ending once the controller has answered")

    def _detached(self, run_id: str, flow_run_id: str) -> int:
        self._out.value({"run_id": run_id, "flow_run_id": flow_run_id})
        self._out.text(f"run {run_id} goes on by itself; follow it: gpujobs logs -f {run_id}")
        self._out.text(f"stop it: gpujobs cancel {run_id}")
        return 0
