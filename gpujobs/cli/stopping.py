"""What Ctrl-C, TERM and a closed terminal mean for a run that is being followed, and saying so."""

import sys
from collections.abc import Callable
from signal import SIGHUP, SIGINT, Signals

from gpujobs.cli.interrupts import Interrupts
from gpujobs.errors import Cancelled
from gpujobs.progress import TerminalReporter

_QUESTION = "Cancel the run, or detach and leave it running? [c/d] "


class Stopping:
    """Turns signals into a cancel, a second warning, or leaving; one for each followed run."""

    def __init__(
        self, run_id: str, reporter: TerminalReporter, *, cancel: Callable[[], None] | None, can_detach: bool
    ) -> None:
        """Take what cancels the run (None: that was done), and whether it would go on without this process."""
        self._run_id, self._reporter, self._cancel, self._can_detach = run_id, reporter, cancel, can_detach
        self._asked = 1 if cancel is None else 0
        self.detached = False

    def react(self, signal: Signals, interrupts: Interrupts) -> bool:
        """React to one signal; True when this command shall no longer wait for the run."""
        if self._asked == 0 and self._can_detach and self._wants_to_detach(signal, interrupts):
            self.detached = True
            return True
        self._asked += 1
        if self._asked == 1 and self._cancel:
            self._reporter.say(f"cancelling run {self._run_id}: its work is stopped, its machine is released")
            self._cancel()
        elif self._asked == 2:  # noqa: PLR2004 - the second time
            self._reporter.say("the machine is still being released; once more leaves it to the reaper")
        return self._asked > 2  # noqa: PLR2004 - the third time

    def left(self) -> Cancelled:
        """Give the error that a command ends with which did not wait for the release."""
        return Cancelled(
            f"left while run {self._run_id} was being cancelled; its machine may still cost money.\n"
            f"To end it: gpujobs cancel {self._run_id}, or: gpujobs reap"
        )

    def _wants_to_detach(self, signal: Signals, interrupts: Interrupts) -> bool:
        if signal == SIGHUP:
            return True
        if signal != SIGINT or not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        return interrupts.ask(_QUESTION, ("c", "cancel", "d", "detach")) in ("d", "detach", "")
