"""cancel: stop a run from anywhere, and see to it that its machine is released."""

import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from signal import Signals

from gpujobs import prefect_api, process
from gpujobs.cli.flow_watch import EndedElsewhere, FlowRunWatch
from gpujobs.cli.interrupts import Interrupts, in_background
from gpujobs.cli.opening import find_run, load_settings
from gpujobs.cli.output import Output
from gpujobs.cli.stopping import Stopping
from gpujobs.cli.summary import show_end, summary
from gpujobs.cli.waiting import Waiting, await_begun, find_waiting
from gpujobs.clock import StopToken
from gpujobs.errors import BadInput, Busy, Cancelled, GpujobsError
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED, Run
from gpujobs.progress import TerminalReporter

_PATIENCE_S = 300.0  # a release is confirmed, or given to the reaper, well before
_UNSTARTED_S = 10.0  # so long, a run that its controller has not begun is left to it
_LOOK_EVERY_S = 0.3


def cancel(args: Namespace, out: Output) -> int:
    """Stop a run and wait for its end; a run that nobody drives is torn down by this process."""
    with Host.open(load_settings()) as host:
        reporter = out.reporter()
        try:
            run = find_run(host.ledger, args.run)
        except BadInput as error:
            one = find_waiting(host.settings, host.ledger, args.run, error)
            try:
                begun = _cancel_waiting(host, one, reporter)
            except EndedElsewhere as end:
                end.tell(out)
                return 0
            if begun is None:
                out.value({"run_id": one.run_id, "name": one.name, "state": "cancelled", "cost_cny": 0.0})
                out.text(f"run {one.run_id} ({one.name}) was cancelled before it began; nothing was rented")
                return 0
            run = begun
        if run.state in ENDED:
            reporter.say(f"run {run.id} is over already ({run.state})")
        else:
            request_cancel(host, run.id, prefect_api.api_url(host.settings), run.flow_run_id)
            reporter.say(f"cancelling run {run.id}: its work is stopped, its machine is released")
            _await_end(host, run, reporter)
        ended = host.ledger.get_run(run.id)
        value = summary(ended, host.ledger, host.settings)
    out.value(value)
    show_end(replace(ended, error="") if ended.state == "cancelled" else ended, value, out)
    return 0


def _cancel_waiting(host: Host, one: Waiting, reporter: TerminalReporter) -> Run | None:
    """Cancel a run that no host had begun; give it where one has begun it meanwhile.

    Raises GpujobsError where Prefect does not hear of it, and what FlowRunWatch raises.
    """
    prefect_api.cancel(one.api, one.flow_run_id)
    with Interrupts() as interrupts:
        try:
            run = await_begun(host.ledger, one.run_id, FlowRunWatch(one.api, one.flow_run_id, reporter), interrupts)
        except Cancelled:
            return None
    if run is None:
        raise Stopping(one.run_id, reporter, cancel=None, can_detach=False).left()
    return run


def request_cancel(host: Host, run_id: str, api: str | None, flow_run_id: str | None) -> None:
    """Ask whoever drives the run, or is about to, to stop: through the ledger, and through Prefect."""
    with suppress(BadInput):  # not begun, so not in the ledger yet
        host.ledger.request_cancel(run_id, host.clock.now())
    if api and flow_run_id:
        with suppress(GpujobsError):  # the ledger's way works without the server
            prefect_api.cancel(api, flow_run_id)


def _await_end(host: Host, run: Run, reporter: TerminalReporter) -> None:
    stopping = Stopping(run.id, reporter, cancel=None, can_detach=False)
    with Interrupts() as interrupts:

        def react(signal: Signals) -> None:
            if stopping.react(signal, interrupts):
                raise stopping.left()

        in_background(interrupts, lambda: _see_to_the_end(host, run, reporter), react=react)


def _see_to_the_end(host: Host, run: Run, reporter: TerminalReporter) -> None:
    """Wait while the run's driver tears it down; where there is none, do it here. Raises GpujobsError past a bound."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < _PATIENCE_S:
        run = host.ledger.get_run(run.id)
        if run.state in ENDED:
            return
        unstarted = run.driver == "" and run.flow_run_id and run.state == "submitted"
        if process.driver_died(run.driver):  # its lease need not be waited out
            host.ledger.release_claim(run.id, run.driver)
            continue
        driven = run.lease_until is not None and run.lease_until > host.clock.now()
        if not driven and not (unstarted and time.monotonic() - began_s < _UNSTARTED_S):
            _tear_down(host, run, reporter)
        time.sleep(_LOOK_EVERY_S)
    raise GpujobsError(f"run {run.id} has not ended yet; see: gpujobs status {run.id}, and: gpujobs machines")


def _tear_down(host: Host, run: Run, reporter: TerminalReporter) -> None:
    from gpujobs import lifecycle  # noqa: PLC0415 - brings paramiko, which a driven run does not need here

    reporter.say(f"nobody drives run {run.id}, so it is torn down here")
    stop = StopToken()
    stop.stop(Cancelled(f"run {run.id} was cancelled"))
    with suppress(Busy):  # somebody has just taken it, and has heard of the cancel
        lifecycle.execute(host, run.id, stop=stop, reporter=reporter, unended=True)
