"""One running machine on the loop's thread: its processes, its SSH server, and what it reports."""

import asyncio
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from asyncssh import SSHKey

from fake_server import image
from fake_server.disk_fault import DiskFault
from fake_server.output import HEAD_BYTES, sum_of
from fake_server.processes import Command, Processes
from fake_server.session import Inside
from fake_server.spec import CommandKind, CommandRecord, ContainerSpec, Isolation
from fake_server.sshd import LoginRules, Sshd

LOG = logging.getLogger(__name__)
KILL = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Whom a machine tells: of each command that ended, and that its ``cmd`` ended by itself."""

    on_command: Callable[[CommandRecord], None]
    on_cmd_exit: Callable[[str, int], None]


class Machine:
    """Everything of one machine that lives on the loop. Made and used on the loop's thread alone."""

    def __init__(
        self, spec: ContainerSpec, isolation: Isolation, *, control: socket.socket, runtime: Path, reports: Reports
    ) -> None:
        self.alive, self._stopping = True, False
        self._spec, self._reports, self._runtime = spec, reports, runtime
        self._home = str(spec.disk / "root") if isolation == "none" else "/root"
        self._env = base_environment(spec, home=self._home, bin_folder=runtime if isolation == "none" else None)
        self._processes = Processes(control, on_lost=self._on_lost)
        self._sshd: Sshd | None = None
        self._opening: asyncio.Task[None] | None = None
        self._full_for: set[str] = set()
        self._disk_fault: DiskFault | None = None

    async def open(self, *, sock: socket.socket, key: SSHKey, delay_s: float) -> None:
        """Start ``cmd`` and the SSH server, the latter after the delay and then without waiting for it here."""
        inside = Inside(
            name=self._spec.name,
            home=self._home,
            env=self._env,
            processes=self._processes,
            record=self._report,
        )
        root = self._spec.disk / "root"
        login = LoginRules(self._spec.password, root, self._spec.trouble)
        self._sshd = Sshd(inside, address=sock, key=key, login=login)
        self._disk_fault = DiskFault(self._spec.trouble, tell=self.fill_up)
        await self._disk_fault.open()
        if self._spec.cmd is not None:
            self.run(self._spec.cmd, kind="cmd", on_exit=self._on_cmd_exit)
        if delay_s > 0:
            self._opening = asyncio.create_task(self._open_later(self._sshd, delay_s))
        else:
            await self._sshd.open()

    def run(self, command: str, *, kind: CommandKind, on_exit: Callable[[int], None]) -> int:
        """Start ``bash -c command`` with its output in a file that is only counted; return its number."""
        started_at, output = time.time(), tempfile.TemporaryFile(dir=self._runtime)  # noqa: SIM115 - closed at its end

        def ended(exit_code: int) -> None:
            with output:
                written = sum_of(output)
            self._report(
                CommandRecord(
                    machine=self._spec.name,
                    kind=kind,
                    command=command,
                    started_at=started_at,
                    ended_at=time.time(),
                    exit_code=exit_code,
                    bytes_written=written.size_bytes,
                    sha256=written.sha256,
                    output_head=written.head,
                )
            )
            on_exit(exit_code)

        fds = [os.open(os.devnull, os.O_RDONLY), os.dup(output.fileno()), os.dup(output.fileno())]
        bash = Command(program="/bin/bash", argv=["bash", "-c", command], env=self._env, cwd=self._home)
        return self._processes.spawn(bash, fds, on_exit=ended)

    async def execute(self, command: str, done: Future[int]) -> int:
        """Start a command whose exit code ``done`` gets; return its number."""

        def ended(exit_code: int) -> None:
            if not done.done():
                done.set_result(exit_code)

        return self.run(command, kind="exec", on_exit=ended)

    async def kill(self, number: int) -> None:
        """Kill one command and its process group."""
        self._processes.signal(number, KILL)

    async def fill_up(self, why: str, *, full: bool) -> None:
        """Leave no room on the disks for this reason, or take the reason away; without any, files may grow again."""
        (self._full_for.add if full else self._full_for.discard)(why)
        if self.alive:
            self._processes.limit_files(0 if self._full_for else -1)

    async def hush(self, *, terminate: bool) -> None:
        """Cut the machine off, as when its sshd dies, and if asked send TERM to all that runs in it."""
        self.alive, self._stopping = False, True
        self._close_sshd()
        if self._sshd is not None:
            await self._sshd.wait_closed()
        if terminate:
            self._processes.terminate()

    async def close(self) -> None:
        """Let the first process end, and everything with it."""
        self._processes.close()

    async def _open_later(self, sshd: Sshd, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            await sshd.open()
        except OSError:
            LOG.exception("the SSH server of %s does not start", self._spec.name)

    def _report(self, record: CommandRecord) -> None:
        """Report a command, without the machine's password wherever it shows."""
        password, hidden = self._spec.password, "[password]"
        self._reports.on_command(
            replace(
                record,
                command=record.command.replace(password, hidden),
                output_head=record.output_head.replace(password.encode(), hidden.encode())[:HEAD_BYTES],
            )
        )

    def _on_cmd_exit(self, exit_code: int) -> None:
        if not self._stopping:
            self._reports.on_cmd_exit(self._spec.name, exit_code)

    def _on_lost(self) -> None:
        if not self._stopping:
            LOG.warning("the first process of %s died", self._spec.name)
        self.alive = False
        self._close_sshd()

    def _close_sshd(self) -> None:
        if self._disk_fault is not None:
            self._disk_fault.close()
        if self._opening is not None:
            self._opening.cancel()
        if self._sshd is not None:
            with suppress(OSError):
                self._sshd.close()


def base_environment(spec: ContainerSpec, *, home: str, bin_folder: Path | None) -> Mapping[str, str]:
    """Return what every command of the machine starts with: what sshd sets, and the provider's own variables."""
    path = image.PATH if bin_folder is None else f"{bin_folder}:{image.PATH}"
    own = {"HOME": home, "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash", "PATH": path, "LANG": "C.UTF-8"}
    return {**own, **spec.env}
