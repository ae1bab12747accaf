"""The values that pass between the world's rules and the containers that carry them out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fake_server.trouble import Trouble

Isolation = Literal["unshare", "bubblewrap", "none"]
CommandKind = Literal["exec", "shell", "sftp", "cmd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """One machine as it is to be started.

    ``disk`` is the host folder of its own system disk: an empty folder is a freshly installed image, and a copy of the
    folder is a snapshot. ``volumes`` are data disks (path inside → host folder), which a snapshot does not carry.
    ``cmd`` runs as ``bash -c cmd`` at the start; its end is reported. ``conda`` is where the image's Python lives.
    ``port`` is where its SSH server answers if that is free; 0 is anywhere. ``disk_gb`` is what it may keep on all its
    disks together. ``trouble`` is what fault rules hold for the machine.
    """

    name: str
    hostname: str
    disk: Path
    volumes: Mapping[str, Path]
    gpu_name: str
    gpu_count: int
    gpu_memory_mb: int
    cpus: int
    memory_gb: int
    env: Mapping[str, str]
    conda: str
    password: str = field(repr=False)
    cmd: str | None = None
    port: int = 0
    disk_gb: float = 30.0
    trouble: Trouble | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a container's SSH server answers; ``host_key`` is "ssh-ed25519 AAAA…"."""

    host: str
    port: int
    host_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """One command that ran on a machine, from start to end (seconds since the epoch).

    A negative ``exit_code`` is the signal that ended it; ``bytes_written`` counts stdout and stderr sent to the client,
    ``sha256`` is the hash of those bytes in the order they were sent, and ``output_head`` their beginning.
    """

    machine: str
    kind: CommandKind
    command: str
    started_at: float
    ended_at: float
    exit_code: int
    bytes_written: int
    sha256: str = ""
    output_head: bytes = field(default=b"", repr=False)
