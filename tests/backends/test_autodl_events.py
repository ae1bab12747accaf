"""AutoDL's events: what they tell of a deployment, in whatever order and number they come."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from fake_server.autodl_types import Container as FakeContainer
from fake_server.server import FakeServer
from gpujobs.backends.autodl import AutoDL, open_backend
from gpujobs.errors import NotFound, Refused, Unavailable
from gpujobs.models import Event, MachineStatus
from tests.backends.autodl_values import (
    DEPLOYMENT,
    MACHINE,
    NAME,
    NO_REGION,
    OFFER,
    backend_at,
    ok,
    page,
    until,
)
from tests.backends.clouds import Answer, Request, account_on, calls, canned, recipe_of
from tests.clocks import ManualClock, eventually


@pytest.fixture
def backend(server: FakeServer, clock: ManualClock) -> AutoDL:
    return open_backend(account_on(server, "autodl"), clock=clock)


def event(container: str, status: str, second: int | None) -> dict[str, Any]:
    at = None if second is None else f"2022-12-13T16:34:{second:02d}+08:00"
    return {"deployment_container_uuid": container, "status": status, "created_at": at}


def heard(*rows: dict[str, Any], deployment: Any = None, size: int = 100) -> list[Event]:
    """Give the events made of `rows`, which come newest first as on the wire."""

    def answer(asked: Request) -> Answer:
        if "event" not in asked.path:
            return page(*([deployment] if deployment else []))
        first = (asked.body["page_index"] - 1) * size
        return ok({"list": list(rows[first : first + size]), "max_page": -(-len(rows) // size)})

    with canned(answer) as api:
        return list(backend_at(api.url).events([MACHINE]))


def words(events: list[Event]) -> list[str]:
    return [f"{one.unit}:{one.raw_status}" for one in events]


def test_events_that_tie_in_time_keep_the_order_of_a_containers_life() -> None:
    events = heard(event("c", "running", 57), event("c", "starting", 55), event("c", "oss_merged", 55))
    assert words(events) == ["c:starting", "c:oss_merged", "c:running"]
    assert events[-1] == Event(
        machine_id="d1",
        unit="c",
        status=MachineStatus.RUNNING,
        raw_status="running",
        at=datetime(2022, 12, 13, 8, 34, 57, tzinfo=UTC),
    )


def test_events_that_come_twice_or_out_of_order_change_nothing() -> None:
    rows = [event("c", "creating", 1), event("c", "running", 9), event("c", "created", 2), event("c", "running", 9)]
    assert words(heard(*rows)) == ["c:creating", "c:created", "c:running"]


def test_the_container_that_lives_has_the_last_word_over_the_one_it_replaced() -> None:
    events = heard(
        event("old", "shutdown", 40),  # it took its time
        event("new", "creating", 30),
        event("old", "shutting_down", 20),
        event("old", "running", 10),
    )
    assert words(events) == ["old:running", "old:shutting_down", "old:shutdown", "new:creating"]


def test_the_container_that_lives_has_the_last_word_though_it_is_the_older_one() -> None:
    rows = [
        event("b", "shutdown", 40),
        event("b", "creating", 30),
        event("a", "running", 20),
        event("a", "creating", 10),
    ]
    assert words(heard(*rows)) == ["b:creating", "b:shutdown", "a:creating", "a:running"]


def test_an_unknown_word_stands_where_its_time_puts_it() -> None:
    rows = [event("c", "running", 9), event("c", "warming", 5), event("c", "creating", 1)]
    assert words(heard(*rows)) == ["c:creating", "c:warming", "c:running"]
    events = heard(event("c", "melting", 12), *rows)
    assert (events[-1].status, events[-1].raw_status) == (MachineStatus.UNKNOWN, "melting")


def test_events_without_a_time_do_not_matter_more() -> None:
    assert words(heard(event("c", "running", None), event("c", "creating", None))) == ["c:creating", "c:running"]


def test_all_pages_are_read_at_first_and_only_what_is_new_later() -> None:
    rows = [event(f"c{number}", "shutdown", number) for number in range(30, 0, -1)]

    def answer(asked: Request) -> Answer:
        if "event" not in asked.path:
            return page({**DEPLOYMENT, "uuid": "d1", "status": "running", "deployment_type": "ReplicaSet"})
        first = (asked.body["page_index"] - 1) * 10
        return ok({"list": rows[first : first + 10], "max_page": -(-len(rows) // 10)})

    with canned(answer) as api:
        backend = backend_at(api.url)
        assert len(backend.events([MACHINE])) == 31
        assert [asked.body["page_index"] for asked in api.asked if "event" in asked.path] == [1, 2, 3]
        assert all(asked.body["offset"] == 0 for asked in api.asked if "event" in asked.path)
        rows[:0] = [event("c31", "running", 40), event("c31", "creating", 35)]
        api.asked.clear()
        assert words(list(backend.events([MACHINE])))[-2:] == ["c31:creating", "c31:running"]
        assert [asked.body["page_index"] for asked in api.asked] == [1]


@pytest.mark.parametrize(
    ("changes", "rows", "status"),
    [
        ({"status": "running"}, [], MachineStatus.QUEUED),
        ({"status": "stopped"}, [], MachineStatus.ENDED),
        ({"status": "running", "finished_num": 0}, [("c", "shutdown")], MachineStatus.ENDED),
        ({"status": "running", "finished_num": 0}, [("c", "in_cache")], MachineStatus.ENDED),
        ({"status": "running", "finished_num": 0}, [("c", "failed")], MachineStatus.FAILED),
        ({"status": "running", "finished_num": 0, "replica_num": 2}, [("c", "shutdown")], MachineStatus.QUEUED),
        ({"status": "running", "finished_num": 3, "replica_num": 2}, [("c", "shutdown")], MachineStatus.ENDED),
        (
            {"status": "running", "deployment_type": "ReplicaSet", "finished_num": 3},
            [("c", "shutdown")],
            MachineStatus.QUEUED,
        ),
        (
            {"status": "stopped", "deployment_type": "ReplicaSet", "finished_num": 3},
            [("c", "shutdown")],
            MachineStatus.ENDED,
        ),
    ],
)
def test_where_a_deployment_stands_when_no_container_lives(
    changes: dict[str, Any], rows: list[tuple[str, str]], status: MachineStatus
) -> None:
    deployment = {**DEPLOYMENT, "uuid": "d1", "deployment_type": "Job", "finished_num": 0, **changes}
    events = heard(*[event(unit, word, 9) for unit, word in rows], deployment=deployment)
    assert events[-1].status is status


@pytest.mark.parametrize("rows", [[], [event("c", "shutdown", 9)]])
def test_a_deployment_that_is_listed_no_more_is_gone(rows: list[Any]) -> None:
    assert heard(*rows)[-1] == Event(machine_id="d1", unit="", status=MachineStatus.GONE, raw_status="", at=None)


def test_a_released_deployment_is_gone_even_if_its_events_stop_at_running() -> None:
    def answer(asked: Request) -> Answer:
        return page(event("c", "running", 9)) if "event" in asked.path else page()

    with canned(answer) as api:
        backend = backend_at(api.url)
        assert backend.events([MACHINE])[-1].status is MachineStatus.RUNNING
        backend.release(MACHINE)
        assert backend.events([MACHINE])[-1].status is MachineStatus.GONE


def test_one_just_made_is_not_called_gone_because_a_list_is_behind() -> None:
    clock = ManualClock(runs_by_itself=True)

    def answer(asked: Request) -> Answer:
        return ok({"deployment_uuid": "d1"}) if asked.path.endswith("/deployment") else page()

    with canned(answer) as api:
        backend = backend_at(api.url, clock)
        machine = backend.create(recipe_of("RTX 4090"), OFFER, name=NAME, image="")
        assert backend.events([machine]) == []
        with pytest.raises(Unavailable, match="not listed yet"):
            backend.refresh(machine)
        clock.advance(31)
        assert [one.status for one in backend.events([machine])] == [MachineStatus.GONE]
        with pytest.raises(NotFound):
            backend.refresh(machine)


def test_a_refusal_of_one_machine_leaves_the_others_their_news() -> None:
    def answer(asked: Request) -> Answer:
        return page(event("c", "running", 9)) if asked.body["deployment_uuid"] == "d1" else NO_REGION

    with canned(answer) as api:
        backend = backend_at(api.url)
        odd = replace(MACHINE, id="odd")
        assert [one.machine_id for one in backend.events([odd, MACHINE])] == ["d1"]
        with pytest.raises(Refused):
            backend.events([odd])
        assert backend.events([]) == []


def test_a_deployment_that_vanishes_while_it_is_looked_at_is_gone() -> None:
    row = {**DEPLOYMENT, "name": NAME, "deployment_type": "Job", "finished_num": 0, "status": "running"}
    missing = Answer(body={"code": "RecordNotFoundError", "msg": "", "data": None})
    with canned(lambda asked: missing if "container" in asked.path else page(row)) as api:
        assert [one.status for one in backend_at(api.url).find("gj-")] == [MachineStatus.GONE]


def test_the_events_of_a_running_machine_cost_one_call(backend: AutoDL, server: FakeServer) -> None:
    recipe = recipe_of("RTX 4090")
    offer = backend.offers(recipe)[0]
    machines = [backend.create(recipe, offer, name=f"gj-t-run1-{number}", image="") for number in range(3)]
    for machine in machines:
        until(backend, machine, MachineStatus.RUNNING)
    before, events_before = calls(server), calls(server, "autodl.list_events")
    backend.events(machines)
    assert calls(server) - before == calls(server, "autodl.list_events") - events_before == 3


def test_a_container_that_was_replaced_is_adopted(backend: AutoDL, server: FakeServer) -> None:
    recipe = recipe_of("RTX 4090", autodl={"deployment_type": "ReplicaSet"})
    machine = backend.create(recipe, backend.offers(recipe)[0], name=NAME, image="")
    until(backend, machine, MachineStatus.RUNNING)
    machine = backend.refresh(machine)
    with server.world.ground.lock:
        first: FakeContainer = server.world.autodl.container(machine.unit)
        server.world.autodl.stop_container(first, decrease=False, no_cache=True, farewell="")
    eventually(
        lambda: (last := backend.events([machine])[-1]).status is MachineStatus.RUNNING and last.unit != machine.unit,
        what="another container runs",
    )
    anew = backend.refresh(machine)
    assert (anew.id, anew.unit != machine.unit) == (machine.id, True)
