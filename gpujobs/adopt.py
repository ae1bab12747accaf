"""Making a lost ledger's runs known again, from the providers' lists and what the machines say of themselves.

A machine is not believed: what it says is capped, read strictly, and gives nothing of this computer away. An adopted
run sends nothing up (no workdir, no file mounts, no secrets) and rents no second machine.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from gpujobs import reaper
from gpujobs.attempt import WORKING
from gpujobs.attempt_work import KIND
from gpujobs.backends import Backend
from gpujobs.errors import BadInput, GpujobsError, RemoteFailure
from gpujobs.host import Host
from gpujobs.ledger_rows import ENDED, Attempt, Run
from gpujobs.models import Machine
from gpujobs.recipe import Recipe
from gpujobs.renting import write_intent
from gpujobs.run_folder import RunFolder
from gpujobs.runner import Phase, Runner
from gpujobs.settings import Account, private_folder
from gpujobs.shell import Shell, connect, make_key

_NOT_ALONE = {
    "tasks": "which of its recipe's tasks are done stood in the lost ledger alone; submit the recipe again",
    "fleet": "it is a fleet's, whose tasks are in the memory of the program that rented it, and die with that",
}
_RECIPE_BYTES = 4 * 1024 * 1024
_BEGUN = frozenset({"setup", "running", "ended", "lost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A machine under our name that the ledger lacks, and what it tells."""

    machine: Machine
    run_id: str
    attempt: int
    phase: Phase | None = None  # None: nothing of a run is known
    recipe: Recipe | None = None  # None: it cannot be adopted, and `why` tells the reason
    host_key: str = ""
    why: str = ""


def look(host: Host, name: str, account: Account) -> Sequence[Finding]:
    """Ask each machine of one account with backend `name` that is ours, and that the ledger lacks, what runs on it.

    Writes nothing. Raises Unavailable, BadCredentials where the provider could not list.
    """
    backend = host.backend_of(name, account)
    found = [one.machine for one in reaper.survey(host, backend)]
    return [_asked(host, backend, one, account) for one in found if host.ledger.machine(one.name) is None]


def adopt(host: Host, findings: Sequence[Finding]) -> Sequence[Finding]:
    """Write what was found into the ledger, and give what is now in it, one a run. Idempotent."""
    adopted: dict[str, Finding] = {}
    for one in sorted(findings, key=lambda one: (one.run_id, -one.attempt)):
        if one.recipe is None or host.ledger.machine(one.machine.name) is not None:
            continue
        _write_run(host, one, one.recipe)
        _write_attempt(host, one, one.recipe, over=one.run_id in adopted)
        adopted.setdefault(one.run_id, one)
    return list(adopted.values())


def _asked(host: Host, backend: Backend, machine: Machine, account: Account) -> Finding:
    _, _, run_id, attempt = machine.name.split("-")
    finding = Finding(machine=machine, run_id=run_id, attempt=int(attempt))
    run = _known(host, run_id)
    if run is not None and (run.state in ENDED or run.driver):
        return replace(finding, why=f"its run is known, and {run.state}")
    try:
        machine = backend.refresh(machine)
        with _log_in(host, backend, machine) as shell:
            phase, recipe = _told(shell, backend, machine.name)
            host_key = shell.host_key
        if recipe is None:
            return replace(finding, machine=machine, why="no work began on it")
        recipe = recipe.model_copy(update={"credentials": _credentials(host, backend.name, account, recipe)})
    except GpujobsError as error:
        return replace(finding, machine=machine, why=str(error))
    return replace(finding, machine=machine, phase=phase, recipe=recipe, host_key=host_key)


def _credentials(host: Host, name: str, account: Account, recipe: Recipe) -> Mapping[str, str]:
    """Give what opens the account under which the machine was found: the block that its recipe names, or none."""
    for named in ({name: recipe.credentials[name]} if name in recipe.credentials else {}, {}):
        with suppress(GpujobsError):
            if host.under(named).account(name) == account:
                return named
    raise BadInput(f"its recipe names no credentials that open the account with {name} which rents it")


def _log_in(host: Host, backend: Backend, machine: Machine) -> Shell:
    """Log in with our key where it was not lost, else with the password, which the provider tells again."""
    access = backend.access(machine)
    if access is None:
        raise RemoteFailure(f"{backend.name} tells no address of it now ({machine.raw_status or machine.status})")
    key = private_folder(host.settings.home / "ssh") / "id_ed25519"
    make_key(key)
    return connect(access, host_key=None, pkey_path=key)


def _told(shell: Shell, backend: Backend, name: str) -> tuple[Phase, Recipe | None]:
    runner = Runner(shell, base=backend.work_root, name=name)
    phase = runner.status().phase
    if phase not in _BEGUN:
        return phase, None
    return phase, _harmless(runner.about(_RECIPE_BYTES))


def _harmless(text: bytes) -> Recipe:
    """Read a recipe as a machine tells it: nothing of this computer goes up for it, and nothing more is rented."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise RemoteFailure("its recipe cannot be read: it is no mapping")
        if why := _NOT_ALONE.get(str(found.pop(KIND, ""))):
            raise RemoteFailure(why)
        told = Recipe.model_validate_json(json.dumps(found))
    except ValidationError as error:
        raise RemoteFailure(f"its recipe cannot be read: {error.error_count()} values are wrong") from error
    except (ValueError, RecursionError) as error:
        raise RemoteFailure(f"its recipe cannot be read: {error}") from error
    changes: dict[str, Any] = {
        "workdir": "",
        "file_mounts": {},
        "secrets": [],
        "on_failure": {"keep": "0s"},
        "schedule": None,
    }
    parts = told.model_dump(mode="json", exclude_unset=True) | changes
    return Recipe.model_validate(parts | {"retry": {"attempts": 1}})


def _known(host: Host, run_id: str) -> Run | None:
    try:
        run = host.ledger.get_run(run_id)
    except BadInput:
        return None
    return run if run.id == run_id else None


def _write_run(host: Host, one: Finding, recipe: Recipe) -> None:
    if _known(host, one.run_id) is not None:
        return
    since = one.machine.created_at or host.clock.now()
    RunFolder(host.settings.runs / one.run_id).make(recipe)
    host.ledger.add_run(
        Run(
            id=one.run_id,
            name=recipe.name,
            owner=host.settings.owner,
            recipe_json=recipe.model_dump_json(),
            state="running",
            phase="run",
            detail=one.machine.name,
            created_at=since,
            started_at=since,
        )
    )


def _write_attempt(host: Host, one: Finding, recipe: Recipe, *, over: bool) -> None:
    """Write the attempt as one whose work was started, so that it is followed; `over`: a later one is."""
    machine, now = one.machine, host.clock.now()
    gpu, count = recipe.resources.wanted[0]
    attempt = Attempt(
        run_id=one.run_id,
        number=one.attempt,
        name=machine.name,
        backend=machine.backend,
        region=machine.region,
        offer_json=json.dumps({"gpu": gpu, "gpu_count": count}, ensure_ascii=False),
        state=WORKING,
        phase="run",
        started_at=machine.created_at or now,
        ended_at=now if over else None,
    )
    since, price = machine.created_at or now, machine.price_cny_per_h
    write_intent(host.ledger, attempt, price_cny_per_h=price, at=since, host_key=one.host_key)
    host.ledger.record_created(machine.name, machine.id, unit=machine.unit, created_at=machine.created_at)
