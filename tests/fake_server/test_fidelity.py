"""What the documents say in passing, and what they leave open and the fake makes a setting."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fake_server.guess_option import GuessOption, changed
from fake_server.server import FakeServer
from fake_server.timings import Guesses, Timings
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, Wires, eventually, instance, job

DAY_S = 86400
SKU = {"2": "70", "3": "71", "4": "72"}


@contextmanager
def guessing(timings: Timings | None = None, **guesses: Any) -> Iterator[Wires]:
    """A fake that decides otherwise what the documents leave open."""
    fake = FakeServer(speed=0, containers=QuietContainers, guesses=Guesses(**guesses), timings=timings)
    with fake:
        wires = Wires(fake)
        with wires.session:
            yield wires


def cost(**changes: str) -> dict[str, Any]:
    plain = {"CostType": "1", "CouponID": "", "DiskSKUID": "1", "GPUSKUID": "66", "CostTime": ""}
    return {"Cost": {**plain, **changes}}


def ticking(wires: Wires, look: Callable[[], bool]) -> None:
    """Let seconds pass until it is so."""

    def tick() -> bool:
        wires.advance(1)
        return look()

    eventually(tick)


def row(wires: Wires, name: str) -> dict[str, Any]:
    return next(machine for machine in wires.truth() if machine["id"] == name)


def on(wires: Wires, **body: Any) -> str:
    name = wires.rent(**body)
    wires.advance(1)
    wires.boxed(name, "Running")
    return name


def off(wires: Wires, name: str) -> None:
    wires.matrixdc("POST", f"{INSTANCES}/{name}/power_off", {"gracePeriodSeconds": 0})
    double = wires.fake.world.ground.containers
    eventually(lambda: name not in double.running())
    ticking(wires, lambda: wires.box(name)["status"] == "Shutdown")


def left(wires: Wires, name: str) -> None:
    wires.matrixdc("DELETE", f"{INSTANCES}?name={name}")
    ticking(wires, lambda: name not in wires.boxes())


# Time that is paid ahead


@pytest.mark.parametrize(
    ("cost_type", "cost_time", "seconds", "cny"),
    [("2", "1M", 30 * DAY_S, 1200), ("3", "2W", 14 * DAY_S, 640), ("4", "3D", 3 * DAY_S, 150)],
)
def test_time_paid_ahead_costs_its_price_at_once_and_ends_by_itself(
    wires: Wires, cost_type: str, cost_time: str, seconds: int, cny: int
) -> None:
    name = on(wires, **cost(CostType=cost_type, GPUSKUID=SKU[cost_type], CostTime=cost_time))
    shown = wires.box(name)
    assert (shown["cost"]["CostTime"], shown["cost"]["CostType"]) == (cost_time, cost_type)
    assert row(wires, name)["cost_fen"] == cny * 100
    wires.advance(seconds - 2)
    assert wires.box(name)["status"] == "Running"
    wires.advance(5)
    ticking(wires, lambda: wires.box(name)["status"] == "Shutdown")
    assert row(wires, name)["cost_fen"] == cny * 100


@pytest.mark.parametrize(
    ("cost_type", "cost_time"),
    [("4", ""), ("4", "3W"), ("4", "0D"), ("4", "D"), ("2", "3D"), ("4", "+3D"), ("4", "3d")],
)
def test_a_new_instance_needs_a_time_in_its_cost_types_own_unit(wires: Wires, cost_type: str, cost_time: str) -> None:
    body = instance(**cost(CostType=cost_type, GPUSKUID=SKU[cost_type], CostTime=cost_time))
    assert "CostTime" in wires.matrixdc("POST", INSTANCES, body, status=400)["message"]


def test_plus_three_days_lengthen_what_was_paid_ahead(wires: Wires) -> None:
    name = on(wires, **cost(CostType="4", GPUSKUID="72", CostTime="1D"))
    stops = wires.box(name)["ScheduleStopTimestamp"]
    wires.control("POST", "renew", {"instance": name, "cost_time": "+3D"})
    assert wires.box(name)["ScheduleStopTimestamp"] > stops
    assert wires.box(name)["cost"]["CostTime"] == "+3D"
    assert row(wires, name)["cost_fen"] == 4 * 5000
    wires.advance(4 * DAY_S - 5)
    assert wires.box(name)["status"] == "Running"
    wires.advance(10)
    ticking(wires, lambda: wires.box(name)["status"] == "Shutdown")


@pytest.mark.parametrize("order", [{"cost_time": "3D"}, {"cost_time": "+3W"}, {"cost_time": "+"}, {"instance": "none"}])
def test_a_renewal_that_makes_no_sense_is_refused(wires: Wires, order: dict[str, str]) -> None:
    name = on(wires, **cost(CostType="4", GPUSKUID="72", CostTime="1D"))
    wires.control("POST", "renew", {"instance": name, "cost_time": "+1D", **order}, status=400)
    by_use = on(wires)
    wires.control("POST", "renew", {"instance": by_use, "cost_time": "+1D"}, status=400)


def test_an_instance_whose_time_is_over_starts_only_after_a_renewal(wires: Wires) -> None:
    name = on(wires, **cost(CostType="4", GPUSKUID="72", CostTime="1D"))
    wires.advance(DAY_S)
    ticking(wires, lambda: wires.box(name)["status"] == "Shutdown")
    assert "到期" in wires.matrixdc("POST", f"{INSTANCES}/{name}/power_on", status=409)["message"]
    wires.control("POST", "renew", {"instance": name, "cost_time": "+2D"})
    wires.matrixdc("POST", f"{INSTANCES}/{name}/power_on")


# Coupons


def test_a_coupon_pays_for_use_until_it_is_empty(wires: Wires) -> None:
    name = on(wires, **cost(CouponID="coupon-1"))
    assert wires.box(name)["cost"]["CouponID"] == "coupon-1"
    wires.advance(720)
    assert (row(wires, name)["cost_fen"], row(wires, name)["paid_fen"]) == (50, 0)
    wires.advance(720)
    assert (row(wires, name)["cost_fen"], row(wires, name)["paid_fen"]) == (100, 0)
    wires.advance(720)
    assert (row(wires, name)["cost_fen"], row(wires, name)["paid_fen"]) == (150, 50)


def test_what_an_instance_leaves_of_a_coupon_can_be_used_again(wires: Wires) -> None:
    first = on(wires, **cost(CouponID="coupon-100"))
    wires.matrixdc("POST", INSTANCES, instance(**cost(CouponID="coupon-100")), status=400)
    wires.advance(3600)
    left(wires, first)
    used = row(wires, first)["cost_cny"]
    assert row(wires, first)["paid_fen"] == 0
    second = on(wires, **cost(CouponID="coupon-100"))
    assert row(wires, second)["coupon_cny"] == pytest.approx(100 - used, abs=1e-6)


def test_an_empty_coupon_is_refused(wires: Wires) -> None:
    first = on(wires, **cost(CouponID="coupon-1"))
    wires.advance(3600)
    left(wires, first)
    assert "coupon-1" in wires.matrixdc("POST", INSTANCES, instance(**cost(CouponID="coupon-1")), status=400)["message"]


def test_a_coupon_is_for_use_alone_and_must_exist(wires: Wires) -> None:
    ahead = cost(CouponID="coupon-1", CostType="4", GPUSKUID="72", CostTime="1D")
    assert "按量" in wires.matrixdc("POST", INSTANCES, instance(**ahead), status=400)["message"]
    assert "不存在" in wires.matrixdc("POST", INSTANCES, instance(**cost(CouponID="x")), status=400)["message"]
    assert wires.truth() == []


# Fifteen days off


def test_after_fifteen_days_off_the_data_is_gone(wires: Wires) -> None:
    name = on(wires)
    (spec,) = [spec for spec in wires.fake.world.ground.containers.started if spec.name == name]  # type: ignore[attr-defined]
    (spec.disk / "model").write_text("weights")
    (spec.volumes["/root/data"] / "train.csv").write_text("data")
    off(wires, name)
    wires.advance(14 * DAY_S)
    assert (spec.disk / "model").exists()
    wires.advance(2 * DAY_S)
    eventually(lambda: not spec.disk.exists() and not spec.volumes["/root/data"].exists())
    assert wires.box(name)["status"] == "Shutdown"
    wires.matrixdc("POST", f"{INSTANCES}/{name}/power_on")
    wires.advance(1)
    wires.boxed(name, "Running")
    assert list(spec.disk.iterdir()) == []


def test_a_day_on_begins_the_fifteen_anew(wires: Wires) -> None:
    name = on(wires)
    (spec,) = [spec for spec in wires.fake.world.ground.containers.started if spec.name == name]  # type: ignore[attr-defined]
    off(wires, name)
    wires.advance(10 * DAY_S)
    wires.matrixdc("POST", f"{INSTANCES}/{name}/power_on")
    wires.advance(1)
    wires.boxed(name, "Running")
    off(wires, name)
    wires.advance(10 * DAY_S)
    assert spec.disk.exists()


def test_whether_the_instance_goes_with_its_data_is_a_setting() -> None:
    with guessing(matrixdc_wipe="instance", timings=Timings(matrixdc_wipe_s=60)) as wires:
        name = on(wires)
        off(wires, name)
        wires.advance(61)
        ticking(wires, lambda: wires.boxes() == [])


# What the documents do not have


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["/mdc/api/v1/regions", "/api/v1/dev/deployment/blacklist"])
def test_methods_that_no_document_has_are_refused(wires: Wires, method: str, path: str) -> None:
    reply = wires.session.request(method, wires.fake.url + path, timeout=60)
    assert (reply.status_code, "Allow" in reply.headers) == (405, False)


@pytest.mark.parametrize("path", ["/mdc/api/v1/users", "/api/v1/dev/deployment/", "/api/v1/dev/deployment/replicas"])
def test_paths_that_no_document_has_are_not_found(wires: Wires, path: str) -> None:
    reply = wires.session.get(wires.fake.url + path, timeout=60)
    assert (reply.status_code, reply.text) == (404, "404 page not found")


def test_how_wrong_paths_and_methods_are_answered_is_a_setting() -> None:
    with guessing(unknown_path_status=400, wrong_method_status=404) as wires:
        assert wires.session.get(f"{wires.fake.url}/mdc/api/v1/x", timeout=60).status_code == 400
        assert wires.session.patch(f"{wires.fake.url}/mdc/api/v1/regions", timeout=60).status_code == 404
        assert wires.session.head(f"{wires.fake.url}/mdc/api/v1/regions", timeout=60).status_code == 404


def test_unknown_fields_are_ignored_unless_told_otherwise(wires: Wires) -> None:
    wires.rent(Nonsense=1)
    wires.deploy({**job(), "nonsense": {"deep": 1}})
    wires.matrixdc("GET", "/regions?page=2")


def test_unknown_fields_are_refused_everywhere_when_told_so() -> None:
    with guessing(unknown_fields="refuse") as wires:
        assert "Nonsense" in wires.matrixdc("POST", INSTANCES, instance(Nonsense=1), status=400)["message"]
        deep = instance(**{**cost(), "Cost": {**cost()["Cost"], "Deep": ""}})
        assert "Cost.Deep" in wires.matrixdc("POST", INSTANCES, deep, status=400)["message"]
        assert "page" in wires.matrixdc("GET", "/regions?page=2", status=400)["message"]
        assert wires.autodl("POST", "/deployment", {**job(), "nonsense": 1})["code"] == "RequestParameterIsWrong"
        assert wires.autodl("POST", "/deployment", job(nonsense=1))["code"] == "RequestParameterIsWrong"
        assert wires.autodl("GET", "/deployment/blacklist?x=1")["code"] == "RequestParameterIsWrong"
        name = on(wires)
        assert wires.matrixdc("POST", f"{INSTANCES}/{name}/power_off", {"force": True}, status=400)["message"]


def test_every_documented_field_is_known_even_when_unknown_ones_are_refused() -> None:
    with guessing(unknown_fields="refuse") as wires:
        wires.rent()
        body = job(region_sign="westDC2", cuda_v=113, cmd_before_shutdown="true")
        body |= {"reuse_container": True, "service_port_protocol": "tcp"}
        body |= {"service_6006_port_protocol": "http", "service_6008_port_protocol": "tcp"}
        uuid = wires.deploy(body)
        (shown,) = wires.deployments(deployment_uuid=uuid)
        assert (shown["service_port_protocol"], shown["template"]["region_sign"]) == ("tcp", "westDC2")
        wires.matrixdc("GET", "/skus/computings?region_id=14c5a9e3-0d09-4aa0-99d3-c096b80cceaa")


# Other decisions


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        ("message", {"message"}),
        ("code_msg", {"code", "msg", "data"}),
        ("error", {"error"}),
        ("kubernetes", {"kind", "apiVersion", "status", "message", "code"}),
    ],
)
def test_the_shape_of_matrixdcs_errors_is_a_setting(body: str, keys: set[str]) -> None:
    with guessing(matrixdc_error_body=body) as wires:
        assert set(wires.matrixdc("GET", f"{INSTANCES}/none", status=404)) == keys


def test_autodls_codes_and_status_are_settings() -> None:
    codes = {
        f"autodl_{kind}_code": kind for kind in ("unauthorized", "bad_request", "not_found", "conflict", "no_stock")
    }
    with guessing(**codes) as wires:
        assert wires.autodl("GET", "/deployment/blacklist", token="x")["code"] == "unauthorized"
        assert wires.autodl("POST", "/deployment", {})["code"] == "bad_request"
        assert wires.autodl("DELETE", "/deployment", {"deployment_uuid": "x"})["code"] == "not_found"
        assert wires.autodl("POST", "/deployment", job(gpu_name_set=["Abacus"]))["code"] == "no_stock"
    with guessing(autodl_error_status=403) as wires:
        reply = wires.session.get(f"{wires.fake.url}/api/v1/dev/deployment/blacklist", timeout=60)
        assert (reply.status_code, reply.json()["code"]) == (403, "AuthorizeFailed")


def test_an_account_that_is_no_verified_enterprise_is_refused_everything() -> None:
    with guessing(autodl_enterprise=False) as wires:
        reply = wires.autodl("GET", "/deployment/blacklist")
        assert reply == {"code": "BadRequest", "msg": "无当前资源访问权限", "data": None}


@pytest.mark.parametrize("queues", [True, False])
def test_whether_a_deployment_waits_for_stock_is_a_setting(queues: bool) -> None:
    with guessing(autodl_queues_without_stock=queues) as wires:
        wires.control("POST", "stock", {"gpu": "RTX 4090", "idle": 0})
        reply = wires.autodl("POST", "/deployment", job())
        assert (reply["code"], len(wires.deployments())) == (("Success", 1) if queues else ("InternalError", 0))


def test_the_shapes_of_stock_and_blacklist_are_settings() -> None:
    with guessing(autodl_stock_shape="object", autodl_blacklist_shape="object") as wires:
        stock = wires.data("POST", "/machine/region/gpu_stock", {"region_sign": "westDC2"})
        assert stock["RTX 4090"] == {"idle_gpu_num": 36, "total_gpu_num": 48}
        assert wires.data("GET", "/deployment/blacklist") is None
        uuid = wires.deploy(job())
        wires.advance(1)
        (container,) = wires.running(uuid)
        wires.data("POST", "/deployment/blacklist", {"deployment_container_uuid": container["uuid"]})
        assert wires.data("GET", "/deployment/blacklist")["machine_id"] == container["machine_id"]


def test_a_list_can_be_cut_short_and_says_so() -> None:
    with guessing(matrixdc_list_limit=2) as wires:
        for _ in range(3):
            wires.rent()
        shown = wires.matrixdc("GET", INSTANCES)
        assert (shown["hasNextPage"], len(shown["nodes"]), shown["totalCount"]) == (True, 2, 3)


@pytest.mark.parametrize(("protocol", "shown"), [("http", "http://127.0.0.1:6006"), ("tcp", "127.0.0.1:6006")])
def test_port_6006_is_shown_with_a_scheme_if_it_speaks_http(wires: Wires, protocol: str, shown: str) -> None:
    uuid = wires.deploy({**job(), "service_6006_port_protocol": protocol})
    wires.advance(1)
    (container,) = wires.running(uuid)
    assert container["info"]["service_6006_port_url"] == shown


def test_the_state_tells_every_guess(wires: Wires) -> None:
    guesses = wires.control("GET", "state")["guesses"]
    assert (guesses["unknown_fields"], guesses["matrixdc_wipe"]) == ("ignore", "data")


def test_guesses_are_given_on_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--guess", action=GuessOption)
    asked = parser.parse_args(["--guess", "unknown_fields=refuse", "--guess", "autodl_error_status=400"])
    assert asked.guess == Guesses(unknown_fields="refuse", autodl_error_status=400)
    assert parser.parse_args([]).guess is None


@pytest.mark.parametrize("text", ["nonsense=1", "unknown_fields", "unknown_fields=maybe", "autodl_error_status=many"])
def test_a_guess_that_does_not_exist_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="--guess"):
        changed(Guesses(), text)


# Prepaid GPU hours


def overview(wires: Wires, deployment: str) -> list[tuple[str, int, int, str]]:
    rows = wires.data("GET", f"/deployment/ddp/overview?deployment_uuid={deployment}")
    return [(each["gpu_type"], each["total"], each["balance"], each["dc_list"]) for each in rows]


def test_a_package_is_only_shown_unless_it_is_told_to_pay(wires: Wires) -> None:
    uuid = wires.deploy(job())
    wires.advance(1)
    (container,) = wires.running(uuid)
    wires.advance(3600)
    assert overview(wires, uuid) == [("RTX 4090", 86400, 83829, "westDC2,westDC3")]
    assert row(wires, container["uuid"])["paid_fen"] == row(wires, container["uuid"])["cost_fen"] == 198


def test_a_package_pays_for_its_gpu_in_its_regions_until_it_is_used_up() -> None:
    with guessing(autodl_packages_pay=True) as wires:
        uuid = wires.deploy(job(gpu_num=2))
        elsewhere = wires.deploy(job(gpu_name_set=["RTX 3090"], dc_list=["yangzhouDC1"]))
        wires.advance(1)
        (container,), (other,) = wires.running(uuid), wires.running(elsewhere)
        (_, _, before, _), *_ = overview(wires, uuid)
        wires.advance(3600)
        (_, _, after, _), *_ = overview(wires, uuid)
        assert before - after == 7200
        assert row(wires, container["uuid"])["paid_fen"] == 0
        assert row(wires, container["uuid"])["cost_fen"] > 0
        assert row(wires, other["uuid"])["paid_fen"] == row(wires, other["uuid"])["cost_fen"] == 145
        wires.advance(after / 2 + 3600)
        assert overview(wires, uuid) == []
        assert row(wires, container["uuid"])["paid_fen"] == 2 * 198


def test_looking_at_a_package_does_not_draw_it_and_containers_share_its_end() -> None:
    drawn = []
    for looks in (0, 50):
        with guessing(autodl_packages_pay=True) as wires:
            uuid = wires.deploy(job(replica_num=2, parallelism_num=2))
            wires.advance(1)
            wires.running(uuid, 2)
            for _ in range(looks):
                overview(wires, uuid)
                wires.advance(0)
            for _ in range(10):
                wires.advance(6000)
            drawn.append([machine["paid_fen"] for machine in wires.truth()])
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == drawn[0][1] > 0
