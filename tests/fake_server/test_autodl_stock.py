"""AutoDL's scheduling: what fits where, stock, starvation, blacklist, bills."""

import pytest

from tests.fake_server.doubles import QuietContainers
from tests.fake_server.test_autodl_life import boot, shut
from tests.fake_server.wires import Wires, eventually, job


def stock(wires: Wires, region: str, **filters: object) -> dict[str, dict[str, int]]:
    rows = wires.data("POST", "/machine/region/gpu_stock", {"region_sign": region, **filters})
    return {name: numbers for row in rows for name, numbers in row.items()}


def test_stock_goes_down_on_create_and_up_on_release(wires: Wires) -> None:
    assert stock(wires, "westDC3")["RTX 4090"] == {"idle_gpu_num": 15, "total_gpu_num": 24}
    uuid = wires.deploy(job(dc_list=["westDC3"], gpu_num=2))
    boot(wires, uuid)
    assert stock(wires, "westDC3")["RTX 4090"]["idle_gpu_num"] == 13
    wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})
    eventually(lambda: wires.advance(0.1) or stock(wires, "westDC3")["RTX 4090"]["idle_gpu_num"] == 15)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, {"RTX 4090", "RTX 3080 Ti", "RTX A4000", "TITAN Xp"}),
        ({"gpu_name_set": ["RTX 4090", "L20"]}, {"RTX 4090"}),
        ({"gpu_name_set": []}, {"RTX 4090", "RTX 3080 Ti", "RTX A4000", "TITAN Xp"}),
        ({"cuda_v": 122}, {"RTX 4090", "RTX A4000"}),
        ({"cuda_v_from": 118, "cuda_v_to": 122}, {"RTX 3080 Ti", "RTX A4000"}),
        ({"cuda_v_from": 0, "cuda_v_to": 0}, {"RTX 4090", "RTX 3080 Ti", "RTX A4000", "TITAN Xp"}),
        ({"memory_size_from": 30, "memory_size_to": 50}, {"RTX 3080 Ti", "RTX A4000"}),
        ({"cpu_num_from": 12, "cpu_num_to": 0}, {"RTX 4090", "RTX 3080 Ti"}),
        ({"price_from": 0, "price_to": 900}, {"RTX A4000", "TITAN Xp"}),
    ],
)
def test_a_stock_query_filters_by_one_gpus_share_and_zero_is_no_bound(
    wires: Wires, filters: dict[str, object], names: set[str]
) -> None:
    assert set(stock(wires, "westDC2", **filters)) == names


def test_every_region_of_the_document_has_stock(wires: Wires) -> None:
    regions = "westDC2 westDC3 beijingDC1 beijingDC2 beijingDC4 beijingDC3 neimengDC1 foshanDC1 chongqingDC1"
    for region in [*regions.split(), "yangzhouDC1", "neimengDC3"]:
        assert stock(wires, region)
    assert wires.autodl("POST", "/machine/region/gpu_stock", {"region_sign": "atlantis"})["code"] == (
        "RequestParameterIsWrong"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"dc_list": ["atlantis"]},
        {"gpu_name_set": ["RTX 9090"]},
        {"gpu_num": 9},
        {"cuda_v_from": 129, "cuda_v_to": 200},
        {"cpu_num_from": 300},
        {"memory_size_to": 10},
        {"price_to": 1979},
    ],
)
def test_what_no_host_could_ever_carry_is_refused_at_once(wires: Wires, changes: dict[str, object]) -> None:
    reply = wires.autodl("POST", "/deployment", job(**changes))
    assert reply == {"code": "InternalError", "msg": "当前算力规格暂无库存", "data": None}
    assert wires.deployments() == []


def test_the_cheapest_host_that_fits_is_taken(wires: Wires) -> None:
    uuid = wires.deploy(job(dc_list=["westDC3", "neimengDC1", "westDC2"]))
    boot(wires, uuid)
    container = wires.containers(uuid)[0]
    assert (container["data_center"], container["price"]) == ("neimengDC1", 1890)


def test_without_a_free_gpu_a_deployment_waits_with_no_container_until_one_is_free(wires: Wires) -> None:
    first = wires.deploy(job(dc_list=["beijingDC1"], gpu_name_set=["A100"], gpu_num=2))
    boot(wires, first)
    second = wires.deploy(job(name="starving", dc_list=["beijingDC1"], gpu_name_set=["A100"]))
    wires.advance(3600)
    assert wires.containers(second) == []
    assert wires.deployments(name="starving")[0]["status"] == "running"
    wires.data("DELETE", "/deployment", {"deployment_uuid": first})
    eventually(lambda: wires.advance(0.1) or wires.containers(second, status=["running"]))


def test_a_queued_deployment_can_be_deleted(wires: Wires) -> None:
    uuid = wires.deploy(job(dc_list=["neimengDC1"], gpu_name_set=["H800"]))
    wires.advance(5)
    wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})
    assert wires.deployments() == []
    wires.control("POST", "stock", {"gpu": "H800", "idle": 8})
    wires.advance(5)
    assert wires.truth() == []


def test_the_control_room_can_make_a_gpu_scarce_and_free_again(wires: Wires) -> None:
    wires.control("POST", "stock", {"gpu": "RTX 4090", "idle": 0})
    uuid = wires.deploy(job())
    wires.advance(5)
    assert wires.containers(uuid) == []
    wires.control("POST", "stock", {"gpu": "RTX 4090", "idle": 1, "region": "westDC3"})
    boot(wires, uuid)
    assert wires.containers(uuid)[0]["data_center"] == "westDC3"


def test_a_blacklisted_host_gets_no_container_until_the_ban_ends(wires: Wires) -> None:
    only_host = {"dc_list": ["westDC2"], "gpu_name_set": ["TITAN Xp"], "cuda_v_from": 100}
    first = wires.deploy(job(**only_host))
    (name,) = boot(wires, first)
    ban = {"deployment_container_uuid": name, "expire_in_minutes": 60, "comment": "slow"}
    assert wires.data("POST", "/deployment/blacklist", ban) is None
    wires.data("PUT", "/deployment/operate", {"deployment_uuid": first, "operate": "stop"})
    second = wires.deploy(job(**only_host))
    wires.advance(3000)
    assert wires.containers(second) == []
    wires.advance(700)
    boot(wires, second)


def test_the_blacklist_shows_each_ban_in_force_and_a_repeated_one_moves_its_end(wires: Wires) -> None:
    assert wires.data("GET", "/deployment/blacklist") == []
    uuid = wires.deploy(job())
    (name,) = boot(wires, uuid)
    wires.data("POST", "/deployment/blacklist", {"deployment_container_uuid": name})
    first = wires.data("GET", "/deployment/blacklist")
    wires.advance(60)
    again = {"deployment_container_uuid": name, "expire_in_minutes": 43200, "comment": "slow"}
    wires.data("POST", "/deployment/blacklist", again)
    second = wires.data("GET", "/deployment/blacklist")
    assert len(first) == len(second) == 1
    assert second[0]["machine_id"] == wires.containers(uuid)[0]["machine_id"]
    assert (second[0]["created_at"], second[0]["msg"]) == (first[0]["created_at"], "slow")
    assert second[0]["updated_at"] > first[0]["updated_at"]
    assert second[0]["expired_time"] > first[0]["expired_time"]
    wires.advance(43200 * 60)
    assert wires.data("GET", "/deployment/blacklist") == []


@pytest.mark.parametrize("minutes", [0, 43201, "60"])
def test_a_ban_lasts_at_most_thirty_days(wires: Wires, minutes: object) -> None:
    uuid = wires.deploy(job())
    (name,) = boot(wires, uuid)
    reply = wires.autodl(
        "POST", "/deployment/blacklist", {"deployment_container_uuid": name, "expire_in_minutes": minutes}
    )
    assert reply["code"] == "RequestParameterIsWrong"


def test_the_bill_counts_from_running_to_shutdown_by_the_second(wires: Wires, containers: QuietContainers) -> None:
    uuid = wires.deploy(job(gpu_num=2, dc_list=["westDC2"]))
    (name,) = boot(wires, uuid)
    wires.advance(1800)
    half_an_hour = wires.truth()[0]
    assert half_an_hour["powered"]
    assert half_an_hour["billed_s"] == pytest.approx(1800, abs=1)
    assert half_an_hour["cost_cny"] == pytest.approx(1.98, abs=0.01)
    containers.end_cmd(name)
    shut(wires, uuid)
    wires.advance(7200)
    machine = wires.truth()[0]
    assert machine["billed_s"] == pytest.approx(1800, abs=2)
    assert (machine["provider"], machine["id"], machine["name"], machine["powered"]) == ("autodl", name, "work", False)
    assert machine["price_cny_per_h"] == 3.96
    assert machine["made_at"] < machine["gone_at"]


def test_a_container_that_never_ran_costs_nothing(wires: Wires) -> None:
    uuid = wires.deploy(job())
    wires.advance(0.1)
    wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})
    eventually(lambda: wires.advance(0.1) or wires.deployments() == [])
    assert [(machine["billed_s"], machine["cost_cny"]) for machine in wires.truth()] == [(0, 0)]
