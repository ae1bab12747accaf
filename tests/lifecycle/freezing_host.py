"""A host as a process: drives a run, then resumes and reaps with others until it is over; freezes itself once.

Arguments: the run's id, and the moment at which to freeze: a phase, `output`, or `never`.
"""

import os
import signal
import sys
import time
from dataclasses import replace

from gpujobs import reaper, settings
from gpujobs.clock import StopToken
from gpujobs.errors import LetGo
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED
from gpujobs.lifecycle import execute
from tests.cloud import Memory
from tests.conftest import QUICK


class Freezing(Memory):
    """A reporter that stops its own process, once, at a moment of the run."""

    moment = "never"

    def phase(self, name: str, detail: str) -> None:
        self._freeze_at(name)
        super().phase(name, detail)

    def output(self, data: bytes) -> None:
        self._freeze_at("output")
        super().output(data)

    def _freeze_at(self, moment: str) -> None:
        if moment == self.moment:
            Freezing.moment = "never"
            os.kill(os.getpid(), signal.SIGSTOP)


def drive(host: Host, run_id: str) -> None:
    try:
        outcome = execute(host, run_id, stop=StopToken(), reporter=Freezing(), unended=True)
        print(outcome.state, outcome.error, flush=True)  # noqa: T201
    except LetGo as error:
        print("refused", error, flush=True)  # noqa: T201


def main(run_id: str, moment: str) -> None:
    Freezing.moment = moment
    # Frozen amid the output, its guard does not wake in time either: what the ledger refuses is all that holds it back.
    guard_s = 3600.0 if moment == "output" else QUICK.guard_s
    with Host.open(settings.load(), timing=replace(QUICK, lease_s=4.0, guard_s=guard_s)) as host:
        while host.ledger.get_run(run_id).state not in ENDED:
            for found in {run_id, *reaper.recover(host)}:
                drive(host, found)
            reaper.reap(host, yes=False, reporter=Memory())
            time.sleep(0.2)


main(*sys.argv[1:])
