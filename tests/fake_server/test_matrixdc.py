"""MatrixDC: how instances live, what they cost, and the wire dialect, on a clock that the tests move."""

from typing import Any

import pytest
import requests

from fake_server.server import FakeServer
from fake_server.timings import Guesses
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, OFFICIAL_IMAGE, Wires, eventually, instance

REGION = "14c5a9e3-0d09-4aa0-99d3-c096b80cceaa"
COST = instance()["Cost"]
VOLUME = instance()["VolumeMount"][0]


def running(wires: Wires, **changes: Any) -> str:
    """Rent an instance and let it boot."""
    name = wires.rent(**changes)
    wires.advance(0.5)
    wires.boxed(name, "Running")
    return name


def off(wires: Wires, name: str, body: Any = None) -> None:
    """Power an instance off and wait for it."""
    assert wires.matrixdc("POST", f"{INSTANCES}/{name}/power_off", body) == "ok"
    eventually(lambda: wires.advance(0.1) or wires.box(name)["status"] == "Shutdown")


def gone(wires: Wires, name: str) -> None:
    """Delete an instance and wait until the list has it no more."""
    assert wires.matrixdc("DELETE", f"{INSTANCES}?name={name}") == "ok"
    eventually(lambda: wires.advance(0.1) or name not in wires.boxes())


def skus(wires: Wires) -> dict[str, dict[str, Any]]:
    return {row["skusID"]: row for row in wires.matrixdc("GET", f"/skus/computings?region_id={REGION}")}


def test_an_instance_is_creating_then_running_with_its_servers_and_volume_sizes(wires: Wires) -> None:
    name = wires.rent()
    creating = wires.box(name)
    assert creating["status"] == "Creating"
    assert [volume["Size"] for volume in creating["volumeMounts"]] == [30, 0]
    assert not {"servers", "Pods"} & set(creating)
    wires.advance(0.44)
    assert wires.box(name)["status"] == "Creating"
    wires.advance(0.02)
    box = wires.boxed(name, "Running")
    assert [volume["Size"] for volume in box["volumeMounts"]] == [30, 50]
    assert box["servers"]["SSH"]["sshAddr"] == "ssh -p20001 root@127.0.0.1"
    assert len(box["servers"]["SSH"]["sshPassword"]) == 12
    assert box["Pods"][0]["Name"].startswith(name)
    assert (box["updateTimestamp"], box["ScheduleStopTimestamp"]) == ("0001-01-01T00:00:00Z",) * 2
    assert box["creationTimestamp"].endswith("+08:00")


def test_power_off_keeps_the_instance_and_power_on_gives_it_its_disk_with_another_way_in(
    wires: Wires, containers: QuietContainers
) -> None:
    name = running(wires)
    before = wires.box(name)["servers"]["SSH"]
    off(wires, name)
    assert not {"servers", "Pods"} & set(wires.box(name))
    assert containers.running() == []
    assert wires.matrixdc("POST", f"{INSTANCES}/{name}/power_on") == "ok"
    assert wires.box(name)["status"] == "Starting"
    wires.advance(0.4)
    after = wires.boxed(name, "Running")["servers"]["SSH"]
    assert after["sshAddr"] != before["sshAddr"]
    assert after["sshPassword"] != before["sshPassword"]
    first, second = containers.started
    assert (second.disk, second.volumes) == (first.disk, first.volumes)


def test_what_a_machine_is_started_with(wires: Wires, containers: QuietContainers) -> None:
    volumes = [{**VOLUME, "PathInContainer": "/data/a"}, {"Size": 20, "Type": "shared-filesystem"}]
    name = running(wires, Cost={**COST, "GPUSKUID": "3"}, VolumeMount=volumes)
    spec = containers.started[0]
    assert (spec.name, spec.gpu_name, spec.gpu_count, spec.cpus, spec.memory_gb) == (name, "NVIDIA H20", 2, 48, 384)
    assert (spec.conda, spec.cmd, dict(spec.env)) == ("/opt/miniconda3", None, {})
    assert set(spec.volumes) == {"/data/a", "/root/data"}
    assert spec.password == wires.box(name)["servers"]["SSH"]["sshPassword"]


@pytest.mark.parametrize("status", ["Creating", "Running", "Shutting Down", "Shutdown", "Starting"])
def test_an_instance_is_deleted_from_any_status(wires: Wires, containers: QuietContainers, status: str) -> None:
    name = wires.rent()
    if status != "Creating":
        wires.advance(0.5)
        wires.boxed(name, "Running")
    if status == "Shutting Down":
        wires.matrixdc("POST", f"{INSTANCES}/{name}/power_off")
    if status in {"Shutdown", "Starting"}:
        off(wires, name)
    if status == "Starting":
        wires.matrixdc("POST", f"{INSTANCES}/{name}/power_on")
    assert wires.box(name)["status"] == status
    assert wires.matrixdc("DELETE", f"{INSTANCES}?name={name}") == "ok"
    assert wires.box(name)["status"] == "Deleting"
    assert wires.matrixdc("DELETE", f"{INSTANCES}?name={name}") == "ok"
    gone(wires, name)
    wires.matrixdc("GET", f"{INSTANCES}/{name}", status=404)
    wires.matrixdc("DELETE", f"{INSTANCES}?name={name}", status=404)
    assert containers.running() == []
    assert skus(wires)["66"]["remainGPUCount"] == 16
    assert wires.truth()[0]["gone_at"] is not None


def test_a_deleted_instances_disks_are_removed(wires: Wires, containers: QuietContainers) -> None:
    name = running(wires)
    spec = containers.started[0]
    folders = [spec.disk, *spec.volumes.values()]
    assert all(folder.is_dir() for folder in folders)
    gone(wires, name)
    eventually(lambda: not any(folder.exists() for folder in folders))


@pytest.mark.parametrize(
    ("setup", "call"),
    [("Creating", "power_off"), ("Shutdown", "power_off"), ("Running", "power_on"), ("Deleting", "power_on")],
)
def test_power_is_switched_only_where_it_makes_sense(wires: Wires, setup: str, call: str) -> None:
    name = wires.rent() if setup == "Creating" else running(wires)
    if setup == "Shutdown":
        off(wires, name)
    if setup == "Deleting":
        wires.matrixdc("DELETE", f"{INSTANCES}?name={name}")
    assert setup in wires.matrixdc("POST", f"{INSTANCES}/{name}/{call}", {}, status=409)["message"]


@pytest.mark.parametrize("needs", [True, "true", "True"])
def test_a_snapshot_carries_the_system_disk_into_a_new_instance(
    wires: Wires, containers: QuietContainers, needs: object
) -> None:
    name = running(wires)
    first = containers.started[0]
    (first.disk / "opt").mkdir()
    tool = first.disk / "opt" / "tool"
    tool.write_text("works")
    tool.chmod(0o751)
    (first.disk / "link").symlink_to("opt/tool")
    (first.volumes["/root/data"] / "set.csv").write_text("1,2")
    off(wires, name, {"needSnapshot": needs, "imageName": "digits-env", "tag": "v1.1.0"})
    gone(wires, name)
    running(wires, image="images.neolink-ai.com/fake-user/digits-env:v1.1.0")
    second = containers.started[1]
    assert second.disk != first.disk
    copy = second.disk / "opt" / "tool"
    assert (copy.read_text(), copy.stat().st_mode & 0o777) == ("works", 0o751)
    assert (second.disk / "link").readlink().name == "tool"
    assert list(second.volumes["/root/data"].iterdir()) == []


def test_a_saved_image_is_known_by_its_short_name_too_and_a_new_one_replaces_it(
    wires: Wires, containers: QuietContainers
) -> None:
    for text in ("old", "new"):
        name = running(wires)
        (containers.started[-1].disk / "mark").write_text(text)
        off(wires, name, {"needSnapshot": True, "imageName": "env", "tag": "v1"})
    assert wires.control("GET", "state")["images"] == ["images.neolink-ai.com/fake-user/env:v1"]
    running(wires, image="env:v1")
    assert (containers.started[-1].disk / "mark").read_text() == "new"


def test_an_image_can_be_used_only_once_it_is_saved(wires: Wires) -> None:
    name = running(wires)
    wires.matrixdc("POST", f"{INSTANCES}/{name}/power_off", {"needSnapshot": True, "imageName": "env", "tag": "v1"})
    assert wires.box(name)["status"] == "Shutting Down"
    wires.matrixdc("POST", INSTANCES, instance(image="env:v1"), status=404)
    eventually(lambda: wires.advance(0.1) or wires.box(name)["status"] == "Shutdown")
    wires.rent(image="env:v1")


def test_without_a_snapshot_no_image_is_saved(wires: Wires) -> None:
    name = running(wires)
    off(wires, name, {"needSnapshot": "", "imageName": "env", "tag": "v1"})
    assert wires.control("GET", "state")["images"] == []


@pytest.mark.parametrize(("name", "tag"), [("", "v1"), ("env", ""), ("UPPER", "v1"), ("a/b", "v1"), ("env", "v 1")])
def test_a_snapshot_needs_a_lawful_name_and_tag(wires: Wires, name: str, tag: str) -> None:
    box = running(wires)
    body = {"needSnapshot": True, "imageName": name, "tag": tag}
    wires.matrixdc("POST", f"{INSTANCES}/{box}/power_off", body, status=400)
    assert wires.box(box)["status"] == "Running"


@pytest.mark.parametrize(
    ("given", "grace"), [({}, 10), ({"gracePeriodSeconds": 3}, 3), ({"gracePeriodSeconds": "4"}, 4)]
)
def test_the_grace_period_is_read_as_number_or_text(given: dict[str, Any], grace: float) -> None:
    with FakeServer(speed=4, containers=QuietContainers) as fake:
        wires = Wires(fake)
        with wires.session:
            name = wires.rent()
            wires.boxed(name, "Running")
            wires.matrixdc("POST", f"{INSTANCES}/{name}/power_off", given)
            wires.boxed(name, "Shutdown")
            double = fake.world.ground.containers
            assert isinstance(double, QuietContainers)
            assert double.graces == [grace / 4]


def test_compute_is_billed_from_on_to_off(wires: Wires) -> None:
    name = running(wires)
    wires.advance(3600)
    off(wires, name)
    wires.advance(7200)
    machine = wires.truth()[0]
    assert machine["billed_s"] == pytest.approx(3600, abs=2)
    assert machine["cost_cny"] == pytest.approx(2.5, abs=0.01)
    assert (machine["id"], machine["name"], machine["gone_at"], machine["powered"]) == (name, "box", None, False)
    wires.matrixdc("POST", f"{INSTANCES}/{name}/power_on")
    wires.advance(0.5)
    wires.boxed(name, "Running")
    wires.advance(3600)
    gone(wires, name)
    assert wires.truth()[0]["billed_s"] == pytest.approx(7200, abs=3)


def test_a_day_bought_ahead_costs_its_price_and_ends_by_itself(wires: Wires) -> None:
    name = running(wires, Cost={**COST, "CostType": "4", "GPUSKUID": "72", "CostTime": "3D"})
    box = wires.box(name)
    assert (box["cost"]["CostTime"], box["cost"]["CostType"]) == ("3D", "4")
    assert box["ScheduleStopTimestamp"] > box["creationTimestamp"]
    assert wires.truth()[0]["cost_cny"] == 150
    wires.advance(3 * 86400)
    eventually(lambda: wires.advance(0.1) or wires.box(name)["status"] == "Shutdown")
    assert wires.truth()[0]["cost_cny"] == 150


def test_stock_is_shared_by_all_sizes_of_a_gpu_and_returns_at_power_off(wires: Wires) -> None:
    name = running(wires, Cost={**COST, "GPUSKUID": "69"})
    assert {skus(wires)[sku]["remainGPUCount"] for sku in ("66", "67", "68", "69")} == {8}
    off(wires, name)
    assert skus(wires)["66"]["remainGPUCount"] == 16


def test_no_stock_is_refused_with_a_message_and_makes_nothing(wires: Wires) -> None:
    reply = wires.matrixdc("POST", INSTANCES, instance(Cost={**COST, "GPUSKUID": "90"}), status=400)
    assert reply == {"message": "库存不足: H800"}
    assert (wires.boxes(), wires.truth()) == ([], [])


def test_a_powered_off_instance_may_find_its_gpus_taken(wires: Wires) -> None:
    name = running(wires, Cost={**COST, "GPUSKUID": "81"})
    off(wires, name)
    wires.rent(Cost={**COST, "GPUSKUID": "80"})
    assert "库存不足" in wires.matrixdc("POST", f"{INSTANCES}/{name}/power_on", status=400)["message"]
    assert wires.box(name)["status"] == "Shutdown"


def test_what_the_document_leaves_open_is_a_setting() -> None:
    guesses = Guesses(
        matrixdc_unauthorized_status=403,
        matrixdc_bad_request_status=422,
        matrixdc_not_found_status=410,
        matrixdc_conflict_status=423,
        matrixdc_no_stock_status=503,
        matrixdc_power_on_reply=None,
        matrixdc_price_per_cny=100,
        matrixdc_unit_price_per_cny=1000,
    )
    with FakeServer(speed=0, guesses=guesses, containers=QuietContainers) as fake:
        wires = Wires(fake)
        with wires.session:
            wires.matrixdc("GET", "/regions", status=403, namespace="")
            wires.matrixdc("POST", INSTANCES, {}, status=422)
            wires.matrixdc("GET", f"{INSTANCES}/nothing", status=410)
            wires.matrixdc("GET", "/clusters/nothing/instances", status=410)
            wires.matrixdc("POST", INSTANCES, instance(Cost={**COST, "GPUSKUID": "90"}), status=503)
            name = running(wires)
            wires.matrixdc("POST", f"{INSTANCES}/{name}/power_on", status=423)
            off(wires, name)
            assert wires.matrixdc("POST", f"{INSTANCES}/{name}/power_on") is None
            assert skus(wires)["66"]["price"] == 250
            assert wires.box(name)["annotations"]["demo.cdc.datenfab.com/unit-price"] == "2500"


def test_a_machine_that_does_not_start_has_failed_and_holds_no_gpu(wires: Wires, containers: QuietContainers) -> None:
    containers.refuse_to_start = True
    name = wires.rent()
    wires.advance(1)
    wires.boxed(name, "Failed")
    assert skus(wires)["66"]["remainGPUCount"] == 16
    gone(wires, name)


def test_display_names_need_not_be_unique(wires: Wires) -> None:
    assert wires.rent() != wires.rent()
    assert len(wires.boxes()) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "fake-token"},
        {"Authorization": "Bearer fake-token"},
        {"Authorization": "bearer wrong"},
        {"Authorization": ""},
        {"namespace": "somebody"},
        {"namespace": ""},
    ],
)
def test_both_headers_are_checked(wires: Wires, headers: dict[str, str]) -> None:
    assert set(wires.matrixdc("GET", "/regions", status=401, **headers)) == {"message"}


def without(body: dict[str, Any], *path: str) -> dict[str, Any]:
    """The body less one key."""
    head, *rest = path
    if not rest:
        return {key: value for key, value in body.items() if key != head}
    return {**body, head: without(body[head], *rest)}


@pytest.mark.parametrize(
    "path",
    ["Cost", "VolumeMount", "namespace", "displayName", "image", "Cost.CostType", "Cost.DiskSKUID", "Cost.GPUSKUID"],
)
def test_every_required_field_of_a_create_is_required(wires: Wires, path: str) -> None:
    reply = wires.matrixdc("POST", INSTANCES, without(instance(), *path.split(".")), status=400)
    assert path in reply["message"]
    assert wires.boxes() == []


def test_optional_fields_may_be_left_out(wires: Wires) -> None:
    cost = {key: COST[key] for key in ("CostType", "DiskSKUID", "GPUSKUID")}
    wires.matrixdc("POST", INSTANCES, without(instance(Cost=cost, VolumeMount=[]), "Region"))


@pytest.mark.parametrize(
    "changes",
    [
        {"Cost": {**COST, "CostType": 1}},
        {"Cost": {**COST, "CostType": "5"}},
        {"Cost": {**COST, "CostType": "4"}},
        {"Cost": {**COST, "CostType": "4", "GPUSKUID": "72"}},
        {"Cost": {**COST, "CostType": "4", "GPUSKUID": "72", "CostTime": "3W"}},
        {"Cost": {**COST, "CostType": "4", "GPUSKUID": "72", "CostTime": "+3D"}},
        {"Cost": {**COST, "GPUSKUID": "404"}},
        {"Cost": {**COST, "DiskSKUID": "2"}},
        {"Cost": {**COST, "CouponID": "free"}},
        {"VolumeMount": [{**VOLUME, "Size": "50"}]},
        {"VolumeMount": [{**VOLUME, "Size": 0}]},
        {"VolumeMount": [{**VOLUME, "Type": "floppy"}]},
        {"VolumeMount": [{**VOLUME, "PathInContainer": "data"}]},
        {"VolumeMount": [{**VOLUME, "PathInContainer": "/root/../etc"}]},
        {"VolumeMount": [{**VOLUME, "PathInContainer": "/"}]},
        {"VolumeMount": [VOLUME, VOLUME]},
        {"namespace": "somebody"},
        {"Region": "南京"},
        {"displayName": ""},
    ],
)
def test_what_does_not_go_together_is_refused(wires: Wires, changes: dict[str, Any]) -> None:
    assert wires.matrixdc("POST", INSTANCES, instance(**changes), status=400)["message"]
    assert (wires.boxes(), wires.truth()) == ([], [])


@pytest.mark.parametrize("region", ["", "北京一区", "host-cluster"])
def test_the_reply_names_the_cluster_as_region_whatever_was_sent(wires: Wires, region: str) -> None:
    assert wires.matrixdc("POST", INSTANCES, instance(Region=region))["Region"] == "host-cluster"


@pytest.mark.parametrize("image", ["ubuntu", "docker.io/library/ubuntu:22.04", "env:v1", f"{OFFICIAL_IMAGE}:x"])
def test_an_unknown_image_is_not_found(wires: Wires, image: str) -> None:
    assert image in wires.matrixdc("POST", INSTANCES, instance(image=image), status=404)["message"]


def test_unknown_clusters_and_instances_are_not_found(wires: Wires) -> None:
    wires.matrixdc("GET", "/clusters/other/instances", status=404)
    wires.matrixdc("POST", f"{INSTANCES}/instance-0/power_off", {}, status=404)
    wires.matrixdc("POST", f"{INSTANCES}/instance-0/power_on", status=404)
    wires.matrixdc("DELETE", INSTANCES, status=400)


def test_a_body_that_is_no_json_is_a_bad_request(wires: Wires) -> None:
    headers = {"Authorization": f"bearer {wires.fake.token}", "namespace": wires.fake.namespace}
    reply = requests.post(f"{wires.fake.matrixdc_url}{INSTANCES}", data=b"{", headers=headers, timeout=60)
    assert reply.status_code == 400


def test_sizes_are_listed_by_region(wires: Wires) -> None:
    sizes = skus(wires)
    assert (sizes["66"]["name"], sizes["66"]["gpuCounts"], sizes["66"]["price"]) == ("4090", 1, 2.5)
    assert (sizes["2"]["gpuMemory"], sizes["2"]["memoryCount"], sizes["2"]["cpucores"]) == (96, 192, 24)
    assert wires.matrixdc("GET", "/skus/computings?region_id=elsewhere") == []
    wires.matrixdc("GET", "/skus/computings", status=400)
