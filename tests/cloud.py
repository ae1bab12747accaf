"""What the tests of whole runs share: the fake's control room, a reporter that remembers, recipes in a line."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests

from fake_server.server import FakeServer
from gpujobs.recipe import Recipe

BACKENDS = ("autodl", "matrixdc")
GPUS = {"autodl": "RTX 4090", "matrixdc": "4090"}
STARTS = " start"  # the one command by which the runner starts the work; its exit code tells whether it did


@dataclass(frozen=True)
class Control:
    """The fake's control room."""

    fake: FakeServer

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Call the control room; raises where it refuses."""
        headers = {"X-Fake-Control": self.fake.control_token}
        reply = requests.request(method, f"{self.fake.url}/_fake/{path}", json=body, headers=headers, timeout=60)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def fault(self, endpoint: str, kind: str, **more: object) -> None:
        """Make a call go wrong."""
        self.ask("POST", "faults", {"endpoint": endpoint, "kind": kind, **more})

    def machines(self) -> Sequence[Mapping[str, Any]]:
        """Every machine ever made, from the ledger of truth."""
        return list(self.ask("GET", "ledger")["machines"])

    def alive(self) -> Sequence[str]:
        """The names of those that are not gone."""
        return [machine["name"] for machine in self.machines() if machine["gone_at"] is None]

    def left(self) -> Sequence[str]:
        """The names of those that are not gone once the providers had time to shut down what they were told to."""
        deadline = time.monotonic() + 60
        while (names := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)  # a deletion is done some moments after the list has forgotten the machine
        return names


@dataclass
class Memory:
    """A reporter that remembers, and calls back when a phase begins."""

    on_phase: Callable[[str], object] = bool
    phases: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    moved: list[tuple[str, int, int | None]] = field(default_factory=list)
    heard: bytearray = field(default_factory=bytearray)
    wrote: threading.Event = field(default_factory=threading.Event)

    def phase(self, name: str, detail: str) -> None:  # noqa: ARG002
        """Keep its name."""
        self.phases.append(name)
        self.on_phase(name)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Keep it."""
        self.moved.append((what, done, total))

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)

    def output(self, data: bytes) -> None:
        """Keep it."""
        self.heard += data
        self.wrote.set()


def recipe_for(backend: str, **parts: Any) -> Recipe:
    """Make a recipe for one GPU of `backend`."""
    resources = {"infra": backend, "accelerators": GPUS[backend], **parts.pop("resources", {})}
    return Recipe.model_validate({"name": "t", "resources": resources, "run": "echo hello", **parts})
