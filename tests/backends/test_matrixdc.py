"""MatrixDC's backend: what is its own, at the fake and at servers that say odd things."""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs.backends.matrixdc import DEFAULT_IMAGE, MatrixDC, open_backend
from gpujobs.errors import BadInput, Unavailable
from gpujobs.models import Event, Machine, MachineStatus, Offer
from gpujobs.settings import Account
from tests.backends.clouds import Answer, Request, account_on, calls, canned, recipe_of
from tests.backends.matrixdc_values import (
    CREATING,
    INSTANCES,
    MACHINE,
    NAME,
    REGION,
    RUNNING,
    SKU,
    backend_at,
    cloud,
    make,
    offer_at,
)
from tests.clocks import ManualClock, eventually


@pytest.fixture
def backend(server: FakeServer, clock: ManualClock) -> MatrixDC:
    return open_backend(account_on(server, "matrixdc"), clock=clock)


# open, check, offers


def test_without_a_namespace_it_does_not_open() -> None:
    with pytest.raises(BadInput, match="MATRIXDC_NAMESPACE"):
        open_backend(Account(token="x"), clock=ManualClock())


@pytest.mark.parametrize("paths", [["/"], ["/root/data", "/root/data/"]])
def test_volumes_that_cover_each_other_are_refused(paths: list[str], backend: MatrixDC) -> None:
    with pytest.raises(BadInput, match=r"resources\.volumes"):
        backend.check(recipe_of("4090", resources={"volumes": [{"path": path, "size": 5} for path in paths]}))


def test_an_offer_tells_all_that_a_size_says(backend: MatrixDC) -> None:
    assert offer_at(backend, "RTX 4090:2") == Offer(
        backend="matrixdc",
        region="host-cluster",
        gpu="4090",
        gpu_count=2,
        gpu_memory_gb=24.0,
        cpus=32,
        memory_gb=192.0,
        price_cny_per_h=5.0,
        price_is_estimate=True,
        free=8,
        sku="67",
    )


@pytest.mark.parametrize("word", ["北京一区", "host-cluster", REGION["id"]])
def test_a_region_is_found_by_name_cluster_or_id_and_called_as_the_user_does(word: str, backend: MatrixDC) -> None:
    recipe = recipe_of("H20", resources={"infra": f"matrixdc/{word}"})
    offer = backend.offers(recipe)[0]
    assert offer.region == word
    assert backend.create(recipe, offer, name=NAME, image="").region == "host-cluster"


def test_prices_are_read_in_the_accounts_unit_and_per_hour(server: FakeServer, clock: ManualClock) -> None:
    account = replace(account_on(server, "matrixdc"), price_scale=0.1)
    scaled = open_backend(account, clock=clock)
    assert offer_at(scaled).price_cny_per_h == pytest.approx(0.25)
    day = offer_at(scaled, matrixdc={"cost_type": 4, "cost_time": "3D"})
    assert day.sku == "72"
    assert day.price_cny_per_h == pytest.approx(50 * 0.1 / 24)


def test_a_size_without_a_price_is_of_unknown_price_and_never_below_a_bound() -> None:
    def answer(asked: Request) -> Answer:
        return Answer(body=[REGION] if asked.path == "/regions" else [{**SKU, "price": None}, SKU])

    with canned(answer) as api:
        backend = backend_at(api.url)
        assert [offer.price_cny_per_h for offer in backend.offers(recipe_of("H20"))] == [10.0, None]
        bounded = backend.offers(recipe_of("H20", resources={"max_price": 20}))
        assert [offer.price_cny_per_h for offer in bounded] == [10.0]


@pytest.mark.parametrize(
    ("gpu", "resources", "message"),
    [
        ("4090:3", {}, r"4090:1, 4090:2, 4090:4, 4090:8; mend the count"),
        ("4090", {"cpus": 500}, r"16 CPUs and 96 GB; lower resources\.cpus"),
        ("4090", {"memory": 5000}, r"16 CPUs and 96 GB; lower resources\.cpus or resources\.memory"),
    ],
)
def test_what_no_size_has_is_said_rather_than_called_sold_out(
    gpu: str, resources: Any, message: str, backend: MatrixDC
) -> None:
    with pytest.raises(BadInput, match=message):
        backend.offers(recipe_of(gpu, resources=resources))


def test_a_way_of_paying_that_is_not_sold_is_said() -> None:
    hourly = canned(lambda asked: Answer(body=[REGION] if asked.path == "/regions" else [SKU]))
    with hourly as api, pytest.raises(BadInput, match="cost_type 3"):
        backend_at(api.url).offers(recipe_of("H20", matrixdc={"cost_type": 3, "cost_time": "1W"}))


def test_what_is_sold_out_is_not_offered(backend: MatrixDC) -> None:
    assert backend.offers(recipe_of("H800")) == []


def test_regions_are_asked_for_once_in_ten_minutes(backend: MatrixDC, server: FakeServer, clock: ManualClock) -> None:
    for _ in range(3):
        backend.find("gj-")
    assert calls(server, "matrixdc.list_regions") == 1
    clock.advance(601)
    backend.find("gj-")
    assert calls(server, "matrixdc.list_regions") == 2


# create


def test_an_instance_is_asked_for_as_documented() -> None:
    recipe = recipe_of(
        "4090",
        resources={"volumes": [{"path": "/root/data", "size": 80}, {"path": "/mnt/x", "size": 5}]},
        matrixdc={"cost_type": 1, "coupon": "c-1"},
    )

    def answer(asked: Request) -> Answer:
        return Answer(body=[REGION]) if asked.path == "/regions" else Answer(body=CREATING)

    offer = Offer(
        backend="matrixdc",
        region="北京一区",
        gpu="4090",
        gpu_count=1,
        gpu_memory_gb=24,
        cpus=16,
        memory_gb=96,
        price_cny_per_h=2.5,
        price_is_estimate=True,
        free=1,
        sku="66",
    )
    with canned(answer) as api:
        machine = backend_at(api.url).create(recipe, offer, name=NAME, image="")
    asked = api.asked[-1]
    assert (asked.method, asked.path) == ("POST", INSTANCES)
    assert asked.body == {
        "Cost": {"CostType": "1", "CouponID": "c-1", "DiskSKUID": "1", "GPUSKUID": "66", "CostTime": ""},
        "VolumeMount": [
            {"PathInContainer": "/root/data", "Size": 80, "Type": "shared-filesystem"},
            {"PathInContainer": "/mnt/x", "Size": 5, "Type": "shared-filesystem"},
        ],
        "namespace": "me",
        "displayName": NAME,
        "image": DEFAULT_IMAGE,
        "Region": "北京一区",
    }
    assert machine == Machine(
        backend="matrixdc",
        id="instance-ccffxxxx",
        name=NAME,
        region="host-cluster",
        status=MachineStatus.BOOTING,
        raw_status="Creating",
        price_cny_per_h=2.5,
        created_at=datetime(2024, 9, 2, 10, 34, 33, tzinfo=UTC),
    )


def test_a_machine_without_volumes_in_its_recipe_has_a_data_disk(backend: MatrixDC, server: FakeServer) -> None:
    machine = make(backend)
    with server.world.ground.lock:
        (instance,) = server.world.matrixdc.instances.values()
    assert instance.name == machine.id
    assert list(instance.order.volumes) == [("/root/data", 50)]


def test_several_machines_are_several_requests(backend: MatrixDC, server: FakeServer) -> None:
    with pytest.raises(BadInput, match="one machine a request"):
        backend.create(recipe_of("4090"), offer_at(backend), name=NAME, image="", count=2)
    assert calls(server, "matrixdc.create_instance") == 0


# find and events


def test_fifty_machines_cost_one_list_call_a_look(backend: MatrixDC, server: FakeServer) -> None:
    with server.world.ground.lock:
        server.world.matrixdc.idle["4090"] = 100
    recipe, offer = recipe_of("4090"), offer_at(backend)
    machines = [backend.create(recipe, offer, name=f"gj-t-run1-{number}", image="") for number in range(50)]
    eventually(
        lambda: all(event.status is MachineStatus.RUNNING for event in backend.events(machines)), what="all running"
    )
    before = calls(server)
    events = backend.events(machines)
    assert calls(server) - before == 1
    assert [event.machine_id for event in events] == [machine.id for machine in machines]


@pytest.mark.parametrize("more", [{"more": True}, {"total": 7}])
def test_a_list_that_is_not_whole_is_no_truth_for_find_and_said_loudly(
    more: Any, caplog: pytest.LogCaptureFixture
) -> None:
    message = r"only 1 of \w+ instances in host-cluster .* delete instances"
    with canned(cloud(RUNNING, **more)) as api, pytest.raises(Unavailable, match=message):
        backend_at(api.url).find("gj-")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_machine_that_a_list_lacks_is_asked_for_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    with canned(cloud(single=Answer(body=RUNNING), more=True)) as api:
        backend = backend_at(api.url)
        assert [backend.events([MACHINE])[-1].status for _ in range(3)] == [MachineStatus.RUNNING] * 3
    assert len(caplog.records) == 1
    with canned(cloud()) as api:
        events = backend_at(api.url).events([MACHINE])
    assert events == [Event(machine_id=MACHINE.id, unit="", status=MachineStatus.GONE, raw_status="", at=None)]


def test_one_just_made_is_not_called_gone_because_a_list_is_behind() -> None:
    clock = ManualClock(runs_by_itself=True)

    def answer(asked: Request) -> Answer:
        return Answer(body=CREATING) if asked.method == "POST" else cloud()(asked)

    with canned(answer) as api:
        backend = backend_at(api.url, clock)
        offer = Offer(
            backend="matrixdc",
            region="host-cluster",
            gpu="4090",
            gpu_count=1,
            gpu_memory_gb=None,
            cpus=1,
            memory_gb=1,
            price_cny_per_h=1,
            price_is_estimate=True,
            free=1,
        )
        machine = backend.create(recipe_of("4090"), offer, name=NAME, image="")
        assert backend.events([machine]) == []
        clock.advance(31)
        assert [event.status for event in backend.events([machine])] == [MachineStatus.GONE]
        machine = backend.create(recipe_of("4090"), offer, name=NAME, image="")
        backend.release(machine)
        assert [event.status for event in backend.events([machine])] == [MachineStatus.GONE]


def test_a_status_has_one_time_until_it_changes() -> None:
    clock = ManualClock()
    statuses = ["Creating", "Running", "Running", "Shutdown", "Running"]
    events: list[Event] = []

    def answer(asked: Request) -> Answer:
        return cloud({**RUNNING, "status": statuses[len(api.asked) - 1]})(asked)

    with canned(answer) as api:
        backend = backend_at(api.url, clock)
        for _ in statuses:
            events += backend.events([MACHINE])
            clock.advance(1)
    assert [event.raw_status for event in events] == statuses
    assert [len({event.key for event in events[:count]}) for count in range(1, 6)] == [1, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("Creating", MachineStatus.BOOTING),
        ("Starting", MachineStatus.BOOTING),
        ("Running", MachineStatus.RUNNING),
        ("running", MachineStatus.RUNNING),
        ("Shutting Down", MachineStatus.STOPPING),
        ("ShuttingDown", MachineStatus.STOPPING),
        ("Shutdown", MachineStatus.OFF),
        ("Deleting", MachineStatus.STOPPING),
        ("Melting", MachineStatus.UNKNOWN),
    ],
)
def test_statuses_are_read(word: str, status: MachineStatus) -> None:
    with canned(cloud({**RUNNING, "status": word})) as api:
        assert [(one.status, one.raw_status) for one in backend_at(api.url).find("gj-")] == [(status, word)]
