"""A Prefect server that counts its calls, and what runs its flows: started, asked, weighed and ended."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from gpujobs import controller, prefect_database

TICKS = os.sysconf("SC_CLK_TCK")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
Scope = MutableMapping[str, Any]


def counted() -> Any:
    """Make the Prefect server, with a page /_count of how often each path was called since it was asked."""
    from gpujobs.prefect_server import create_app  # noqa: PLC0415 - only in the server's process

    inner, counts = create_app(), Counter[str]()

    async def app(scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] == "http" and scope["path"] == "/_count":
            body = json.dumps(counts).encode()
            counts.clear()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})
            return
        if scope["type"] == "http":
            counts[f"{scope['method']} {_UUID.sub('ID', scope['path'])}"] += 1
        await inner(scope, receive, send)

    return app


@dataclass(kw_only=True)
class Place:
    """A Prefect server and what runs its flows."""

    home: Path
    environment: dict[str, str]
    port: int = field(default_factory=lambda: _free_port())  # noqa: PLW0108 - it stands further down
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def api(self) -> str:
        """Its API."""
        return f"http://127.0.0.1:{self.port}/api"

    def spawn(self, name: str, *arguments: str, **more: str) -> None:
        """Start one of its processes."""
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments], env={**self.environment, **more}, stdout=log, stderr=log, cwd=self.home
            )

    def start_server(self) -> None:
        """Start it, with the settings of our own."""
        prefect_database.lay_out(self.home / "prefect" / "prefect.db")
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning"]
        settings = controller.server_settings(self.port)
        self.spawn("server", "-m", "uvicorn", "--factory", "prefect_place:counted", *options, **settings)
        until(self._answers, 180)

    def _answers(self) -> bool:
        with suppress(requests.RequestException):
            return requests.get(f"{self.api}/health", timeout=2).ok
        return False

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Call the API, again while it is too busy."""
        while (reply := requests.request(method, self.api + path, json=body, timeout=120)).status_code == 503:
            time.sleep(0.3)
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def calls(self) -> Mapping[str, int]:
        """Give what was called since the last time, without what asks for work: that is as often for no run."""
        found: Mapping[str, int] = requests.get(f"http://127.0.0.1:{self.port}/_count", timeout=10).json()
        ours = ("/count", "/health", "filter")
        return {path: n for path, n in found.items() if "get_scheduled" not in path and not path.endswith(ours)}

    def cpu_s(self) -> Mapping[str, float]:
        """Give the CPU seconds of the server and of the worker, with all children, those that have ended too."""
        return {name: sum(_cpu_s(pid) for pid in family(process.pid)) for name, process in self.processes.items()}

    def memory_mb(self) -> float:
        """Give the memory of what runs the flows, with its processes."""
        return sum(_memory_mb(pid) for pid in family(self.processes["worker"].pid))

    def end(self) -> None:
        """End its processes, and those that a worker leaves behind."""
        families = [pid for process in self.processes.values() for pid in family(process.pid)[1:]]
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
        for pid in families:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def family(pid: int) -> list[int]:
    """Give the process, and all that descend from it."""
    found = [pid]
    for parent in found:
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _cpu_s(pid: int) -> float:
    """CPU of a process, and of its children that have ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(value) for value in fields[11:15]) / TICKS
    return 0.0


def _memory_mb(pid: int) -> float:
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(done: Callable[[], object], within_s: float, *, every_s: float = 0.2) -> None:
    """Wait until it is `done`. Raises TimeoutError."""
    deadline = time.monotonic() + within_s
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(every_s)
