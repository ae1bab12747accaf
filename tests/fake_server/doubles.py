"""Containers without sandbox or SSH, for tests of rules and wire alone. They keep the contract of Containers."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fake_server.spec import CommandRecord, ContainerSpec, Endpoint, Isolation


class QuietContainers:
    """Remembers what it was told. `end_cmd` plays the end of a container's cmd."""

    isolation: Isolation = "unshare"

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        on_command: Callable[[CommandRecord], None],
        on_cmd_exit: Callable[[str, int], None],
    ) -> None:
        self.folder = folder
        self.host = host
        self.on_command = on_command
        self.on_cmd_exit = on_cmd_exit
        self.specs: dict[str, ContainerSpec] = {}
        self.started: list[ContainerSpec] = []
        self.farewells: list[tuple[str, str]] = []
        self.graces: list[float] = []
        self.refuse_to_start = False
        self.may_start = threading.Event()
        self.may_start.set()
        self.sshd_delays: list[float] = []
        self.farewell_timeouts: list[float] = []
        self._lock = threading.Lock()

    def start(self, spec: ContainerSpec, *, sshd_delay_s: float = 0.0) -> Endpoint:
        self.may_start.wait(10)
        if self.refuse_to_start:
            raise OSError("this sandbox does not start")
        with self._lock:
            if spec.name in self.specs:
                raise ValueError(f"{spec.name} runs already")
            self.specs[spec.name] = spec
            self.sshd_delays.append(sshd_delay_s)
            self.started.append(spec)
            return Endpoint(self.host, spec.port or 20000 + len(self.started), "ssh-ed25519 AAAA")

    def stop(self, name: str, *, grace_s: float = 0.0) -> None:
        with self._lock:
            if self.specs.pop(name, None) is not None:
                self.graces.append(grace_s)

    def execute(self, name: str, command: str, *, timeout_s: float) -> int | None:
        if name not in self.specs:
            raise KeyError(name)
        self.farewells.append((name, command))
        self.farewell_timeouts.append(timeout_s)
        return 0

    def running(self) -> Sequence[str]:
        with self._lock:
            return list(self.specs)

    def close(self) -> None:
        with self._lock:
            self.specs.clear()

    def end_cmd(self, name: str, code: int = 0) -> None:
        """Let a container's cmd end by itself."""
        self.on_cmd_exit(name, code)

    def report(self, name: str, command: str, *, code: int = 0, seconds: float = 1.0) -> None:
        """Report a command that ended just now."""
        now = time.time()
        self.on_command(
            CommandRecord(
                machine=name,
                kind="exec",
                command=command,
                started_at=now - seconds,
                ended_at=now,
                exit_code=code,
                bytes_written=3,
            )
        )
