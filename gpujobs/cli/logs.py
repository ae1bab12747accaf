"""logs, wait: what a run's job wrote, and waiting for its begin and end."""

from argparse import Namespace
from pathlib import Path
from signal import Signals

from gpujobs.cli.flow_watch import EndedElsewhere
from gpujobs.cli.interrupts import Interrupts
from gpujobs.cli.opening import find_run, ledger_of, load_settings
from gpujobs.cli.output import Output
from gpujobs.cli.summary import show_end, summary
from gpujobs.cli.waiting import find_begun
from gpujobs.cli.watching import follow_to_end
from gpujobs.clock import SystemClock
from gpujobs.errors import BadInput, Cancelled
from gpujobs.follow import Follower
from gpujobs.ledger import Ledger
from gpujobs.ledger_rows import Run
from gpujobs.progress import TerminalReporter
from gpujobs.settings import Settings
from gpujobs.store_folder import folder_of

_PIECE_BYTES = 2**18


def logs(args: Namespace, out: Output) -> int:
    """Print what the job wrote; with --follow until the run ends, whoever drives it meanwhile."""
    found = load_settings()
    with ledger_of(found) as ledger:
        if args.follow:
            if args.attempt is not None:
                raise BadInput("--attempt names a log that is whole; leave it out to follow the newest")
            reporter = _Piped(out)
            try:
                run = find_begun(found, ledger, args.run, reporter)
            except EndedElsewhere as end:
                return end.tell(out)
            run, log = _follow_all(ledger, run, found, reporter)
        else:
            run = find_run(ledger, args.run)
            log = _log(ledger, run, folder_of(found, run), args.attempt)
            if not out.json:
                _copy(log, _Piped(out))
    if out.json:
        text = log.read_bytes().decode("utf-8", errors="replace") if log.exists() else ""
        out.value({"run_id": run.id, "state": run.state, "log": str(log), "output": text})
    return 0


def wait(args: Namespace, out: Output) -> int:
    """Wait for a run's end; the exit code is the run's own."""
    found = load_settings()
    with ledger_of(found) as ledger:
        reporter = _Silent()
        try:
            run = find_begun(found, ledger, args.run, reporter)
        except EndedElsewhere as end:
            return end.tell(out)
        ended = _follow(ledger, run, found.runs / run.id, reporter)
        if ended is None:
            raise Cancelled(f"no longer waiting; run {run.id} goes on")
        value = summary(ended, ledger, found)
    out.value(value)
    show_end(ended, value, out)
    return ended.exit_code or 0


class _Piped(TerminalReporter):
    """Tells what the job writes; ends the command once nobody reads it. With --json, it is all in the answer."""

    def __init__(self, out: Output) -> None:
        super().__init__()
        self._json = out.json

    def output(self, data: bytes) -> None:
        """Hand on what the job wrote."""
        if not self._json:
            super().output(data)
        if self.cut:
            raise BrokenPipeError


class _Silent(TerminalReporter):
    """Tells the phases, and not what the job writes."""

    def output(self, data: bytes) -> None:
        """Leave it in the log."""


def _follow(ledger: Ledger, run: Run, folder: Path, reporter: TerminalReporter) -> Run | None:
    """Follow to the end; None once somebody interrupts, or nobody reads what we print."""
    follower = Follower(ledger, run.id, folder=folder, reporter=reporter, clock=SystemClock())
    with Interrupts() as interrupts:
        return follow_to_end(follower, interrupts, react=_leave, reporter=reporter)


def _follow_all(ledger: Ledger, run: Run, found: Settings, reporter: TerminalReporter) -> tuple[Run, Path]:
    """Follow what comes here; where another host drove the run, print at its end what the store has beyond that."""
    own = found.runs / run.id / "output.log"
    ended = _follow(ledger, run, own.parent, reporter)
    if ended is None:
        return run, own
    log = folder_of(found, ended) / "output.log"
    if log != own:
        _copy(log, reporter, skip=own.stat().st_size if own.exists() else 0)
    return ended, log


def _leave(_: Signals) -> bool:
    return True


def _log(ledger: Ledger, run: Run, folder: Path, attempt: int | None) -> Path:
    numbers = [row.number for row in ledger.attempts(run.id)]
    if attempt is None or attempt == max(numbers, default=0):
        return folder / "output.log"
    if attempt not in numbers:
        raise BadInput(f"run {run.id} has no attempt {attempt}; it has made {len(numbers)}")
    return folder / f"attempt-{attempt}.log"


def _copy(log: Path, reporter: TerminalReporter, skip: int = 0) -> None:
    try:
        with log.open("rb") as file:
            file.seek(skip)
            while data := file.read(_PIECE_BYTES):
                reporter.output(data)
    except FileNotFoundError:
        reporter.say("nothing was written yet")
