"""AutoDL's backend: what is its own, at the fake and at servers that say odd things."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from fake_server.autodl_types import Container as FakeContainer
from fake_server.server import FakeServer
from gpujobs.backends._autodl_request import BASE_IMAGES
from gpujobs.backends.autodl import AutoDL, open_backend
from gpujobs.errors import BadInput, NotFound, Refused, Unavailable
from gpujobs.models import Event, ImageRef, Machine, MachineStatus, Offer
from gpujobs.settings import Account
from tests.backends.clouds import TOKEN, Answer, Request, account_on, calls, canned, quiet_server, recipe_of
from tests.backends.test_autodl_wire import CONTAINER, DEPLOYMENT, ok, page
from tests.clocks import ManualClock, eventually

OFFER = Offer(
    backend="autodl",
    region="westDC2",
    gpu="RTX 4090",
    gpu_count=1,
    gpu_memory_gb=None,
    cpus=None,
    memory_gb=None,
    price_cny_per_h=2.0,
    price_is_estimate=True,
    free=3,
)
NAME = "gj-tester-run1-1"
MACHINE = Machine(backend="autodl", id="d1", name=NAME, region="westDC2", status=MachineStatus.QUEUED)
OTHER = {**DEPLOYMENT, "uuid": "d2"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(runs_by_itself=True)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with quiet_server() as server:
        yield server


@pytest.fixture
def backend(server: FakeServer, clock: ManualClock) -> AutoDL:
    return open_backend(account_on(server, "autodl"), clock=clock)


def backend_at(url: str, clock: ManualClock | None = None) -> AutoDL:
    account = Account(api_url=url, token=TOKEN)
    return open_backend(account, clock=clock or ManualClock(runs_by_itself=True))


def until(backend: AutoDL, machine: Machine, status: MachineStatus) -> None:
    eventually(lambda: backend.events([machine])[-1].status is status, what=str(status))


def asked_to_create(recipe: Any, offer: Offer = OFFER, image: str = "", count: int = 1) -> Any:
    with canned(lambda _: ok({"deployment_uuid": "d1"})) as api:
        backend_at(api.url).create(recipe, offer, name=NAME, image=image, count=count)
    return api.asked[0].body


# create


def test_a_job_is_asked_for_with_every_required_field() -> None:
    recipe = recipe_of("RTX 4090", resources={"cpus": 4, "memory": 16, "cuda": "11.8+"}, max_duration="1h")
    body = asked_to_create(recipe, count=2)
    cmd = body["container_template"].pop("cmd")
    assert body == {
        "name": NAME,
        "deployment_type": "Job",
        "replica_num": 2,
        "parallelism_num": 2,
        "reuse_container": False,
        "container_template": {
            "dc_list": ["westDC2"],
            "gpu_name_set": ["RTX 4090"],
            "gpu_num": 1,
            "cuda_v_from": 118,
            "cuda_v_to": 130,
            "cpu_num_from": 4,
            "cpu_num_to": 512,
            "memory_size_from": 16,
            "memory_size_to": 2048,
            "price_from": 10,
            "price_to": 2000,
            "image_uuid": "base-image-l2t43iu6uk",
        },
    }
    assert not set(cmd) & set("$'\"`;&\n")
    keeper = base64.b64decode(cmd.split()[1]).decode()
    assert "base=/root/autodl-tmp/gpujobs\n" in keeper
    assert "linger_s=1800\n" in keeper


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("ReplicaSet", {"deployment_type": "ReplicaSet", "replica_num": 1, "reuse_container": True}),
        ("Container", {"deployment_type": "Container", "reuse_container": True}),
    ],
)
def test_the_recipe_chooses_the_deployment_type(kind: str, fields: Any) -> None:
    body = asked_to_create(recipe_of("RTX 4090", autodl={"deployment_type": kind, "reuse_container": True}))
    assert {key: value for key, value in body.items() if key not in ("name", "container_template")} == fields


def test_a_container_is_one_machine() -> None:
    recipe = recipe_of("RTX 4090", autodl={"deployment_type": "Container"})
    with pytest.raises(BadInput, match="Job or ReplicaSet"):
        open_backend(Account(token="x"), clock=ManualClock()).create(recipe, OFFER, name=NAME, image="", count=2)


def test_an_unknown_price_is_bounded_all_the_same() -> None:
    offer = replace(OFFER, price_cny_per_h=None, gpu_count=2)
    assert asked_to_create(recipe_of("RTX 4090"), offer)["container_template"]["price_to"] == 100_000


@pytest.mark.parametrize("kind", ["Job", "ReplicaSet", "Container"])
def test_each_deployment_type_runs_at_the_fake_and_ends(kind: str, backend: AutoDL) -> None:
    recipe = recipe_of("RTX A4000", autodl={"deployment_type": kind})
    machine = backend.create(recipe, backend.offers(recipe)[0], name=NAME, image="")
    until(backend, machine, MachineStatus.RUNNING)
    backend.power_off(machine)
    until(backend, machine, MachineStatus.ENDED)
    assert [found.status for found in backend.find(NAME)] == [MachineStatus.ENDED]
    backend.release(machine)
    until(backend, machine, MachineStatus.GONE)


def test_a_private_image_is_found_by_its_name(backend: AutoDL, server: FakeServer) -> None:
    recipe = recipe_of("RTX A4000")
    machine = backend.create(recipe, backend.offers(recipe)[0], name=NAME, image="digits-env")
    with server.world.ground.lock:
        made = server.world.autodl.deployments[machine.id]
    assert made.template.image_uuid == "image-5f1b9c2a7d"


def test_two_private_images_of_one_name_are_not_guessed_between() -> None:
    rows = [{"image_uuid": f"image-{number}", "image_name": "mine"} for number in range(2)]
    with canned(lambda _: page(*rows)) as api, pytest.raises(Refused, match="2 images named 'mine'"):
        backend_at(api.url).create(recipe_of("RTX 4090"), OFFER, name=NAME, image="mine")


def test_an_image_uuid_that_the_provider_does_not_know_is_answered_with_the_nearest(backend: AutoDL) -> None:
    recipe = recipe_of("RTX A4000")
    with pytest.raises(Refused, match=r"base-image-l2t43iu6ul.*base-image-l2t43iu6uk.*resources\.image"):
        backend.create(recipe, backend.offers(recipe)[0], name=NAME, image="base-image-l2t43iu6ul")


def test_images_are_the_accounts_own_and_the_documented_ones(backend: AutoDL) -> None:
    images = backend.images()
    assert [image.ref for image in images if image.private] == ["image-5f1b9c2a7d", "image-db8346e037"]
    assert {image.ref for image in images if not image.private} == set(BASE_IMAGES)


# check


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"snapshot": {"name": "a"}}, "snapshot"),
        ({"resources": {"volumes": [{"path": "/root/data", "size": 5}]}}, r"resources\.volumes"),
        ({"resources": {"image": "snapshot:a"}}, r"resources\.image"),
        ({"resources": {"image": {"autodl": "snapshot:a"}}}, r"resources\.image"),
    ],
)
def test_what_autodl_cannot_do_is_refused_before_renting(parts: Any, named: str, backend: AutoDL) -> None:
    with pytest.raises(BadInput, match=named):
        backend.check(recipe_of("RTX 4090", **parts))


def test_another_backends_snapshot_is_none_of_its_business(backend: AutoDL) -> None:
    backend.check(recipe_of("RTX 4090", resources={"image": {"matrixdc": "snapshot:a"}}))


def test_power_off_with_a_snapshot_and_power_on_are_refused(backend: AutoDL, server: FakeServer) -> None:
    with pytest.raises(Refused, match="image"):
        backend.power_off(MACHINE, snapshot=ImageRef(name="a", tag="b"))
    with pytest.raises(Refused, match="d1"):
        backend.power_on(MACHINE)
    assert calls(server) == 0


# offers


def test_the_price_found_is_the_lowest_to_five_fen_and_it_is_kept(backend: AutoDL, server: FakeServer) -> None:
    recipe = recipe_of("4090", resources={"infra": ["autodl/westDC2", "autodl/westdc3"]})
    offers = backend.offers(recipe)
    assert [(offer.region, offer.gpu, offer.price_cny_per_h, offer.free) for offer in offers] == [
        ("westDC2", "RTX 4090", 2.0, 36),
        ("westdc3", "RTX 4090", 2.1, 15),
    ]
    first = calls(server, "autodl.gpu_stock")
    assert first <= 2 + 2 * 12
    assert backend.offers(recipe) == offers
    assert calls(server, "autodl.gpu_stock") - first == 2 + 2 * 2


def test_a_price_is_sought_anew_when_it_is_old_or_sold_out(
    backend: AutoDL, server: FakeServer, clock: ManualClock
) -> None:
    recipe = recipe_of("RTX 3090", resources={"infra": ["autodl/yangzhouDC1"]})
    assert [offer.price_cny_per_h for offer in backend.offers(recipe)] == [1.45]
    with server.world.ground.lock:
        fleet = server.world.autodl.fleet
        fleet.hosts = tuple(replace(host, price_milli_cny_per_h=1300) for host in fleet.hosts)
    assert [offer.price_cny_per_h for offer in backend.offers(recipe)] == [1.45]
    clock.advance(601)
    assert [offer.price_cny_per_h for offer in backend.offers(recipe)] == [1.3]
    with server.world.ground.lock:
        fleet.hosts = tuple(replace(host, price_milli_cny_per_h=1700) for host in fleet.hosts)
    assert [offer.price_cny_per_h for offer in backend.offers(recipe)] == [1.7]


def test_several_gpus_cost_as_much_more_and_are_counted_together(backend: AutoDL) -> None:
    recipe = recipe_of("RTX 4090:4", resources={"infra": "autodl/westDC2", "cpus": 40, "memory": 300})
    (offer,) = backend.offers(recipe)
    assert (offer.gpu_count, offer.price_cny_per_h, offer.free) == (4, 8.0, 9)
    machine = backend.create(recipe, offer, name=NAME, image="")
    until(backend, machine, MachineStatus.RUNNING)


def test_what_needs_more_than_a_host_has_is_not_offered(backend: AutoDL) -> None:
    assert backend.offers(recipe_of("RTX 4090", resources={"cpus": 400})) == []
    assert backend.offers(recipe_of("RTX A4000", resources={"cuda": "12.8"})) == []


def test_only_the_fullest_places_are_priced_and_the_others_come_last(backend: AutoDL) -> None:
    offers = backend.offers(recipe_of("RTX 4090"))
    assert [offer.price_cny_per_h is None for offer in offers] == [False] * 4 + [True]
    bounded = backend.offers(recipe_of("RTX 4090", resources={"max_price": 2.5}))
    assert max(offer.price_cny_per_h or 0 for offer in bounded) == 2.5


def test_a_region_is_found_by_its_chinese_name(backend: AutoDL) -> None:
    recipe = recipe_of("RTX 4090", resources={"infra": "autodl/内蒙A区"})
    (offer,) = backend.offers(recipe)
    assert offer.region == "内蒙A区"
    assert backend.create(recipe, offer, name=NAME, image="").region == "neimengDC1"


def test_a_gpu_of_another_region_is_answered_with_what_is_there(backend: AutoDL) -> None:
    with pytest.raises(BadInput, match=r"'L20' in yangzhouDC1; nearest: RTX 3090; mend .*resources\.infra"):
        backend.offers(recipe_of("L20", resources={"infra": "autodl/yangzhouDC1"}))


def test_any_of_several_gpus_may_be_unknown_here(backend: AutoDL) -> None:
    recipe = recipe_of("L20").model_copy(
        update={"resources": recipe_of("L20").resources.model_copy(update={"accelerators": ["L20", "B200"]})}
    )
    assert {offer.gpu for offer in backend.offers(recipe)} == {"L20"}


NO_REGION = Answer(body={"code": "RequestParameterIsWrong", "msg": "请求参数错误", "data": None})


def stock_but_in(*closed: str) -> Callable[[Request], Answer]:
    def answer(asked: Request) -> Answer:
        if asked.method == "GET":
            return NO_REGION  # the blocked hosts: without them it is not known which offers are in doubt
        if asked.body["region_sign"] in closed:
            return NO_REGION
        return ok({"L20": {"idle_gpu_num": 2, "total_gpu_num": 4}})

    return answer


def test_a_region_that_autodl_closed_does_not_hide_the_others() -> None:
    with canned(stock_but_in("westDC2", "foshanDC1")) as api:
        offers = backend_at(api.url).offers(recipe_of("L20"))
    assert len(offers) == 9
    assert not {"westDC2", "foshanDC1"} & {offer.region for offer in offers}


def test_a_refusal_of_the_region_that_the_recipe_names_or_of_all_is_told() -> None:
    with canned(stock_but_in("westDC2")) as api, pytest.raises(Refused, match="westDC2"):
        backend_at(api.url).offers(recipe_of("L20", resources={"infra": ["autodl/westDC2", "autodl/westDC3"]}))
    with canned(lambda _: NO_REGION) as api, pytest.raises(Refused):
        backend_at(api.url).offers(recipe_of("L20"))


# events


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


# find, access, avoid


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"status": "running", "running_num": 1}, MachineStatus.RUNNING),
        ({"status": "running", "starting_num": 1}, MachineStatus.BOOTING),
        ({"status": "running", "finished_num": 1}, MachineStatus.ENDED),
        ({"status": "running"}, MachineStatus.QUEUED),
        ({"status": "stopped"}, MachineStatus.ENDED),
        ({"status": "stopped", "running_num": 1}, MachineStatus.STOPPING),
        ({"status": "stopped", "starting_num": 1}, MachineStatus.STOPPING),
        ({"status": "melting"}, MachineStatus.UNKNOWN),
    ],
)
def test_what_costs_money_is_told_from_the_list(changes: dict[str, Any], status: MachineStatus) -> None:
    row = {**DEPLOYMENT, "name": NAME, "deployment_type": "Job", "finished_num": 0, **changes}
    with canned(lambda asked: page() if "container" in asked.path else page(row, OTHER)) as api:
        assert [(one.name, one.status) for one in backend_at(api.url).find("gj-")] == [(NAME, status)]


def test_a_job_whose_only_container_is_down_is_over_though_it_reads_running() -> None:
    row = {**DEPLOYMENT, "name": NAME, "deployment_type": "Job", "finished_num": 0, "status": "running"}
    down = {**CONTAINER, "status": "shutdown"}
    assert [found_with(row, down, released=which) for which in (False, True)] == [MachineStatus.ENDED] * 2


@pytest.mark.parametrize(("word", "status"), [("creating", MachineStatus.BOOTING), ("odd", MachineStatus.UNKNOWN)])
def test_a_container_that_lives_is_seen_though_the_list_counts_none(word: str, status: MachineStatus) -> None:
    row = {**DEPLOYMENT, "name": NAME, "deployment_type": "Job", "finished_num": 0, "status": "running"}
    assert found_with(row, {**CONTAINER, "status": word}, released=False) is status


def found_with(row: Any, container: Any, *, released: bool) -> MachineStatus:
    def answer(asked: Request) -> Answer:
        if "container" not in asked.path:
            return page(row)
        return page(*([container] if asked.body["released"] is released else []))

    with canned(answer) as api:
        (machine,) = backend_at(api.url).find("gj-")
    return machine.status


def access_of(*containers: Any) -> Any:
    with canned(lambda _: page(*containers)) as api:
        return backend_at(api.url).access(MACHINE)


def test_access_is_that_of_the_running_container() -> None:
    creating = {**CONTAINER, "uuid": "c0", "status": "creating", "info": {}}
    access = access_of(creating, CONTAINER)
    assert (access.host, access.port, access.user, access.password) == (
        "region-1.autodl.com",
        21305,
        "root",
        "canary-password",
    )
    assert access.links == {
        "6006": "https://region-1.autodl.com:21294",
        "6008": "https://region-1.autodl.com:21295",
    }


@pytest.mark.parametrize("changes", [{"status": "creating"}, {"info": None}, {"status": "shutdown"}])
def test_there_is_no_access_without_a_running_container(changes: dict[str, Any]) -> None:
    assert access_of({**CONTAINER, **changes}) is None
    assert access_of() is None


def test_an_odd_ssh_command_is_refused_by_the_containers_name() -> None:
    odd = {**CONTAINER, "info": {**CONTAINER["info"], "ssh_command": "ssh -oProxyCommand=x -p 1 a@b"}}  # type: ignore[dict-item]
    with pytest.raises(Refused, match="53a677bb3e281b8-f94411a60c-63c24009"):
        access_of(odd)


def test_a_bad_host_is_avoided_for_a_day(backend: AutoDL, server: FakeServer) -> None:
    recipe = recipe_of("RTX 4090")
    machine = backend.create(recipe, backend.offers(recipe)[0], name=NAME, image="")
    assert backend.avoid(machine, why="no container yet") is False
    until(backend, machine, MachineStatus.RUNNING)
    machine = backend.refresh(machine)
    assert backend.avoid(machine, why="slow to boot " + "x" * 300) is True
    with server.world.ground.lock:
        (ban,) = server.world.autodl.bans()
    assert (ban.host.machine_id, ban.comment[:21]) == (machine.host, "gpujobs: slow to boot")
    assert 86000 < ban.expires_at - ban.updated_at <= 86400
    assert backend.avoid(replace(machine, unit="never-was"), why="x") is False


def test_what_may_be_free_on_blocked_hosts_alone_is_in_doubt(backend: AutoDL, server: FakeServer) -> None:
    recipe = recipe_of("RTX 4090", resources={"infra": ["autodl/neimengDC1", "autodl/westDC2"]})
    assert [offer.in_doubt for offer in backend.offers(recipe)] == [False, False]
    with server.world.ground.lock:
        cloud = server.world.autodl
        for region in ("neimengDC1", "westDC2"):  # of one host with a 4090, and of six
            host = next(one for one in cloud.fleet.hosts if (one.data_center, one.gpu_name) == (region, "RTX 4090"))
            cloud.fleet.ban(host, minutes=60, comment="", now=server.world.ground.timeline.now())
    offers = backend.offers(recipe)
    assert [(one.region, one.free, one.in_doubt) for one in offers] == [("neimengDC1", 7, True), ("westDC2", 36, False)]
