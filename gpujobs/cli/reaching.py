"""Reaching the machine that a run has now: where it is, and the key and host key to log in with."""

from pathlib import Path
from typing import NamedTuple

from gpujobs.backends import Backend
from gpujobs.errors import BadInput
from gpujobs.host import Host
from gpujobs.ledger_rows import Run
from gpujobs.models import Access


class Reached(NamedTuple):
    """A machine that lets us in with our own key."""

    name: str
    backend: Backend
    access: Access
    host_key: str
    key: Path


def reach(host: Host, run: Run) -> Reached:
    """Find the machine of a run; raises BadInput where there is none, or none that lets us in yet."""
    alive = [record for record in host.ledger.machines(run.id) if record.alive and record.id]
    if not alive:
        raise BadInput(f"run {run.id} has no machine now (it is {run.state}); see: gpujobs status {run.id}")
    record, backend = alive[-1], host.of_run(run).backend(alive[-1].backend)
    key = host.settings.home / "ssh" / "id_ed25519"
    access = backend.access(record.machine) if record.host_key and key.exists() else None
    if access is None:
        raise BadInput(f"{record.name} is not reachable yet (phase {run.phase or run.state}); try again in a moment")
    return Reached(record.name, backend, access, record.host_key, key)
