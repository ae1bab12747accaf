"""The machines of the fake cloud: each a sandbox of its own with a real SSH server in front of it."""

import logging
import re
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fake_server import sandbox
from fake_server.loop import LoopThread
from fake_server.quota import Quota
from fake_server.sandbox import Sandbox
from fake_server.spec import CommandRecord, ContainerSpec, Endpoint, Isolation

if TYPE_CHECKING:
    from fake_server.machine import Machine

__all__ = ["CommandRecord", "ContainerSpec", "Containers", "Endpoint", "Isolation"]

_log = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(slots=True, kw_only=True)
class Container:
    """A started machine and the parts of it that live outside the loop."""

    sandbox: Sandbox
    machine: "Machine"
    runtime: Path
    stopping: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False


class Containers:
    """All machines of one fake cloud, on one loop thread. Thread-safe.

    ``folder`` is scratch for host keys and what belongs to a running machine; a name keeps its host key while it lasts.
    The callbacks come one at a time on a thread of their own: a record for each command that ended (``exec`` for
    ``execute`` too), and the end of a ``cmd`` that nobody stopped. They may come shortly after ``stop`` has returned.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        on_command: Callable[[CommandRecord], None],
        on_cmd_exit: Callable[[str, int], None],
    ) -> None:
        self._folder, self._host = folder, host
        self._on_command, self._on_cmd_exit = on_command, on_cmd_exit
        self._lock = threading.Condition()  # told when a start is over
        self._containers: dict[str, Container | None] = {}  # None while it starts
        self._threads = LoopThread()
        self._quota = Quota(folder)
        self._closed = False

    @cached_property
    def isolation(self) -> Isolation:
        """The best isolation that works on this host, found by trying (some 50 ms, once)."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return sandbox.find_isolation(self._folder)

    def start(self, spec: ContainerSpec, *, sshd_delay_s: float = 0.0) -> Endpoint:
        """Start a machine and return where its SSH server answers after the delay; until then TCP is refused.

        Raises:
            ValueError: the name is in use or malformed, or a disk or volume cannot be mounted.
            SandboxError: the host refused to start it.
        """
        if not NAME.fullmatch(spec.name):
            raise ValueError(
                f"container name {spec.name!r} is not made of letters, digits, dots, dashes and underscores"
            )
        self._claim(spec.name)
        try:
            container, endpoint = self._start(spec, sshd_delay_s)
        except BaseException:
            with self._lock:
                del self._containers[spec.name]
                self._lock.notify_all()
            raise
        with self._lock:
            self._containers[spec.name] = container
            self._lock.notify_all()
        self._quota.enter(
            spec.name,
            [spec.disk, *spec.volumes.values()],
            limit_bytes=int(spec.disk_gb * 2**30),
            tell=lambda full: self._threads.run(container.machine.fill_up("quota", full=full)),
        )
        return endpoint

    def stop(self, name: str, *, grace_s: float = 0.0) -> None:
        """Cut the machine off, send TERM, and kill what is left after the grace; an unknown name is fine.

        Once it returns, no process of the machine lives. Its disk stays as it is.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._containers.get(name, True))
            container = self._containers.get(name)
        if container is None:
            return
        self._quota.leave(name)
        with container.stopping:
            if not container.stopped:
                self._stop(container, grace_s)
                container.stopped = True
        with self._lock:
            if self._containers.get(name) is container:
                del self._containers[name]

    def execute(self, name: str, command: str, *, timeout_s: float) -> int | None:
        """Run ``bash -c command``; return its exit code (negative: signal), or None if it was killed at the time-out.

        Raises:
            KeyError: no such machine runs.
        """
        container = self._running(name)
        done: Future[int] = Future()
        number = self._threads.run(container.machine.execute(command, done))
        try:
            return done.result(timeout_s)
        except TimeoutError:
            self._threads.run(container.machine.kill(number))
            return None

    def running(self) -> Sequence[str]:
        """Return the names of the machines that run."""
        with self._lock:
            return [name for name, container in self._containers.items() if container and container.machine.alive]

    def close(self) -> None:
        """Stop every machine and the threads. Idempotent; nothing can be started afterwards."""
        with self._lock:
            self._closed = True
            names = list(self._containers)
        with ThreadPoolExecutor(max_workers=8) as stoppers:
            list(stoppers.map(self.stop, names))
        self._quota.close()
        self._threads.close()

    def _claim(self, name: str) -> None:
        with self._lock:
            if self._closed:
                raise ValueError("these containers are closed")
            if name in self._containers:
                raise ValueError(f"container {name} runs already; stop it first")
            self._containers[name] = None

    def _start(self, spec: ContainerSpec, delay_s: float) -> tuple[Container, Endpoint]:
        runtime = self._folder / "run" / spec.name
        shutil.rmtree(runtime, ignore_errors=True)
        runtime.mkdir(mode=0o700, parents=True)
        box = sandbox.start(spec, self.isolation, runtime)
        sock = socket.socket()
        try:
            _bind(sock, self._host, spec.port)
            machine, host_key = self._threads.run(self._open(spec, box, runtime, sock, delay_s))
        except BaseException:
            sock.close()
            box.control.close()
            box.kill()
            raise
        port = sock.getsockname()[1]
        return Container(sandbox=box, machine=machine, runtime=runtime), Endpoint(self._host, port, host_key)

    async def _open(
        self, spec: ContainerSpec, box: Sandbox, runtime: Path, sock: socket.socket, delay_s: float
    ) -> tuple["Machine", str]:
        # asyncssh takes half a second to import, which a fake that starts no machine need not pay
        from fake_server.machine import Machine, Reports  # noqa: PLC0415
        from fake_server.sshd import load_host_key, public_line  # noqa: PLC0415

        reports = Reports(on_command=self._report_command, on_cmd_exit=self._report_cmd_exit)
        key = load_host_key(self._folder / "keys" / spec.name)
        machine = Machine(spec, self.isolation, control=box.control, runtime=runtime, reports=reports)
        try:
            await machine.open(sock=sock, key=key, delay_s=delay_s)
        except BaseException:
            await machine.hush(terminate=False)
            await machine.close()
            raise
        return machine, public_line(key)

    def _stop(self, container: Container, grace_s: float) -> None:
        self._threads.run(container.machine.hush(terminate=grace_s > 0))
        if grace_s > 0:
            container.sandbox.wait(grace_s)
        self._threads.run(container.machine.close())
        container.sandbox.kill()
        shutil.rmtree(container.runtime, ignore_errors=True)

    def _running(self, name: str) -> Container:
        with self._lock:
            container = self._containers.get(name)
        if container is None or not container.machine.alive:
            raise KeyError(f"no container {name} runs")
        return container

    def _report_command(self, record: CommandRecord) -> None:
        self._threads.call_back(lambda: self._on_command(record))

    def _report_cmd_exit(self, name: str, exit_code: int) -> None:
        self._threads.call_back(lambda: self._on_cmd_exit(name, exit_code))


def _bind(sock: socket.socket, host: str, port: int) -> None:
    """Bind to the wanted port, or to any where somebody else has it by now; the socket itself never listens.

    The address may be used again: by the listener beside it, and after a fake that was killed and left connections.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if port:
        try:
            sock.bind((host, port))
        except OSError:
            _log.warning("port %d is taken by another process; a machine comes back at another", port)
        else:
            return
    sock.bind((host, 0))
