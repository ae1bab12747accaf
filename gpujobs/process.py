"""Background processes by their pid, told apart from later ones of the same pid by when they started; and this one."""

import gc
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

_STAT_STARTED = 19  # of the fields behind the name in /proc/PID/stat; see proc(5), field 22


def started(pid: int) -> str:
    """Say when process `pid` started, in the system's own way; "" where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return shown.stdout.strip()
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[_STAT_STARTED]


def alive(pid: int, since: str) -> bool:
    """Say whether process `pid` lives and is the one that started at `since`."""
    return bool(since) and started(pid) == since


def driver_died(driver: str) -> bool:
    """Say whether a run's driver ("host:pid:nonce") was a process of this machine and is none any more."""
    name, _, rest = driver.partition(":")
    pid = rest.partition(":")[0]
    return name == socket.gethostname() and pid.isdecimal() and not started(int(pid))


def end(pid: int, since: str, *, within_s: float) -> None:
    """Send TERM to the process, then KILL after `within_s`; one that is gone, or is another by now, is left alone."""
    for number, patience_s in ((signal.SIGTERM, within_s), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience_s
        if not alive(pid, since):
            return
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        while alive(pid, since) and time.monotonic() < deadline:
            time.sleep(0.02)
            _reap_child(pid)


def _reap_child(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def collect_seldom() -> None:
    """Leave what this process has made so far out of Python's search for garbage, and search the rest less often.

    A Prefect server has a million objects from its imports: each full search of them takes 0.3 s, in which it answers
    nobody, and all searches together were a tenth of what a run cost it (measured).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
