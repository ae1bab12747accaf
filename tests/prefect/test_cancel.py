"""Cancel in the UI at each phase, on both clouds, by the call that the UI makes; the fake's ledger is the judge."""

import asyncio
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun

from fake_server.server import FakeServer
from gpujobs.backends import load
from gpujobs.clock import SystemClock
from gpujobs.errors import BadInput
from gpujobs.ledger_rows import ENDED
from gpujobs.prefect_api import run_id_of
from gpujobs.recipe import Recipe
from gpujobs.worker_deleted import Deleted
from tests.cloud import BACKENDS, Control, recipe_for
from tests.prefect.desk import Desk, starts_and_left, until

pytestmark = pytest.mark.timeout(600)

UI_CANCEL = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
CREATES = {"autodl": "create_deployment", "matrixdc": "create_instance"}
FOREIGN = "gj-other-aaaa111111-1"
KEEPS = "echo saved > kept; echo begun"
SLEEPS = f"{KEEPS}; exec sleep 600"
SLOW = {"kind": "ssh_slow", "bytes_per_s": 30_000}
BIG_BYTES = 9_000_000  # some minutes at that speed


@dataclass(frozen=True, kw_only=True)
class Case:
    """One phase to cancel in: how a run is held there, and what there is of it afterwards."""

    phase: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    fault: Mapping[str, Any] = field(default_factory=dict)  # keeps the run in its phase
    made: int = 1  # machines
    begun: int = 0  # starts of the command
    kept: Sequence[str] = ()  # what of the outputs is home
    backends: Sequence[str] = BACKENDS


KEPT: Mapping[str, Any] = {"begun": 1, "kept": ("kept",)}
OUTPUT = {"outputs": {"kept": "kept"}}
CASES = {
    "create that gets no answer": Case(phase="provision", fault={"kind": "timeout", "seconds": 3}, made=0),
    "create that acts late": Case(phase="provision", fault={"kind": "late_act", "seconds": 5}),
    "plan": Case(phase="plan", recipe={"resources": {"max_price": 0.01}, "retry": {"wait": "10m"}}, made=0),
    "boot": Case(phase="boot", fault={"kind": "stuck_in_creating"}),
    "boot, up to its SSH": Case(phase="boot", fault={"kind": "ssh_refused", "seconds": 600}),
    "push": Case(phase="push", recipe={"workdir": "big"}, fault=SLOW),
    "set-up": Case(phase="run", recipe={"setup": SLEEPS, "run": "echo never", **OUTPUT}, **KEPT),
    "run": Case(phase="run", recipe={"run": SLEEPS, **OUTPUT}, **KEPT),
    "pull": Case(
        phase="pull",
        recipe={
            "run": f"head -c {BIG_BYTES} /dev/urandom > big; {KEEPS}",
            "outputs": {"kept": "kept", "big": "big"},
        },
        fault=SLOW,
        **KEPT,
    ),
    "snapshot": Case(
        phase="snapshot", recipe={"run": KEEPS, "snapshot": {"name": "cut"}, **OUTPUT}, backends=["matrixdc"], **KEPT
    ),
    "release": Case(
        phase="release",
        recipe={"run": KEEPS, **OUTPUT},
        fault={"kind": "release_fails", "count": None},
        **KEPT,
    ),
}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that takes long to upload."""
    folder = tmp_path_factory.mktemp("big")
    (folder / "big").write_bytes(os.urandom(BIG_BYTES))
    return folder


@pytest.fixture(scope="module")
def _foreign(desk: Desk, cloud: FakeServer) -> Iterator[None]:
    """On each cloud a machine of somebody else's; snapshots never come to their end."""
    control = Control(cloud)
    control.ask("POST", "timings", {"matrixdc_snapshot_s": "manual"})
    doors = [load(backend, desk.settings, clock=SystemClock()) for backend in BACKENDS]
    for door in doors:
        recipe = recipe_for(door.name)
        door.create(recipe, door.offers(recipe)[0], name=FOREIGN, image="")
    until(lambda: control.alive().count(FOREIGN) == len(doors))
    yield
    control.ask("DELETE", "faults")
    control.ask("POST", "timings", {"matrixdc_snapshot_s": 0.3})
    for door in doors:
        for machine in door.find(FOREIGN):
            door.release(machine)


@pytest.fixture(scope="module")
def cancelled(desk: Desk, cloud: FakeServer, big: Path, _foreign: None) -> Mapping[tuple[str, str], str]:
    """A flow run for each case on each cloud, all of them at once: brought into its phase, then cancelled."""
    truth = Control(cloud)
    begun = {}
    for name, case in CASES.items():
        for backend in case.backends:
            begun[name, backend] = begin(desk, truth, backend, case, big)
            if case.phase == "provision":  # it does not wait there for the others
                cancel_in_phase(desk, case, begun[name, backend][0])
    for (name, _), (flow_run_id, _) in begun.items():
        if CASES[name].phase != "provision":
            cancel_in_phase(desk, CASES[name], flow_run_id)
    for (name, _), (flow_run_id, rule) in begun.items():
        if CASES[name].phase == "release":
            desk.logged(flow_run_id, "stopping: ", within_s=60)
            truth.ask("DELETE", f"faults/{rule}")
    return {one: flow_run_id for one, (flow_run_id, _) in begun.items()}


def cancel_in_phase(desk: Desk, case: Case, flow_run_id: str) -> None:
    """Cancel once the run is where the case wants it."""
    until(partial(in_phase, desk, case, run_id_of(flow_run_id)), within_s=120)
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", UI_CANCEL)


def begin(desk: Desk, truth: Control, backend: str, case: Case, big: Path) -> tuple[str, int]:
    """Begin a run that comes as far as the case's phase; give its flow run's id, and its fault's."""
    parts = {"run": SLEEPS, **case.recipe}
    if "workdir" in parts:
        parts["workdir"] = str(big)
    flow_run_id = create_for_later(desk, recipe_for(backend, max_duration="10m", **parts))
    rule = 0
    if case.fault:
        endpoint = {"endpoint": f"{backend}.{CREATES[backend]}"} if case.phase == "provision" else {}
        machine = f"gj-tester-{run_id_of(flow_run_id)}-*"
        rule = truth.ask("POST", "faults", {"machine": machine, **endpoint, **case.fault})["id"]
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})
    return flow_run_id, rule


def create_for_later(desk: Desk, recipe: Recipe) -> str:
    """Create a flow run that is not due yet, so that its id is known before it begins."""
    due = {"type": "SCHEDULED", "state_details": {"scheduled_time": str(datetime.now(UTC) + timedelta(hours=1))}}
    return desk.create(recipe.model_dump(mode="json", exclude_unset=True), state=due)


def in_phase(desk: Desk, case: Case, run_id: str) -> bool:
    with suppress(BadInput):  # the ledger does not know it yet
        if desk.run(run_id).phase == case.phase:
            if case.phase == "run":
                desk.wrote(run_id, "begun")
            return True
    return False


def assert_ended_well(desk: Desk, truth: Control, case: Case, run_id: str) -> None:
    """Hold a run to the promises that bear on a cancel."""
    run, folder = desk.run(run_id), desk.settings.runs / run_id
    assert (run.state, run.exit_code) == ("cancelled", 4)
    machines = [machine for machine in truth.machines() if f"-{run_id}-" in machine["name"]]
    assert len(machines) == case.made
    assert starts_and_left(truth, run_id) == (case.begun, [])
    assert [machine.alive for machine in desk.ledger.machines(run_id)] == [False] * len(desk.ledger.machines(run_id))
    assert sorted(path.name for path in (folder / "outputs").iterdir()) == list(case.kept)
    if case.begun:
        log = (folder / "output.log").read_bytes()
        assert log == b"begun\n"
        [attempt] = desk.ledger.attempts(run_id)
        assert attempt.log_sha256 == hashlib.sha256(log).hexdigest()
        assert (folder / "outputs" / "kept").read_text() == "saved\n"
    assert truth.alive().count(FOREIGN) == len(BACKENDS)


@pytest.mark.parametrize(("name", "backend"), [(name, backend) for name in CASES for backend in CASES[name].backends])
def test_cancel_in_the_ui_ends_the_run_wherever_it_is(
    name: str, backend: str, desk: Desk, truth: Control, cancelled: Mapping[tuple[str, str], str]
) -> None:
    flow_run_id = cancelled[name, backend]
    assert desk.ended(flow_run_id, within_s=120)[0] == "CANCELLED"
    assert_ended_well(desk, truth, CASES[name], run_id_of(flow_run_id))


def test_cancel_of_a_run_that_nobody_has_taken_is_the_end_of_it(desk: Desk, truth: Control) -> None:
    flow_run_id = create_for_later(desk, recipe_for("autodl"))
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", UI_CANCEL)
    assert desk.ended(flow_run_id)[0] == "CANCELLED"
    assert starts_and_left(truth, run_id_of(flow_run_id)) == (0, [])


def test_deletion_of_a_running_flow_run_cancels_the_run_and_no_other(desk: Desk, truth: Control) -> None:
    deleted, kept = (desk.submit(SLEEPS, **OUTPUT) for _ in range(2))
    for run_id, _ in (deleted, kept):
        desk.wrote(run_id, "begun")
    desk.ask("DELETE", f"/flow_runs/{deleted[1]}")
    assert_cancelled_as_deleted(desk, truth, deleted[0])
    assert desk.run(kept[0]).state == "running"
    desk.ask("DELETE", f"/flow_runs/{kept[1]}")  # all that run, at one blow, are deleted as well
    assert_cancelled_as_deleted(desk, truth, kept[0])


def assert_cancelled_as_deleted(desk: Desk, truth: Control, run_id: str) -> None:
    until(lambda: desk.run(run_id).state in ENDED, within_s=180)
    assert desk.run(run_id).error == f"run {run_id} was cancelled: its flow run was deleted in Prefect"
    assert starts_and_left(truth, run_id) == (1, [])
    assert (desk.settings.runs / run_id / "outputs" / "kept").read_text() == "saved\n"


class Forgetful(PrefectClient):
    """Lists nothing of what is there, as a server that looks at a copy that lags behind."""

    async def count_flow_runs(self, **_: Any) -> int:
        return 0

    async def read_flow_runs(self, **_: Any) -> list[FlowRun]:
        return []


def test_flow_run_counts_as_deleted_at_the_second_look_and_never_where_the_server_has_not_known_it(desk: Desk) -> None:
    """A server that knows nothing of a run may have another database, or a new one: that is no reason to end a job."""
    flow = desk.ask("POST", "/flows/", {"name": "somebodys"})["id"]
    deleted, there = (UUID(desk.ask("POST", "/flow_runs/", {"flow_id": flow})["id"]) for _ in range(2))

    async def look() -> None:
        async with PrefectClient(desk.api) as client:
            looks = Deleted(client)
            while not await looks.among([deleted]):  # noqa: ASYNC110 - the server writes its events down some s late
                await asyncio.sleep(0.5)
            again, turns = Deleted(client), [deleted, there, uuid4()]
            assert [await again.among(turns) for _ in range(3)] == [set(), {deleted}, {deleted}]
            assert await again.among([there]) == set()
            assert await again.among([deleted]) == set()  # it was not seen at the turn before
        async with Forgetful(desk.api) as client:
            again = Deleted(client)
            assert [await again.among([there]) for _ in range(2)] == [set(), set()]

    desk.ask("DELETE", f"/flow_runs/{deleted}")
    asyncio.run(asyncio.wait_for(look(), 120))
