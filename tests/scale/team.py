"""A scaled-out gpujobs on loopback, started by the scripts of `deploy/` as a team would start it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.servers import free_port

START = Path(__file__).parents[2] / "deploy" / "start.sh"
_READY_S = 300.0


@dataclass
class Team:
    """The parts that run; each has a log in `folder`."""

    folder: Path
    environment: Mapping[str, str]
    parts: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    apis: list[str] = field(default_factory=list)

    def start(self, name: str, *command: str, **more: str) -> None:
        """Start a part by deploy/start.sh; again where it had ended."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        home = {"PREFECT_HOME": str(self.folder / f"{name}-prefect")}
        environment = {**self.environment, "PATH": path, **home, **more}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.parts[name] = subprocess.Popen(
                ["sh", START, *command], env=environment, cwd=self.folder, stdout=log, stderr=log
            )

    def start_api(self, number: int) -> None:
        """Start an API server, on the port that it had before."""
        if number == len(self.apis):
            self.apis.append(f"http://127.0.0.1:{free_port()}/api")
        port = self.apis[number].split(":")[2].removesuffix("/api")
        self.start(f"api-{number}", "api", port)

    def start_host(self, number: int) -> None:
        """Start a host with a home of its own, which talks to one of the servers."""
        home = str(self.folder / f"home-{number}")
        self.start(f"host-{number}", "host", PREFECT_API_URL=self.apis[number % len(self.apis)], GPUJOBS_HOME=home)

    def finish(self, name: str) -> None:
        """Wait for a part that ends by itself."""
        assert self.parts[name].wait(timeout=_READY_S) == 0, self.log(name)

    def await_apis(self) -> None:
        """Wait until every server answers."""
        deadline = time.monotonic() + _READY_S
        for number, api in enumerate(self.apis):
            while not _answers(api):
                assert self.parts[f"api-{number}"].poll() is None, self.log(f"api-{number}")
                assert time.monotonic() < deadline, self.log(f"api-{number}")
                time.sleep(0.2)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a part, and wait for its end."""
        process = self.parts.pop(name)
        process.send_signal(number)
        process.wait(timeout=60)

    def log(self, name: str) -> str:
        """Give the last lines that a part wrote."""
        return (self.folder / f"{name}.log").read_text()[-4000:]

    def end(self) -> None:
        """End all parts, the hosts first."""
        for name in sorted(self.parts, reverse=True):
            self.parts[name].terminate()
        for process in self.parts.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(api: str) -> bool:
    try:
        return requests.get(f"{api}/health", timeout=2).ok
    except requests.RequestException:
        return False
