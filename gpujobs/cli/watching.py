"""Following a run from a command: looking often, and reacting to signals in between."""

from collections.abc import Callable
from signal import Signals

from gpujobs.cli.interrupts import Interrupts
from gpujobs.follow import Follower
from gpujobs.ledger_rows import Run
from gpujobs.progress import TerminalReporter

_LOOK_EVERY_S = 0.15


def follow_to_end(
    follower: Follower, interrupts: Interrupts, *, react: Callable[[Signals], bool], reporter: TerminalReporter
) -> Run | None:
    """Follow until the run has ended; None when `react`, called at each signal, says to leave."""
    try:
        while True:
            if ended := follower.look():
                return ended
            signal = interrupts.wait(_LOOK_EVERY_S)
            if signal is not None:
                reporter.rest()
                if react(signal):
                    return None
    finally:
        reporter.rest()
        follower.close()
