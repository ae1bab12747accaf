"""Our own Prefect server and the host that runs recipes, as two background processes; and which server to talk to.

Imports no Prefect: a command must not pay two seconds for it. What is said to a server is `prefect_api`'s.
"""

import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

from gpujobs import backends, process
from gpujobs.controller_record import Controller, record_path, status
from gpujobs.crash import Point
from gpujobs.errors import BadInput, GpujobsError
from gpujobs.prefect_database import lay_out
from gpujobs.prefect_login import login
from gpujobs.settings import Settings, private_folder, private_opener

_NO_STRANGERS = "content-security-policy:connect-src 'self' data: blob:"  # its pages would ask a maker of statistics
_STOP_S = 12.0  # the host lets go of its runs in this time
_CHILDREN: list["subprocess.Popen[bytes]"] = []  # a Popen that is collected while its process lives warns


def up(settings: Settings, wait_s: float = 90.0) -> Controller:
    """Start what is missing of the controller, once however many ask; returns when its API answers.

    Raises GpujobsError, with the place of its output, where it does not within `wait_s`.
    """
    with _locked(settings):
        found = status(settings)
        if found is None or not _serves(found) or not found.worker_alive:
            found = _start(settings, found)
    _await_api(settings, found, time.monotonic() + wait_s)
    return found


def down(settings: Settings) -> bool:
    """End our processes, the host first: it lets go of its runs, whose machines work on. False: there were none."""
    with _locked(settings):
        found = status(settings)
        if found is None:
            return False
        lived = found.worker_alive or bool(found.server_pid and found.server_alive)
        _end(found)
        record_path(settings).unlink()
    return lived


def check_environment(settings: Settings, names: Sequence[str]) -> None:
    """Refuse where our host sees another token, API or secret than this process does; raises BadInput.

    Args:
        settings: whose controller.
        names: of the variables whose values a recipe wants.
    """
    found = status(settings)
    if found is None or not found.worker_alive:
        return
    places = _account_names("API_URL", "NAMESPACE") | {"GPUJOBS_DATABASE_URL", "GPUJOBS_OWNER"}
    values = {name for name in (*_account_names("TOKEN"), *names) if os.environ.get(name)}
    seen = _digests(bytes.fromhex(found.salt), places | values)
    for name in sorted(places | values):
        if seen.get(name) != found.environment.get(name):
            raise BadInput(
                f"the controller was started with another {name} than this shell has; "
                "run gpujobs down, then submit again (running jobs go on)"
            )


def _serves(found: Controller) -> bool:
    """Whether its server is the one to use: the user's own where he names one, else ours, and alive."""
    theirs = login().get("PREFECT_API_URL")
    return found.url == theirs if theirs else bool(found.server_pid) and found.server_alive


def _start(settings: Settings, found: Controller | None) -> Controller:
    if found and not _serves(found):
        _end(found)
        found = None
    server = (found.server_pid, found.server_started) if found else (0, "")
    url = found.url if found else login().get("PREFECT_API_URL", "")
    if not url:
        url, server = _start_server(settings)
    worker = _start_worker(settings, url, own=bool(server[0]))
    salt = secrets.token_bytes(16)
    made = Controller(
        url=url,
        server_pid=server[0],
        server_started=server[1],
        worker_pid=worker[0],
        worker_started=worker[1],
        salt=salt.hex(),
        environment=_digests(salt, os.environ),
    )
    _write(settings, made)
    return made


def _start_server(settings: Settings) -> tuple[str, tuple[int, str]]:
    """Start Prefect's server as its own `prefect server start --background` does, without the command's imports."""
    lay_out(private_folder(settings.home / "prefect") / "prefect.db")
    port = _free_port()
    environment = {**_without_prefect(settings), **server_settings(port)}
    for name in _account_names("TOKEN"):
        environment.pop(name, None)  # the server needs no cloud's token
    return f"http://127.0.0.1:{port}/api", _spawn(settings, "server", server_command(port), environment)


def server_command(port: int) -> Sequence[str]:
    """Give the arguments of Python that start our own Prefect server."""
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--header", _NO_STRANGERS]
    return ["-m", "uvicorn", "--factory", "gpujobs.prefect_server:create_app", *options]


def server_settings(port: int) -> Mapping[str, str]:
    """Give the variables that our own Prefect server is started with."""
    return {
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # leases outlive this process, and so do the places that they hold: those are in the database
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # tasks are written together, not each of a run's 21 states alone: SQLite has one writer at a time
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
        # in whole seconds: a part of one is read as 0, and the server never rests
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        # no other site that is open in the user's browser may talk to it
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}",
    }


def _start_worker(settings: Settings, url: str, *, own: bool) -> tuple[int, str]:
    environment = _without_prefect(settings) if own else dict(os.environ)
    environment |= {"PREFECT_API_URL": url, "GPUJOBS_HOME": str(settings.home.absolute())}
    return _spawn(settings, "worker", ["-m", "gpujobs", "serve"], environment)


def _without_prefect(settings: Settings) -> dict[str, str]:
    """Our environment, but with a Prefect of our own: nothing that was set for another server counts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "PREFECT_HOME": str(private_folder(settings.home / "prefect").absolute()), "DO_NOT_TRACK": "1"}


def _spawn(settings: Settings, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    here = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH", "")]))
    with open(_log(settings, name), "ab", opener=private_opener) as log:
        child = subprocess.Popen(
            [sys.executable, "-P", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**environment, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            cwd=_folder(settings),  # Prefect reads settings from the folder that it is started in
            start_new_session=True,
            umask=0o077,  # Prefect makes its files as this says
        )
    _CHILDREN.append(child)
    return child.pid, process.started(child.pid)


def _await_api(settings: Settings, found: Controller, deadline: float) -> None:
    import requests  # noqa: PLC0415 - not needed to find or end a controller

    while time.monotonic() < deadline:
        if not found.server_alive or not found.worker_alive:
            name = "worker" if found.server_alive else "server"
            raise GpujobsError(f"the controller's {name} ended at once; its output is in {_log(settings, name)}")
        try:
            if requests.get(f"{found.url}/health", timeout=2).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise GpujobsError(f"the Prefect API at {found.url} does not answer; see {_log(settings, 'server')}")


def _end(found: Controller) -> None:
    process.end(found.worker_pid, found.worker_started, within_s=_STOP_S)
    if found.server_pid:
        process.end(found.server_pid, found.server_started, within_s=_STOP_S)
    for child in [child for child in _CHILDREN if child.pid in {found.worker_pid, found.server_pid}]:
        child.wait()
        _CHILDREN.remove(child)


def _digests(salt: bytes, names: Iterable[str]) -> Mapping[str, str]:
    """Give a salted digest of each variable that is set; an empty one counts as not set."""
    return {
        name: blake2b(os.fsencode(value), key=salt, digest_size=16).hexdigest()
        for name in names
        if (value := os.environ.get(name))
    }


def _account_names(*parts: str) -> set[str]:
    return {f"{backend.upper()}_{part}" for backend in backends.names() for part in parts}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _folder(settings: Settings) -> Path:
    return private_folder(settings.home / "controller")


def _log(settings: Settings, name: str) -> Path:
    return _folder(settings) / f"{name}.log"


def _write(settings: Settings, made: Controller) -> None:
    """Replace the record at one blow, so that nobody reads half of one."""
    path = record_path(settings)
    draft = path.with_suffix(".new")
    with open(draft, "w", encoding="utf-8", opener=private_opener) as file:
        json.dump(asdict(made), file)
    with Point("file", "put in place", path.name):
        draft.replace(path)


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    with open(_folder(settings) / "lock", "a", opener=private_opener) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
