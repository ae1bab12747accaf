"""Blocks that a test keeps itself, where no Prefect server is wanted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Kept:
    """AutoDL credentials by the blocks' names, and secrets and notification URLs by theirs."""

    credentials: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    place: str = "http://127.0.0.1:4200/api"

    def accounts(self, backend: str, *, having: str = "") -> Mapping[str, Mapping[str, Any]]:
        """Those of the one backend that they are for."""
        del having
        return self.credentials if backend == "autodl" else {}

    def secret(self, name: str) -> str:
        """By the variable's name."""
        return self.values.get(name, "")

    def notice_url(self, name: str) -> str:
        """By its name."""
        return self.values.get(name, "")
