"""A Prefect server on a port that stays its own, and hosts, each of which can be killed alone."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from fake_server.server import FakeServer
from gpujobs import controller, prefect_database
from gpujobs import settings as gpujobs_settings
from gpujobs.ledger import open_ledger
from gpujobs.settings import Settings
from tests.cloud import Control
from tests.prefect.desk import Desk

_ROOT = Path(__file__).parent.parent.parent


class FixedDesk(Desk):
    """A desk whose API is where the environment says."""

    @property
    def api(self) -> str:
        """The one API."""
        return os.environ["PREFECT_API_URL"]


class Site:
    """The two processes of a controller, as a team would start them by hand."""

    def __init__(self, home: Path) -> None:
        """Start nothing yet."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.api = f"http://127.0.0.1:{self._port}/api"
        self._home = home
        self._server: subprocess.Popen[bytes] | None = None
        self._host: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where the server listens, whenever it lives."""
        return self._port

    def start_server(self) -> None:
        """Start it, and wait until it answers."""
        settings = controller.server_settings(self._port)
        self._server = self._spawn("server", controller.server_command(self._port), settings)
        deadline = time.monotonic() + 120
        while not self._answers():
            assert time.monotonic() < deadline, (self._home / "server.log").read_text()
            time.sleep(0.2)

    def start_host(self, *options: str) -> None:
        """Start it; it makes its pool and its deployment by itself."""
        self._host = self._spawn("host", ["-P", "-m", "gpujobs", "serve", *options], {})

    def kill_server(self) -> None:
        """Kill it, as a machine that loses its power does."""
        self._server = _killed(self._server)

    def kill_host(self) -> None:
        """Kill it."""
        self._host = _killed(self._host)

    @property
    def host_lives(self) -> bool:
        """Whether the host that was started last has not ended."""
        return self._host is not None and self._host.poll() is None

    def _answers(self) -> bool:
        with suppress(requests.RequestException):
            return requests.get(f"{self.api}/health", timeout=2).ok
        return False

    def _spawn(self, name: str, arguments: Sequence[str], more: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, **more, "PYTHONPATH": str(_ROOT), "DO_NOT_TRACK": "1"}
        with (self._home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *arguments], env=environment, stdout=log, stderr=log, cwd=self._home
            )


def _killed(process: "subprocess.Popen[bytes] | None") -> None:
    if process is not None:
        process.kill()
        process.wait()


@contextmanager
def opened(home: Path, fake: FakeServer, *options: str) -> Iterator[tuple[Site, FixedDesk, Control, Settings]]:
    """Start a server and a host, with those options, on an empty home; the environment holds for the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("PREFECT_", "GPUJOBS_"))]:
            patch.delenv(name)
        site = Site(home)
        (home / "prefect").mkdir()
        prefect_database.lay_out(home / "prefect" / "prefect.db")
        ours = {"GPUJOBS_HOME": str(home / "gpujobs"), "GPUJOBS_OWNER": "tester", "XDG_CONFIG_HOME": str(home)}
        theirs = {"PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": site.api}
        for name, value in {**fake.env(), **ours, **theirs}.items():
            patch.setenv(name, value)
        settings = gpujobs_settings.load()
        try:
            site.start_server()
            site.start_host(*options)
            with open_ledger(settings.database_url) as ledger:
                yield site, FixedDesk(settings=settings, ledger=ledger), Control(fake), settings
        finally:
            site.kill_host()
            site.kill_server()
