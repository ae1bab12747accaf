"""Following a run that another process drives, by what that process leaves behind: the ledger and the run's folder."""

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol

from gpujobs.clock import Clock
from gpujobs.errors import BadInput, GpujobsError
from gpujobs.ledger_rows import ENDED, Run
from gpujobs.models import Reporter
from gpujobs.news import NEWS, NewsReader

LONELY = timedelta(seconds=30)  # a run without a driver for so long is worth a word
GIVEN_UP = timedelta(minutes=30)  # … and for so long is worth no more waiting
_UNTOLD = frozenset({"", "provision", "snapshot", "release"})  # their driver tells of no progress in them
_PIECE_BYTES = 2**18
_PIECES_A_LOOK = 16  # so that a job that writes without end keeps nobody from looking at the run


class Runs(Protocol):
    """What of the ledger is needed."""

    def get_run(self, ref: str) -> Run:
        """Give the run."""
        ...


class LogTail:
    """Reads a log that grows, and that an attempt's successor replaces by a new one of the same name."""

    def __init__(self, path: Path) -> None:
        """Begin at the log's start; it need not be there yet."""
        self._path = path
        self._file: BinaryIO | None = None

    def read(self) -> bytes:
        """Give the next bytes, at most 256 KiB; b"" when there are none now."""
        if self._file is None and not self._open():
            return b""
        data = self._next()
        if not data and self._replaced():
            self.close()
            return self.read()
        return data

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> bool:
        with suppress(FileNotFoundError):
            self._file = self._path.open("rb", buffering=0)
        return self._file is not None

    def _next(self) -> bytes:
        return (self._file.read(_PIECE_BYTES) or b"") if self._file else b""

    def _replaced(self) -> bool:
        """Say whether the path is another file by now; one that is gone will come again."""
        try:
            return self._file is not None and not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False


class Follower:
    """Hands what happens to one run on to a reporter, each time that it is asked to look."""

    def __init__(
        self,
        runs: Runs,
        run_id: str,
        *,
        folder: Path,
        reporter: Reporter,
        clock: Clock,
        absent: Callable[[], None] | None = None,
    ) -> None:
        """Follow the run: its output from the start of its newest attempt's log, its news from now on.

        Args:
            runs: the ledger.
            run_id: the run's whole id.
            folder: the run's own folder.
            reporter: who is told.
            clock: tells how long a phase takes, and how long nobody has driven the run.
            absent: called at each look while the ledger does not know the run yet; raises once it never will.
        """
        self._runs, self._run_id, self._reporter, self._clock, self._absent = runs, run_id, reporter, clock, absent
        self._log = LogTail(folder / "output.log")
        self._news = NewsReader(folder / NEWS, reporter, from_now=True)
        self._began: tuple[str, datetime] = ("", clock.now())
        self._lonely_since: datetime | None = None
        self._said_lonely = False
        self._news_came = False

    def look(self) -> Run | None:
        """Hand on what is new; give the run once it has ended and all that its job wrote was handed on.

        Raises GpujobsError when no process has driven it for half an hour, so that it would never end.
        """
        run = self._run()  # before the log: what is written before the end is then seen
        if run is None:
            return None
        if run.state in ENDED:
            while self._hand_on_output() or self._news.look():
                pass
            return run
        quiet = not self._hand_on_output()
        self._news_came |= self._news.look()
        self._tell_phase(run, quiet=quiet)
        self._watch_driver(run)
        return None

    def close(self) -> None:
        """Close the log; idempotent."""
        self._log.close()

    def _run(self) -> Run | None:
        try:
            return self._runs.get_run(self._run_id)
        except BadInput:
            if self._absent is None:
                raise
            self._absent()
            return None

    def _hand_on_output(self) -> bool:
        for some in range(_PIECES_A_LOOK):
            data = self._log.read()
            if not data:
                return some > 0
            self._reporter.output(data)
        return True

    def _tell_phase(self, run: Run, *, quiet: bool) -> None:
        now = self._clock.now()
        if run.phase and run.phase != self._began[0]:
            self._began = (run.phase, now)
            if not self._news_came:  # we came late: its driver told it before
                self._reporter.phase(run.phase, run.detail)
        elif quiet and (run.phase in _UNTOLD or (run.phase != "run" and not self._news_came)):
            waited_s = int((now - self._began[1]).total_seconds())
            self._reporter.progress(f"waiting: {run.phase or run.state}", waited_s, None)

    def _watch_driver(self, run: Run) -> None:
        now = self._clock.now()
        if run.lease_until is not None and run.lease_until > now:
            self._lonely_since, self._said_lonely = None, False
            return
        self._lonely_since = self._lonely_since or now
        alone = now - self._lonely_since
        if alone > LONELY and not self._said_lonely:
            self._said_lonely = True
            self._reporter.note(f"no process drives run {run.id} now; to go on with it: gpujobs up")
        if alone > GIVEN_UP:
            raise GpujobsError(
                f"no process has driven run {run.id} for {int(alone.total_seconds() // 60)} minutes; "
                f"go on with it: gpujobs up, or end it: gpujobs cancel {run.id}"
            )
