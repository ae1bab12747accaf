"""A fault at any single API call: the run ends well or with a clear error, and nothing stays rented."""

import time
from dataclasses import replace

import pytest

from gpujobs import reaper
from gpujobs.attempt import Attempt
from gpujobs.clock import StopToken
from gpujobs.errors import MachineLost
from gpujobs.host import Host
from gpujobs.lifecycle import new_run_id, open_run
from gpujobs.plan import make_plan
from gpujobs.renting import Job, rent_first
from gpujobs.teardown import named, release, settle
from tests.clocks import eventually
from tests.cloud import BACKENDS, STARTS, Control, Memory, recipe_for
from tests.lifecycle.test_run import run

ENDPOINTS = {
    "autodl": (
        "gpu_stock",
        "create_deployment",
        "list_deployments",
        "list_events",
        "list_containers",
        "delete_deployment",
    ),
    "matrixdc": ("list_regions", "list_skus", "create_instance", "list_instances", "get_instance", "delete_instance"),
}
KINDS = ("timeout", "reset", "error_500", "rate_limit_429", "broken_json", "lost_reply")
CASES = [(backend, endpoint, kind) for backend in BACKENDS for endpoint in ENDPOINTS[backend] for kind in KINDS]


def test_the_endpoints_are_those_of_the_fake(control: Control) -> None:
    known = set(control.ask("GET", "faults")["endpoints"])
    assert {f"{backend}.{name}" for backend in BACKENDS for name in ENDPOINTS[backend]} <= known


@pytest.mark.parametrize(("backend", "endpoint", "kind"), CASES)
def test_one_fault_leaves_nothing_rented_and_nothing_run_twice(
    backend: str, endpoint: str, kind: str, host: Host, control: Control
) -> None:
    control.fault(f"{backend}.{endpoint}", kind, seconds=0.5)
    outcome = run(host, recipe_for(backend, run="echo once", outputs={}))
    assert control.left() == []
    assert (outcome.state, outcome.error, outcome.machines_alive) == ("succeeded", "", 0)
    assert outcome.log.read_bytes() == b"once\n"
    begun = [c for m in control.machines() for c in m["commands"] if c["command"].endswith(STARTS)]
    assert len(begun) == 1
    assert len(control.machines()) == 1  # what an unclear create made is adopted, not made again


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_create_that_acts_late_is_found_and_released(backend: str, host: Host, control: Control) -> None:
    create = {"autodl": "create_deployment", "matrixdc": "create_instance"}[backend]
    host.timing = replace(host.timing, settle_s=0.2)
    control.fault(f"{backend}.{create}", "late_act", seconds=4)  # long past the settling window
    outcome = run(host, recipe_for(backend, run="sleep 5; echo done"))
    assert outcome.exit_code == 0
    assert (len(control.machines()), control.left()) == (2, [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_create_that_acts_within_the_settling_window_is_adopted(backend: str, host: Host, control: Control) -> None:
    create = {"autodl": "create_deployment", "matrixdc": "create_instance"}[backend]
    host.timing = replace(host.timing, settle_s=60)
    control.fault(f"{backend}.{create}", "late_act", seconds=4)
    outcome = run(host, recipe_for(backend, run="echo once"))
    assert (outcome.state, outcome.log.read_bytes()) == ("succeeded", b"once\n")
    assert ([machine["name"][-2:] for machine in control.machines()], control.left()) == (["-1"], [])


@pytest.mark.parametrize("name", BACKENDS)
def test_of_two_machines_that_one_create_made_one_is_kept_until_it_is_released(
    name: str, host: Host, control: Control
) -> None:
    recipe, backend = recipe_for(name), host.backend(name)
    offer = backend.offers(recipe)[0]
    for _ in range(2):
        backend.create(recipe, offer, name="gj-tester-0123456789-1", image="")
    kept = settle(host, backend, "gj-tester-0123456789-1", window_s=60, stop=StopToken())
    assert kept is not None
    deadline = time.monotonic() + 60
    while [machine.id for machine in named(backend, kept.name)] != [kept.id]:  # MatrixDC's take their time to go
        assert time.monotonic() < deadline
        time.sleep(0.05)
    release(host, backend, kept, within_s=60)
    assert backend.find(kept.name) == []  # a release has ended when the provider's list says so
    assert control.left() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_release_that_fails_again_and_again_is_made_in_the_end(backend: str, host: Host, control: Control) -> None:
    delete = {"autodl": "delete_deployment", "matrixdc": "delete_instance"}[backend]
    control.fault(f"{backend}.{delete}", "error_500", count=8)
    outcome = run(host, recipe_for(backend))
    assert (outcome.exit_code, outcome.machines_alive, control.left()) == (0, 0, [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_new_attempt_is_made_while_the_old_machine_is_not_confirmed_gone(
    backend: str, host: Host, control: Control
) -> None:
    host.timing = replace(host.timing, release_s=1.0, boot_s=2.0, lost_s=1.0)
    control.ask("POST", "faults", {"kind": "dies_in_boot", "machine": "*-1"})
    delete = {"autodl": "delete_deployment", "matrixdc": "delete_instance"}[backend]
    control.fault(f"{backend}.{delete}", "error_envelope", count=None)
    outcome = run(host, recipe_for(backend, run="echo never"))
    assert (outcome.state, outcome.machines_alive) == ("failed", 1)
    assert [attempt.number for attempt in host.ledger.attempts(outcome.run_id)] == [1]
    control.ask("DELETE", "faults")
    reaper.reap(host, yes=True, reporter=Memory())
    assert control.left() == []


def test_a_container_that_the_provider_replaced_is_a_lost_machine_and_no_stranger(host: Host, control: Control) -> None:
    control.ask("POST", "faults", {"kind": "dies_mid_run", "seconds": 5000, "count": 1})
    recipe, run_id = recipe_for("autodl"), new_run_id()
    open_run(host, recipe, run_id=run_id)
    job = Job(host=host, run=host.ledger.get_run(run_id), recipe=recipe, stop=StopToken(), reporter=Memory())
    machine = rent_first(job, make_plan(host, recipe).choices)
    attempt, backend = Attempt(job, machine), host.backend("autodl")
    attempt.boot()
    before = backend.access(machine)
    control.ask("POST", "clock", {"advance": 5001})
    eventually(lambda: backend.access(machine) not in (None, before), what="another container takes its place")
    with pytest.raises(MachineLost, match="autodl replaced its container"):
        attempt.push()
    attempt.release()
    assert control.left() == []
