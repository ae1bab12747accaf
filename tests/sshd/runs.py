"""What the tests of the runner do with it, on any machine."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

from gpujobs.clock import StopToken
from gpujobs.runner import ExitRecord, Runner, RunSpec
from gpujobs.shell import Shell, quote_path

NO_STOP = StopToken()
LINES = 'i=0; while [ $i -lt 3000 ]; do echo "line $i ${PAD}"; i=$((i + 1)); [ $((i % 100)) != 0 ] || sleep 0.05; done'


def spec(run: str, **more: Any) -> RunSpec:
    return RunSpec(**{"run": run, "max_duration_s": 60, "grace_s": 2, **more})


def begin(runner: Runner, run: str, **more: Any) -> None:
    runner.install(spec(run, **more))
    assert runner.start()


def log_of(runner: Runner) -> bytes:
    came = bytearray()
    size = runner.follow(0, came.extend, stop=NO_STOP)
    assert size == len(came)
    return bytes(came)


def end_of(runner: Runner) -> ExitRecord:
    log = log_of(runner)
    record = runner.status().exit
    assert record is not None
    assert (record.log_size, record.sha256) == (len(log), hashlib.sha256(log).hexdigest())
    return record


def until(true: Callable[[], object], *, within_s: float = 60.0) -> None:
    ends_at = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < ends_at, "it did not come true in time"
        time.sleep(0.05)


def says(runner: Runner, text: bytes) -> Callable[[], bool]:
    command = f"cat {quote_path(runner.folder)}/output.log"
    return lambda: text in runner._shell.check(command, what="looking at the log")


def pids_of(shell: Shell, runner: Runner) -> dict[str, int]:
    folder = quote_path(runner.folder)
    names = ("pid", "job")
    said = shell.check(" && ".join(f"cut -d ' ' -f 1 {folder}/{name}" for name in names), what="reading pids").split()
    return dict(zip(names, map(int, said), strict=True))
