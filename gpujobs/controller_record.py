"""What is written down of our controller: its processes, and the address of its server.

Apart from `controller`, so that a command that only looks does not pay for what starts one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpujobs import process
from gpujobs.errors import GpujobsError
from gpujobs.prefect_login import login
from gpujobs.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The background processes; `server_pid` is 0 where the server is somebody else's."""

    url: str
    server_pid: int
    server_started: str
    worker_pid: int
    worker_started: str
    salt: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)  # salted digests of what the host was started with

    @property
    def server_alive(self) -> bool:
        """Whether our server lives (always so for somebody else's)."""
        return not self.server_pid or process.alive(self.server_pid, self.server_started)

    @property
    def worker_alive(self) -> bool:
        """Whether our host lives."""
        return process.alive(self.worker_pid, self.worker_started)


def server_url(settings: Settings) -> str | None:
    """Find the Prefect API that runs are handed to, also one of ours whose host is dead; None where there is none."""
    if url := login().get("PREFECT_API_URL"):
        return url
    mine = status(settings)
    return mine.url if mine and mine.server_alive else None


def status(settings: Settings) -> Controller | None:
    """Read which controller was started for these settings, whether it lives or not; None where none was."""
    try:
        return Controller(**json.loads(record_path(settings).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        path = record_path(settings)
        raise GpujobsError(f"{path} is not readable ({error}); end its processes by hand, then remove it") from error


def record_path(settings: Settings) -> Path:
    """Give the file of the record."""
    return settings.home / "controller.json"
