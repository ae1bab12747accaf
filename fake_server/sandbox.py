"""Starts a machine's first process in a root, pid, IPC and host name space of its own, as far as the host allows it."""

import marshal
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fake_server import disk_change, image
from fake_server.spec import ContainerSpec, Isolation

INIT = Path(__file__).with_name("init.py")
START_TIMEOUT_S = 20.0
KILL_TIMEOUT_S = 5.0
HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, setfcap
CAPABILITIES = {0: "chown", 1: "dac_override", 3: "fowner", 4: "fsetid", 5: "kill", 6: "setgid", 7: "setuid"} | {
    8: "setpcap", 10: "net_bind_service", 13: "net_raw", 18: "sys_chroot", 31: "setfcap"
}  # fmt: skip


class SandboxError(RuntimeError):
    """A machine that could not be started, with what the host said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the first process is told to build: ``binds`` in order, under the empty folder ``root``."""

    isolation: Isolation
    hostname: str
    root: Path
    binds: Sequence[image.Bind]
    memory_gb: int

    def message(self) -> bytes:
        """Return the plan as init.py reads it."""
        gigabytes = self.memory_gb * 2**30
        limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 65536), (resource.RLIMIT_DATA, gigabytes)]
        mounts = [*self.binds, ("proc", "", "/proc"), ("dev", "", "/dev")]
        return marshal.dumps(
            {
                "isolation": self.isolation,
                "hostname": self.hostname,
                "root": str(self.root),
                "mounts": [("tmpfs", "755", "/run"), *mounts],
                "limits": limits,
                "capabilities": sorted(CAPABILITIES),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A running first process: the socket that commands it, and what is needed to end it."""

    control: socket.socket
    launcher: subprocess.Popen[bytes]
    init_fd: int

    def wait(self, timeout_s: float) -> bool:
        """Return whether every process of the machine has ended within the time."""
        watched = os.pidfd_open(self.launcher.pid) if self.launcher.poll() is None else -1
        if watched < 0:
            return True
        try:
            if not select.select([watched], [], [], timeout_s)[0]:
                return False
        finally:
            os.close(watched)
        self.launcher.wait()
        return True

    def kill(self) -> None:
        """Kill the first process, and with it all others of its pid namespace. The control socket is closed before."""
        if not self.wait(KILL_TIMEOUT_S / 5):
            signal.pidfd_send_signal(self.init_fd, signal.SIGKILL)
            if not self.wait(KILL_TIMEOUT_S):
                raise SandboxError(f"the machine's first process (launcher {self.launcher.pid}) does not die")
        os.close(self.init_fd)


def find_isolation(folder: Path) -> Isolation:
    """Return the best isolation that works here, by trying each on an empty machine in ``folder``."""
    for candidate in ("unshare", "bubblewrap"):
        isolation: Isolation = candidate
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
            try:
                probe(isolation, Path(scratch))
            except (SandboxError, OSError):
                continue
            return isolation
    return "none"


def probe(isolation: Isolation, scratch: Path) -> None:
    root = scratch / "root"
    root.mkdir()
    binds = list(image.system_binds())
    if isolation == "bubblewrap":
        image.prepare_disk(scratch / "disk", "/opt/conda")
        binds += [*image.disk_binds(scratch / "disk"), *image.conda_binds(scratch / "disk", "/opt/conda")]
        image.make_mount_points(binds)
    plan = Plan(isolation=isolation, hostname="probe", root=root, binds=binds, memory_gb=16)
    sandbox = launch(plan, log=scratch / "log", python=f"/opt/conda/bin/{image.VERSION}")
    sandbox.control.close()
    sandbox.kill()


def start(spec: ContainerSpec, isolation: Isolation, folder: Path) -> Sandbox:
    """Start the machine's first process; ``folder`` is empty, for what belongs to this start alone.

    Raises:
        SandboxError: the host refused; says what.
        ImageError: the disk or a volume cannot be mounted.
    """
    root = folder / "root"
    root.mkdir()
    image.prepare_disk(spec.disk, spec.conda)
    gpu = (spec.gpu_name, spec.gpu_count, spec.gpu_memory_mb)
    runtime = list(image.write_runtime(folder, hostname=spec.hostname, gpu=gpu))
    binds: list[image.Bind] = []
    if isolation == "none":
        link_volumes(spec)
    else:
        binds = [*image.system_binds(), *image.disk_binds(spec.disk), *image.volume_binds(spec.volumes)]
        binds += [*image.conda_binds(spec.disk, spec.conda), *runtime]
        image.make_mount_points(binds)
    disk_change.mark(spec.disk, spec.name)
    plan = Plan(isolation=isolation, hostname=spec.hostname, root=root, binds=binds, memory_gb=spec.memory_gb)
    return launch(plan, log=folder / "log", python=f"{spec.conda}/bin/{image.VERSION}")


def link_volumes(spec: ContainerSpec) -> None:
    """Without isolation a data disk is a link below the machine's folder; nothing can be mounted."""
    for kind, source, target in image.volume_binds(spec.volumes):
        place = spec.disk / target[1:]
        if kind == "rw" and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(source)


def launch(plan: Plan, *, log: Path, python: str) -> Sandbox:
    control, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    control.settimeout(START_TIMEOUT_S)
    with inner, log.open("wb") as errors:
        launcher = subprocess.Popen(
            command_line(plan, python, inner.fileno()),
            pass_fds=[inner.fileno()],
            env={"PATH": HOST_PATH, "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            cwd="/",
            start_new_session=True,
        )
    try:
        send(control, plan.message(), [])
        pid = greet(control)
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        return Sandbox(control=control, launcher=launcher, init_fd=os.pidfd_open(pid))
    except OSError as error:
        control.close()
        launcher.kill()
        launcher.wait()
        said = log.read_text(errors="replace").strip()[-500:]
        raise SandboxError(f"{plan.isolation} could not start {plan.hostname}: {error}; {said}") from error


def send(control: socket.socket, message: bytes, fds: Sequence[int]) -> None:
    """Send a request of any size: the packet itself carries only descriptors."""
    memory = os.memfd_create("request")
    try:
        with os.fdopen(memory, "wb", closefd=False) as payload:
            payload.write(message)
        socket.send_fds(control, [b"."], [memory, *fds])
    finally:
        os.close(memory)


def greet(control: socket.socket) -> int:
    """Wait until the first process has built its root; return its pid as this process sees it."""
    data, ancillary, _, _ = control.recvmsg(4096, socket.CMSG_SPACE(12))
    if data != b"ready":
        raise OSError(data.decode().removeprefix("error ") or "it ended at once")
    credentials = next(raw for _, kind, raw in ancillary if kind == socket.SCM_CREDENTIALS)
    return int.from_bytes(credentials[:4], sys.byteorder, signed=True)


def command_line(plan: Plan, python: str, fd: int) -> list[str]:
    init = [str(image.base_python()), "-I", "-S", str(INIT), str(fd)]
    if plan.isolation == "none":
        return init
    if plan.isolation == "bubblewrap":
        return [*bubblewrap(plan), "--", python, "-I", "-S", "/run/init.py", str(fd)]
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", *init]


def bubblewrap(plan: Plan) -> Iterator[str]:
    """Yield bubblewrap's command line for the same root that init.py builds under unshare."""
    yield from (shutil.which("bwrap", path=HOST_PATH) or "bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts")
    yield from ("--hostname", plan.hostname, "--as-pid-1", "--cap-drop", "ALL")
    if os.geteuid() != 0:
        yield from ("--unshare-user", "--uid", "0", "--gid", "0")
    for name in CAPABILITIES.values():
        yield from ("--cap-add", f"cap_{name}")
    yield from ("--tmpfs", "/run", "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev")
    options = {"ro": "--ro-bind", "rw": "--bind", "link": "--symlink"}
    for kind, source, target in plan.binds:
        yield from (options[kind], source, target)
    yield from ("--ro-bind", str(INIT), "/run/init.py")
