"""Real machines to connect to, and the small client that the tests share."""

import base64
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread

import paramiko
import pytest

from fake_server.containers import CommandRecord, Containers, ContainerSpec, Endpoint

PASSWORD = "s3cret-of-root"
CONDA = "/root/miniconda3"


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: bytes
    err: bytes


def until(condition: Callable[[], object], *, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not so within {within_s} s")
        time.sleep(0.01)


def host_commands_with(marker: str) -> list[int]:
    """Return the pids on this host whose command line holds the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if marker.encode() in line:
            found.append(int(path.parent.name))
    return found


class Client:
    """A paramiko connection that drains both streams while it feeds the third."""

    def __init__(self, endpoint: Endpoint, **login: object) -> None:
        self.ssh = paramiko.SSHClient()
        self.ssh.set_missing_host_key_policy(paramiko.RejectPolicy())
        key = paramiko.Ed25519Key(data=base64.b64decode(endpoint.host_key.split()[1]))
        self.ssh.get_host_keys().add(f"[{endpoint.host}]:{endpoint.port}", "ssh-ed25519", key)
        options = {"username": "root", "password": PASSWORD} | login
        self.ssh.connect(
            endpoint.host,
            endpoint.port,
            allow_agent=False,
            look_for_keys=False,
            timeout=60,
            banner_timeout=60,
            auth_timeout=60,
            **options,  # type: ignore[arg-type]
        )

    def channel(self) -> paramiko.Channel:
        transport = self.ssh.get_transport()
        assert transport is not None
        return transport.open_session(timeout=60)

    def run(self, command: str, stdin: bytes = b"", *, terminal: bool = False) -> Outcome:
        channel = self.channel()
        if terminal:
            channel.get_pty("xterm", 100, 40)
        channel.exec_command(command)
        errors: list[bytes] = []
        drain = Thread(target=lambda: errors.extend(pieces(channel.recv_stderr)))
        feed = Thread(target=lambda: self.feed(channel, stdin))
        drain.start()
        feed.start()
        out = b"".join(pieces(channel.recv))
        drain.join()
        feed.join()
        code = channel.recv_exit_status()
        channel.close()
        return Outcome(code, out, b"".join(errors))

    @staticmethod
    def feed(channel: paramiko.Channel, stdin: bytes) -> None:
        view = memoryview(stdin)
        try:
            while view:
                view = view[channel.send(view[:32768]) :]
            channel.shutdown_write()
        except OSError:
            return

    def text(self, command: str) -> str:
        done = self.run(command)
        assert done.code == 0, done
        return done.out.decode()

    def close(self) -> None:
        self.ssh.close()


def pieces(receive: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := receive(1 << 20):
        yield piece


@dataclass
class Cloud:
    """Containers with all that they reported."""

    base: Path
    records: list[CommandRecord] = field(default_factory=list)
    ended: list[tuple[str, int]] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    containers: Containers = field(init=False)

    def __post_init__(self) -> None:
        self.containers = Containers(
            self.base / "scratch",
            on_command=self.records.append,
            on_cmd_exit=lambda name, code: self.ended.append((name, code)),
        )

    def spec(self, name: str = "one", **changes: object) -> ContainerSpec:
        disk = self.base / "disks" / name
        disk.mkdir(parents=True, exist_ok=True)
        plain = ContainerSpec(
            name=name,
            hostname=f"host-{name}",
            disk=disk,
            volumes={},
            gpu_name="NVIDIA GeForce RTX 4090",
            gpu_count=2,
            gpu_memory_mb=24564,
            cpus=8,
            memory_gb=32,
            env={"AutoDLContainerUUID": "uuid-1"},
            conda=CONDA,
            password=PASSWORD,
        )
        return replace(plain, **changes)  # type: ignore[arg-type]

    def client(self, endpoint: Endpoint, **login: object) -> Client:
        client = Client(endpoint, **login)
        self.clients.append(client)
        return client

    def boot(self, name: str = "one", **changes: object) -> Client:
        return self.client(self.containers.start(self.spec(name, **changes)))
