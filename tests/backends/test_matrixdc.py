"""MatrixDC's client and backend: what is its own, at the fake and at servers that say odd things."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs.backends._http import Door
from gpujobs.backends._matrixdc_wire import MatrixDCClient, provider
from gpujobs.backends.matrixdc import DEFAULT_IMAGE, MatrixDC, open_backend
from gpujobs.errors import BadInput, NotFound, Refused, Unavailable
from gpujobs.models import Event, ImageRef, Machine, MachineStatus, Offer
from gpujobs.settings import Account
from tests.backends.clouds import (
    TOKEN,
    Answer,
    Request,
    account_on,
    alive,
    calls,
    canned,
    quiet_server,
    recipe_of,
)
from tests.clocks import ManualClock, eventually

REGION = {
    "id": "14c5a9e3-0d09-4aa0-99d3-c096b80cceaa",
    "region": "北京一区",
    "clusterName": "host-cluster",
    "harborAddr": "images.neolink-ai.com",
    "howlerID": "69e377a7-99d1-cca0-ef58-cfce14a336b2",
    "createdAt": "2024-07-15T12:00:23.227+08:00",
    "updatedAt": "2024-07-15T12:00:23.227+08:00",
}
SKU = {
    "name": "H20",
    "regionID": REGION["id"],
    "cpuArch": "x86-64",
    "cpucores": 24,
    "memoryCount": 192,
    "gpuResourceKey": "nvidia.com/gpu-h20",
    "gpuCounts": 1,
    "gpuMemory": 96,
    "systemstorage": 30,
    "datastorage": 50,
    "skusID": "2",
    "clusterName": "host-cluster",
    "sellingType": "1",
    "ratio": 0.48,
    "discountStartTime": "2024-08-15T15:26:38+08:00",
    "discountEndTime": "2024-10-01T00:05:00+08:00",
    "price": 10,
    "remainGPUCount": 8,
}
CREATING = {
    "name": "instance-ccffxxxx",
    "namespace": "xxx",
    "Region": "host-cluster",
    "displayName": "gj-tester-run1-1",
    "annotations": {
        "demo.cdc.datenfab.com/cost-gpu-sku-id": "66",
        "demo.cdc.datenfab.com/unit-price": "250",
    },
    "uid": "8d40c2e6-a0b0-45c2-9b40-a0de065104f5",
    "image": "images.neolink-ai.com/matrixdc/tensorflow:2.15.0",
    "replicas": 1,
    "resources": {"cpu": "16", "memory": "96Gi", "GPUNum": "1", "GPUType": "4090"},
    "volumeMounts": [
        {"PathInContainer": "/", "Type": "local-filesystem", "Size": 30, "filesystemType": "system"},
        {"PathInContainer": "/root/data", "Type": "shared-filesystem", "Size": 0, "filesystemType": "data"},
    ],
    "creationTimestamp": "2024-09-02T18:34:33+08:00",
    "updateTimestamp": "0001-01-01T00:00:00Z",
    "ScheduleStopTimestamp": "0001-01-01T00:00:00Z",
    "status": "Creating",
    "cost": {"CostType": "1", "CostTime": "", "DiscountID": "", "GPUSKUID": "66", "DiskSKUID": "1", "CouponID": ""},
}
SSH = {
    "sshAddr": "ssh -p30099 root@8d40c2e6.gws.demo.cdc.datenfab.com",
    "sshPassword": "canary-password",
}
RUNNING = {
    **CREATING,
    "status": "Running",
    "servers": {
        "Jupyterlab": "http://8d40c2e6.gw.neolink-ai.com/jupyter?token=canary-7d27",
        "Tensorboard": "http://8d40c2e6.gw.neolink-ai.com/monitor",
        "SSH": SSH,
    },
    "Pods": [
        {
            "Name": "instance-ccff84c2-dd6nm",
            "Containers": [{"Name": "worker"}],
            "nodeScheduled": "gpu-4090-03",
            "ip": "172.31.213.79",
        }
    ],
}
NAME = "gj-tester-run1-1"
MACHINE = Machine(
    backend="matrixdc", id="instance-ccffxxxx", name=NAME, region="host-cluster", status=MachineStatus.BOOTING
)
INSTANCES = "/clusters/host-cluster/instances"
MISSING = Answer(404, {"message": "实例不存在"})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(runs_by_itself=True)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with quiet_server() as server:
        yield server


@pytest.fixture
def backend(server: FakeServer, clock: ManualClock) -> MatrixDC:
    return open_backend(account_on(server, "matrixdc"), clock=clock)


def account_at(url: str, **more: Any) -> Account:
    return Account(api_url=url, token=TOKEN, namespace="me", **more)


def backend_at(url: str, clock: ManualClock | None = None, **more: Any) -> MatrixDC:
    return open_backend(account_at(url, **more), clock=clock or ManualClock(runs_by_itself=True))


def client_at(url: str) -> MatrixDCClient:
    return MatrixDCClient(Door(provider(account_at(url)), clock=ManualClock(runs_by_itself=True)))


def offer_at(backend: MatrixDC, gpu: str = "4090", **parts: Any) -> Offer:
    return backend.offers(recipe_of(gpu, **parts))[0]


def make(backend: MatrixDC, name: str = NAME, **parts: Any) -> Machine:
    recipe = recipe_of("4090", **parts)
    return backend.create(recipe, backend.offers(recipe)[0], name=name, image="")


def until(backend: MatrixDC, machine: Machine, status: MachineStatus) -> None:
    eventually(lambda: backend.events([machine])[-1].status is status, what=str(status))


def listed(*nodes: Any, more: bool = False, total: int | None = None) -> Answer:
    return Answer(
        body={
            "hasNextPage": more,
            "nodes": list(nodes) or None,
            "totalCount": len(nodes) if total is None else total,
        }
    )


def cloud(*nodes: Any, single: Answer = MISSING, **more: Any) -> Callable[[Request], Answer]:
    """Answer as a cloud of these instances; `single` is what one that is asked for by itself gets."""

    def answer(asked: Request) -> Answer:
        if asked.path == "/regions":
            return Answer(body=[REGION])
        return listed(*nodes, **more) if asked.path == INSTANCES else single

    return answer


# client


@pytest.mark.parametrize(
    ("ask", "answer", "method", "path", "body"),
    [
        (lambda api: api.regions(), [], "GET", "/regions", None),
        (lambda api: api.skus("a b"), [], "GET", "/skus/computings?region_id=a+b", None),
        (lambda api: api.create_instance("c", {"a": 1}), CREATING, "POST", "/clusters/c/instances", {"a": 1}),
        (lambda api: api.instances("c"), {"nodes": []}, "GET", "/clusters/c/instances", None),
        (lambda api: api.instance("c", "i/../j"), RUNNING, "GET", "/clusters/c/instances/i%2F..%2Fj", None),
        (
            lambda api: api.power_off("c", "i", image_name="image1", tag="v1.1.0"),
            "ok",
            "POST",
            "/clusters/c/instances/i/power_off",
            {"gracePeriodSeconds": 10, "needSnapshot": True, "imageName": "image1", "tag": "v1.1.0"},
        ),
        (
            lambda api: api.power_off("c", "i", grace_s=3),
            "ok",
            "POST",
            "/clusters/c/instances/i/power_off",
            {"gracePeriodSeconds": 3, "needSnapshot": False, "imageName": "", "tag": ""},
        ),
        (lambda api: api.power_on("c", "i"), "ok", "POST", "/clusters/c/instances/i/power_on", None),
        (lambda api: api.delete_instance("c", "i"), "ok", "DELETE", "/clusters/c/instances?name=i", None),
    ],
)  # fmt: skip
def test_each_endpoint_is_asked_as_documented(
    ask: Callable[[MatrixDCClient], Any], answer: Any, method: str, path: str, body: Any
) -> None:
    with canned(lambda _: Answer(body=answer)) as api:
        ask(client_at(api.url))
    (asked,) = api.asked
    assert (asked.method, asked.path, asked.body) == (method, path, body)
    assert (asked.headers["Authorization"], asked.headers["namespace"]) == (f"bearer {TOKEN}", "me")


def test_an_instance_is_read_while_it_is_made_and_when_it_runs() -> None:
    with canned(lambda asked: Answer(body=CREATING if asked.path.endswith("/a") else RUNNING)) as api:
        creating, running = client_at(api.url).instance("c", "a"), client_at(api.url).instance("c", "b")
    assert (creating.name, creating.display_name, creating.status) == ("instance-ccffxxxx", NAME, "Creating")
    assert creating.created_at == datetime(2024, 9, 2, 10, 34, 33, tzinfo=UTC)
    assert (creating.updated_at, creating.stop_at, creating.pods) == (None, None, ())
    assert creating.servers.ssh.address == ""
    assert [(disk.path, disk.size_gb) for disk in creating.volume_mounts] == [("/", 30), ("/root/data", 0)]
    assert (creating.resources.memory_gb, creating.annotation("unit-price")) == (96.0, "250")
    assert creating.annotation("price") == ""
    assert running.pods[0].node == "gpu-4090-03"
    assert running.servers.ssh.password.get_secret_value() == "canary-password"
    assert "canary" not in repr(running) + str(running) + repr(running.servers) + repr(running.servers.ssh)
    assert running.model_extra
    assert running.model_extra["Region"] == "host-cluster"


@pytest.mark.parametrize(
    ("memory", "gb"),
    [("96Gi", 96.0), ("98304Mi", 96.0), ("1Ti", 1024.0), ("103079215104", 96.0), ("", None), ("?", None)],
)  # fmt: skip
def test_memory_is_read_with_its_unit(memory: str, gb: float | None) -> None:
    with canned(lambda _: Answer(body={**CREATING, "resources": {"memory": memory}})) as api:
        assert client_at(api.url).instance("c", "i").resources.memory_gb == gb


def test_a_region_and_a_size_are_read() -> None:
    with canned(lambda asked: Answer(body=[REGION] if asked.path == "/regions" else [SKU])) as api:
        (region,), (sku,) = client_at(api.url).regions(), client_at(api.url).skus("x")
    assert (region.region, region.cluster_name, region.harbor_addr) == (
        "北京一区",
        "host-cluster",
        "images.neolink-ai.com",
    )
    assert (sku.name, sku.gpu_counts, sku.remain_gpu_count, sku.price) == ("H20", 1, 8, 10.0)
    assert (sku.skus_id, sku.selling_type, sku.memory_count) == ("2", "1", 192.0)


@pytest.mark.parametrize("body", ["ok", "OK", "", {}, None, b"", b"ok"])
def test_what_is_answered_to_an_act_matters_little(body: Any) -> None:
    with canned(lambda _: Answer(body=body)) as api:
        client_at(api.url).delete_instance("c", "i")
    assert len(api.asked) == 1


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


# access, power, release


def test_access_is_that_of_the_running_instance() -> None:
    with canned(lambda _: Answer(body=RUNNING)) as api:
        access = backend_at(api.url).access(MACHINE)
    assert access is not None
    assert (access.host, access.port, access.user) == ("8d40c2e6.gws.demo.cdc.datenfab.com", 30099, "root")
    assert access.password == "canary-password"
    assert access.links == {
        "jupyter": "http://8d40c2e6.gw.neolink-ai.com/jupyter?token=canary-7d27",
        "tensorboard": "http://8d40c2e6.gw.neolink-ai.com/monitor",
    }
    assert "canary" not in repr(access)


@pytest.mark.parametrize("changes", [{"servers": None}, {"servers": {"SSH": None}}, {"status": "Shutdown"}])
def test_there_is_no_access_before_there_is_an_address(changes: Any) -> None:
    with canned(lambda _: Answer(body={**RUNNING, **changes})) as api:
        assert backend_at(api.url).access(MACHINE) is None


def test_an_odd_ssh_address_is_refused_by_the_instances_name() -> None:
    odd = {**RUNNING, "servers": {"SSH": {**SSH, "sshAddr": "ssh -p1 root@host; reboot"}}}
    with canned(lambda _: Answer(body=odd)) as api, pytest.raises(Refused, match="instance-ccffxxxx"):
        backend_at(api.url).access(MACHINE)


def test_a_kept_machine_is_switched_on_again(backend: MatrixDC) -> None:
    machine = make(backend)
    until(backend, machine, MachineStatus.RUNNING)
    first = backend.access(machine)
    backend.power_off(machine)
    until(backend, machine, MachineStatus.OFF)
    assert backend.access(machine) is None
    backend.power_on(machine)
    backend.power_on(machine)
    until(backend, machine, MachineStatus.RUNNING)
    backend.power_on(machine)
    again = backend.access(machine)
    assert first
    assert again
    assert first.password != again.password


def test_a_refusal_of_what_is_done_already_is_success_and_any_other_is_not() -> None:
    refusal = Answer(409, {"message": "状态不允许"})

    def answer(asked: Request) -> Answer:
        if asked.path == "/regions":
            return Answer(body=[REGION])
        return refusal if asked.method in ("POST", "DELETE") else Answer(body={**RUNNING, "status": status})

    with canned(answer) as api:
        backend = backend_at(api.url)
        status = "Shutting Down"
        image = backend.power_off(MACHINE, snapshot=ImageRef(name="env", tag="v1"))
        assert image == "images.neolink-ai.com/me/env:v1"
        with pytest.raises(Refused):
            backend.power_on(MACHINE)
        with pytest.raises(Refused):
            backend.release(MACHINE)
        status = "Running"
        backend.power_on(MACHINE)
        with pytest.raises(Refused):
            backend.power_off(MACHINE)
        status = "Deleting"
        backend.release(MACHINE)


def test_a_disk_that_is_gone_cannot_be_saved() -> None:
    with canned(lambda _: MISSING) as api:
        assert backend_at(api.url).power_off(MACHINE) == ""
        with pytest.raises(NotFound):
            backend_at(api.url).power_off(MACHINE, snapshot=ImageRef(name="env", tag="v1"))


def test_a_machine_can_be_released_in_any_state(backend: MatrixDC, server: FakeServer) -> None:
    made = [make(backend, f"gj-t-run1-{number}") for number in range(2)]
    backend.release(made[0])
    until(backend, made[1], MachineStatus.RUNNING)
    backend.power_off(made[1])
    until(backend, made[1], MachineStatus.OFF)
    backend.release(made[1])
    for machine in made:
        until(backend, machine, MachineStatus.GONE)
    assert alive(server) == []


def test_it_has_no_blacklist_and_lists_no_images(backend: MatrixDC, server: FakeServer) -> None:
    assert backend.avoid(MACHINE, why="slow") is False
    assert backend.images() == []
    assert calls(server) == 0


def test_the_price_is_remembered_by_size_for_machines_that_are_found(
    backend: MatrixDC, server: FakeServer, clock: ManualClock
) -> None:
    machine = make(backend)
    assert [one.price_cny_per_h for one in backend.find("gj-")] == [2.5]
    told = replace(machine, price_cny_per_h=9.0)
    assert backend.refresh(told).price_cny_per_h == 2.5  # what is billed, whatever was expected
    assert open_backend(account_on(server, "matrixdc"), clock=clock).refresh(told).price_cny_per_h == 9.0
