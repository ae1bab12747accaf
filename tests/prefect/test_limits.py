"""The team's quota: the pool's limit, and limits by GPU type, held while a machine is rented and no longer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs import prefect_api
from gpujobs.clock import SystemClock
from gpujobs.errors import BadInput
from gpujobs.worker_slots import LeasedSlots
from tests.clocks import ManualClock
from tests.cloud import Control
from tests.prefect.desk import UNTIL_TOLD, let_go, starts_and_left, until
from tests.prefect.site import FixedDesk, Site, opened

pytestmark = [pytest.mark.timeout(400), pytest.mark.xdist_group("limits")]
GPU = "RTX 4090"
LIMIT = f"gpujobs:{GPU}"
TAKEN = f"all places of the team's limit {LIMIT} are taken"
NOBODY = "http://127.0.0.1:9/api"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, FixedDesk, Control]]:
    home = tmp_path_factory.mktemp("site")
    with FakeServer(seed=1) as fake, opened(home, fake, "--limit", "20") as (site, desk, truth, _):
        until(lambda: desk.deployments("run-recipe"), within_s=90)
        yield site, desk, truth


@pytest.fixture
def site(place: tuple[Site, FixedDesk, Control]) -> Site:
    return place[0]


@pytest.fixture
def desk(place: tuple[Site, FixedDesk, Control]) -> FixedDesk:
    return place[1]


@pytest.fixture
def truth(place: tuple[Site, FixedDesk, Control]) -> Control:
    return place[2]


@pytest.fixture
def one_place(desk: FixedDesk) -> Iterator[None]:
    """A limit of one RTX 4090, as `prefect gcl create` makes it.

    Each test in which the host rents wants it: once found missing, it is not asked for again for some moments.
    """
    desk.ask("POST", "/v2/concurrency_limits/", {"name": LIMIT, "limit": 1, "active": True})
    yield
    desk.ask("DELETE", f"/v2/concurrency_limits/{LIMIT}")


def taken(desk: FixedDesk) -> int:
    found: Any = desk.ask("GET", f"/v2/concurrency_limits/{LIMIT}")
    return int(found["active_slots"])


@pytest.fixture
def slots(desk: FixedDesk, tmp_path: Path) -> LeasedSlots:
    return LeasedSlots(desk.api, desk.ledger, tmp_path / "leases.json", driver="here", clock=SystemClock())


def driven_here(desk: FixedDesk) -> str:
    """A run that is over, made to look as if we drove it: the host leaves it alone."""
    run_id, flow_run_id = desk.submit("true")
    desk.ended(flow_run_id)
    until(lambda: desk.ledger.claim_run(run_id, "here", lease_s=600, now=desk.now()))
    desk.ledger.update_run(run_id, state="running")
    return run_id


def test_serve_sets_the_pools_limit(desk: FixedDesk) -> None:
    assert desk.ask("GET", "/work_pools/gpujobs")["concurrency_limit"] == 20


@pytest.mark.usefixtures("one_place")
def test_pools_limit_is_how_many_runs_there_are_at_a_time(desk: FixedDesk, truth: Control) -> None:
    prefect_api.limit_runs(desk.api, 1)
    try:
        runs = [desk.submit(UNTIL_TOLD) for _ in range(2)]
        until(lambda: len(truth.alive()) == 1, within_s=60)
        first, second = sorted(runs, key=lambda run: run[0] not in truth.alive()[0])
        desk.wrote(first[0], "begun")
        assert prefect_api.flow_run_state(desk.api, second[1])[0] == "SCHEDULED"
        let_go(truth)
        desk.wrote(second[0], "begun")
        let_go(truth)
        assert [desk.ended(flow_run_id)[0] for _, flow_run_id in runs] == ["COMPLETED"] * 2
    finally:
        prefect_api.limit_runs(desk.api, 20)


@pytest.mark.usefixtures("one_place")
def test_run_waits_for_a_place_of_its_gpu_says_so_and_can_be_cancelled(desk: FixedDesk, truth: Control) -> None:
    first = desk.submit(UNTIL_TOLD)
    desk.wrote(first[0], "begun")
    assert taken(desk) == 1
    waits, is_cancelled = desk.submit("echo late"), desk.submit("echo never")
    for _, flow_run_id in (waits, is_cancelled):
        desk.logged(flow_run_id, f"waiting: all places of the team's limit {LIMIT} are taken", within_s=60)
    prefect_api.cancel(desk.api, is_cancelled[1])
    assert desk.ended(is_cancelled[1])[0] == "CANCELLED"
    assert len(truth.alive()) == 1
    let_go(truth)
    assert [desk.ended(run[1])[0] for run in (first, waits)] == ["COMPLETED"] * 2
    assert [starts_and_left(truth, run[0]) for run in (first, waits, is_cancelled)] == [(1, []), (1, []), (0, [])]
    until(lambda: taken(desk) == 0)


@pytest.mark.usefixtures("one_place")
def test_place_is_held_while_server_and_host_are_killed_and_the_job_lives(
    site: Site, desk: FixedDesk, truth: Control
) -> None:
    run_id, flow_run_id = desk.submit(UNTIL_TOLD)
    desk.wrote(run_id, "begun")
    site.kill_server()
    site.kill_host()
    site.start_server()
    site.start_host()
    assert taken(desk) == 1
    let_go(truth)
    assert desk.ended(flow_run_id, within_s=120)[0] == "COMPLETED"
    assert starts_and_left(truth, run_id) == (1, [])
    until(lambda: taken(desk) == 0)  # the dead host's lease is the next one's


@pytest.mark.usefixtures("one_place")
def test_lost_lease_is_taken_again(desk: FixedDesk, slots: LeasedSlots) -> None:
    run_id = driven_here(desk)
    assert slots.take(run_id, GPU, 1) == ""
    [lease] = [hold.lease for hold in slots._holds.values()]
    assert lease
    prefect_api.end_lease(desk.api, lease)
    assert taken(desk) == 0
    slots.tend()
    assert taken(desk) == 1
    desk.ledger.update_run(run_id, state="succeeded")
    slots.tend()
    assert taken(desk) == 0


@pytest.mark.usefixtures("one_place")
def test_more_gpus_than_the_limit_has_are_told_of(desk: FixedDesk, slots: LeasedSlots) -> None:
    assert slots.take("0123456789", GPU, 2) == (f"the team's limit {LIMIT} is smaller than the 2 GPUs of one machine")
    with pytest.raises(BadInput):
        prefect_api.take_lease(desk.api, LIMIT, 2, lease_s=60)


def test_without_a_limit_of_that_name_there_is_nothing_to_hold_or_renew(slots: LeasedSlots) -> None:
    assert slots.take("0123456789", "H800", 8) == ""
    assert [hold.lease for hold in slots._holds.values()] == [""]


@pytest.mark.usefixtures("one_place")
def test_limit_that_is_used_up_is_asked_for_again_only_some_moments_later(desk: FixedDesk, tmp_path: Path) -> None:
    clock = ManualClock()
    slots = LeasedSlots(desk.api, desk.ledger, tmp_path / "leases.json", driver="here", clock=clock)
    elsewhere = prefect_api.take_lease(desk.api, LIMIT, 1, lease_s=600)
    assert slots.take("0123456789", GPU, 1) == TAKEN
    prefect_api.end_lease(desk.api, str(elsewhere))
    assert slots.take("0123456789", GPU, 1) == TAKEN
    clock.advance(3.1)
    assert slots.take("0123456789", GPU, 1) == ""
    slots.give_back("0123456789")


def test_limit_that_is_made_meanwhile_counts_some_moments_later(desk: FixedDesk, tmp_path: Path) -> None:
    clock = ManualClock()
    slots = LeasedSlots(desk.api, desk.ledger, tmp_path / "leases.json", driver="here", clock=clock)
    assert slots.take("0123456789", GPU, 1) == ""
    desk.ask("POST", "/v2/concurrency_limits/", {"name": LIMIT, "limit": 1, "active": True})
    try:
        assert slots.take("1123456789", GPU, 1) == ""
        assert taken(desk) == 0
        clock.advance(3.1)
        assert slots.take("2123456789", GPU, 1) == ""
        assert taken(desk) == 1
    finally:
        desk.ask("DELETE", f"/v2/concurrency_limits/{LIMIT}")


@pytest.mark.usefixtures("one_place")
def test_place_that_is_taken_again_while_its_run_gives_it_back_is_not_kept(
    desk: FixedDesk, slots: LeasedSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = prefect_api.take_lease

    def take_late(api: str, limit: str, count: int, *, lease_s: float) -> str | None:
        lease = take(api, limit, count, lease_s=lease_s)
        slots.give_back("0123456789")
        return lease

    slots.hold("0123456789", GPU, 1)
    monkeypatch.setattr(prefect_api, "take_lease", take_late)
    slots._take_again("0123456789", slots._holds["0123456789"])
    assert taken(desk) == 0
    assert slots._holds == {}


@pytest.mark.usefixtures("one_place")
def test_places_of_a_run_that_another_host_drives_are_its_own_to_hold(desk: FixedDesk, slots: LeasedSlots) -> None:
    run_id = driven_here(desk)
    assert slots.take(run_id, GPU, 1) == ""
    desk.ledger.update_run(run_id, state="succeeded")  # for the moment in which nobody drives it
    desk.ledger.release_claim(run_id, "here")
    desk.ledger.claim_run(run_id, "there", lease_s=600, now=desk.now())
    desk.ledger.update_run(run_id, state="running")
    slots.tend()
    assert taken(desk) == 0
    desk.ledger.update_run(run_id, state="succeeded")


@pytest.mark.usefixtures("one_place")
def test_server_that_is_away_is_told_later_what_was_given_back(desk: FixedDesk, slots: LeasedSlots) -> None:
    assert slots.take("0123456789", GPU, 1) == ""
    slots._api = NOBODY
    slots.give_back("0123456789")
    slots._api = desk.api
    assert taken(desk) == 1
    slots.tend()
    assert taken(desk) == 0


def test_where_the_server_is_away_only_a_limit_that_was_never_there_holds_nobody_up(
    desk: FixedDesk, tmp_path: Path
) -> None:
    clock = ManualClock()
    slots = LeasedSlots(desk.api, desk.ledger, tmp_path / "leases.json", driver="here", clock=clock)
    assert slots.take("0123456789", "H800", 8) == ""
    slots.give_back("0123456789")
    slots._api = NOBODY
    clock.advance(3.1)
    assert slots.take("0123456789", "H800", 8) == ""
    assert slots.take("9876543210", GPU, 1).startswith(f"{LIMIT} could not be asked for: ")


@pytest.mark.usefixtures("one_place")
def test_suspension_is_undone_and_the_run_goes_on(desk: FixedDesk, truth: Control) -> None:
    run_id, flow_run_id = desk.submit(UNTIL_TOLD)
    desk.wrote(run_id, "begun")
    suspended = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
    desk.ask("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": suspended})
    kind, _, message = desk.state(flow_run_id, {"RUNNING"})
    assert (kind, "cannot be suspended" in message) == ("RUNNING", True)
    let_go(truth)
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    assert starts_and_left(truth, run_id) == (1, [])
