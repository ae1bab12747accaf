"""Commands in forks of one process that has imported them all: what their imports cost is paid once, not each time."""

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_REQUEST_BYTES = 1 << 17


class Forks:
    """The process that forks, as its callers see it. Thread-safe."""

    def __init__(self, requests: socket.socket) -> None:
        """Take our end of the socket that it reads."""
        self._requests, self._lock = requests, threading.Lock()

    def run(
        self, args: Sequence[str], *, folder: Path, env: Mapping[str, str], timeout_s: float
    ) -> "subprocess.CompletedProcess[str]":
        """Run `gpujobs` with these arguments to its end, as `subprocess.run` does; raises TimeoutExpired as it does."""
        reading, writing = zip(*(os.pipe() for _ in ("told", "out", "err")), strict=True)
        request = json.dumps({"args": list(args), "folder": str(folder), "env": dict(env)}).encode()
        with self._lock:
            socket.send_fds(self._requests, [request], writing)
        for end in writing:
            os.close(end)
        told, out, err = (os.fdopen(end, encoding="utf-8") for end in reading)
        with told, out, err, ThreadPoolExecutor(2) as readers:
            pid = int(told.readline())
            late = threading.Event()
            killer = threading.Timer(timeout_s, _kill, [pid, late])
            killer.start()
            texts = list(readers.map(lambda file: file.read(), (out, err)))
            code = int(told.readline())
            killer.cancel()
            killer.join()
        if late.is_set():
            raise subprocess.TimeoutExpired(["gpujobs", *args], timeout_s, *texts)
        return subprocess.CompletedProcess(["gpujobs", *args], code, *texts)


def _kill(pid: int, late: threading.Event) -> None:
    late.set()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def forking() -> Iterator[Forks]:
    """Have such a process for as long as the block runs."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pipe = subprocess.PIPE  # what Python makes of its streams at the start is then right for a fork's, too
    with subprocess.Popen([sys.executable, __file__], stdin=theirs, stdout=pipe, stderr=pipe) as process:
        theirs.close()
        with ours:  # it ends when nobody can ask any more
            yield Forks(ours)
        assert process.wait(60) == 0


def serve(requests: socket.socket) -> None:
    """Fork for each request; returns in each fork alone, which then is the process that was asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        request, ends, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 3)
        if not request:
            sys.exit()
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            told, out, err = ends
            _wait_in_the_parent(os.fdopen(told, "w"), (out, err))
            _become(json.loads(request), out, err)
            return
        for end in ends:
            os.close(end)


def _wait_in_the_parent(told: IO[str], streams: Sequence[int]) -> None:
    """Fork; the parent tells the child's pid and how it ended, and ends; returns in the child."""
    if pid := os.fork():
        for end in streams:
            os.close(end)
        print(pid, file=told, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=told, flush=True)
        os._exit(0)
    told.close()


def _become(request: Mapping[str, object], out: int, err: int) -> None:
    devnull = os.open(os.devnull, os.O_RDONLY)
    for stream, end in enumerate((devnull, out, err)):
        os.dup2(end, stream)
        os.close(end)
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[arg-type] # it was made above
    sys.argv = ["gpujobs", *request["args"]]  # type: ignore[misc] # likewise


if __name__ == "__main__":
    import gpujobs.cli
    from gpujobs.__main__ import main

    for module in pkgutil.iter_modules(gpujobs.cli.__path__):
        importlib.import_module(f"gpujobs.cli.{module.name}")
    gc.collect()
    gc.freeze()  # what is never looked at again is never copied
    with socket.socket(fileno=os.dup(0)) as asked:
        serve(asked)
    sys.exit(main())
