"""--fake: a home of its own, and a fake cloud on this machine as a background process; nothing is rented."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import urlsplit

from gpujobs import process, settings
from gpujobs.cli.output import Output
from gpujobs.errors import GpujobsError

_READY = "fake_server listening on "
_START_S = 30.0
_STOP_S = 10.0
_PATHS = {"AUTODL": "", "MATRIXDC": "/mdc/api/v1"}
_TOKEN, _NAMESPACE = "fake-token", "fake-user"  # the fake's own, in its documentation


class _Server(NamedTuple):
    url: str
    pid: int
    started: str


def enter(out: Output, *, serve: bool, aloud: bool) -> None:
    """Make this process, and those that it starts, see the fake cloud alone.

    Args:
        out: where the warning goes; it is the first line of all.
        serve: whether a cloud is asked, so that the fake must be up.
        aloud: whether the warning is part of the answer; else it goes to standard error.
    """
    warning = "fake cloud on this machine: nothing is rented, nothing is paid"
    if aloud and not out.json:
        print(warning, flush=True)  # noqa: T201
    else:
        out.tell(warning)
    home = settings.private_folder(settings.load().home / "fake")
    os.environ["GPUJOBS_HOME"] = str(home)
    os.environ["GPUJOBS_FAKE"] = "1"
    os.environ["GPUJOBS_DATABASE_URL"] = f"sqlite:///{home.absolute()}/ledger.db"
    _forget_prefect(home)
    if serve:
        _point_at(_running(home) or _start(home, out))


def end(home: Path) -> bool:
    """End the fake cloud of `home` (GPUJOBS_HOME of a --fake process); False where there was none."""
    with _locked(home):
        server = _running(home)
        if server is not None:
            process.end(server.pid, server.started, within_s=_STOP_S)
        _record(home).unlink(missing_ok=True)
    return server is not None


def _forget_prefect(home: Path) -> None:
    """Leave the team's Prefect server out: fake runs have a controller of their own."""
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE"):
        os.environ.pop(name, None)
    os.environ["PREFECT_HOME"] = str(home / "prefect")


def _point_at(server: _Server) -> None:
    for prefix, path in _PATHS.items():
        os.environ[f"{prefix}_API_URL"] = server.url + path
        os.environ[f"{prefix}_TOKEN"] = _TOKEN
        os.environ[f"{prefix}_NAMESPACE"] = _NAMESPACE


def _running(home: Path) -> _Server | None:
    try:
        with _record(home).open(encoding="utf-8") as file:
            value = json.load(file)
        server = _Server(str(value["url"]), int(value["pid"]), str(value["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return server if process.alive(server.pid, server.started) and _answers(server.url) else None


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5):
            return True
    except OSError:
        return False


def _start(home: Path, out: Output) -> _Server:
    with _locked(home):
        if server := _running(home):  # another command was quicker
            return server
        _end_stale_controller(out)
        log = home / "fake.log"
        with open(log, "wb", opener=settings.private_opener) as file:
            child = _spawn(home, file)
        server = _Server(_ready_url(child, log), child.pid, process.started(child.pid))
        with open(_record(home), "w", encoding="utf-8", opener=settings.private_opener) as record:
            json.dump(server._asdict(), record)
        return server


def _spawn(home: Path, log: IO[bytes]) -> "subprocess.Popen[bytes]":
    here = str(Path(settings.__file__).parent.parent)
    kept = {name: value for name, value in os.environ.items() if not name.endswith(("_TOKEN", "_KEY"))}
    path = os.pathsep.join(filter(None, [here, kept.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fake_server", "--port", "0", "--state", str(home / "state")],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**kept, "PYTHONPATH": path},
        start_new_session=True,
    )


def _ready_url(child: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait for the fake's first line; raises GpujobsError with the end of what it said where it does not come."""
    deadline = time.monotonic() + _START_S
    while child.poll() is None and time.monotonic() < deadline:
        text = log.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines(keepends=True):
            if line.startswith(_READY) and line.endswith("\n"):
                return line.removeprefix(_READY).strip()
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        child.kill()
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    raise GpujobsError(f"the fake cloud did not start ({said[0][:300]}); its output is in {log}")


def _end_stale_controller(out: Output) -> None:
    """End a controller whose environment points at a fake that is gone."""
    from gpujobs.controller import down  # noqa: PLC0415 - needed after a fake's death alone

    if down(settings.load()):
        out.tell("the fake cloud had gone, so the controller that used it was ended")


def _record(home: Path) -> Path:
    return home / "fake.json"


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    with open(home / "fake.lock", "a", opener=settings.private_opener) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
