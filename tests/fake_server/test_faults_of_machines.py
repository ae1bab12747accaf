"""Faults of machines and lists by the clock, on containers that are only remembered."""

import time
from typing import Any

import pytest
import requests

from fake_server.cloud import FakeCloud
from fake_server.faults import KINDS, FaultRule
from fake_server.server import FakeServer
from fake_server.timings import Timings
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, Wires, eventually, instance, job

LIST = "/deployment/list"
PAGE = {"page_index": 1, "page_size": 100}
MDC = {"Authorization": "bearer fake-token", "namespace": "fake-user"}


def arm(wires: Wires, kind: str, **more: Any) -> int:
    return int(wires.control("POST", "faults", {"kind": kind, **more})["id"])


def disarm(wires: Wires) -> None:
    wires.control("DELETE", "faults")


def passing(wires: Wires, seconds: float, *, step: float = 1.0) -> None:
    """Let simulated time pass, and the work that it sets going be done."""
    for _ in range(int(seconds / step)):
        wires.advance(step)
        time.sleep(0.02)  # containers start and stop on threads of their own


def run_box(wires: Wires, **changes: Any) -> str:
    name = wires.rent(**changes)
    eventually(lambda: wires.advance(1) or wires.box(name)["status"] == "Running")
    return name


def run_job(wires: Wires, **changes: Any) -> tuple[str, str]:
    uuid = wires.deploy(job(**changes))

    def running() -> list[dict[str, Any]]:
        wires.advance(1)
        return wires.containers(uuid, status=["running"])

    return uuid, str(eventually(running)[0]["uuid"])


def truth_of(wires: Wires, machine: str) -> dict[str, Any]:
    return next(each for each in wires.truth() if each["id"] == machine)


def test_a_deployment_that_is_never_scheduled_waits_until_the_rule_is_gone(wires: Wires) -> None:
    arm(wires, "never_scheduled", machine="starved")
    starved, fed = wires.deploy(job(name="starved")), wires.deploy(job(name="fed"))
    passing(wires, 20, step=5)
    assert (wires.containers(starved), len(wires.containers(fed))) == ([], 1)
    assert wires.deployments(deployment_uuid=starved)[0]["status"] == "running"
    disarm(wires)
    passing(wires, 3)
    assert len(wires.containers(starved)) == 1


def test_never_scheduled_can_end_by_the_clock(wires: Wires) -> None:
    arm(wires, "never_scheduled", seconds=60)
    uuid = wires.deploy(job())
    passing(wires, 50, step=10)
    assert wires.containers(uuid) == []
    passing(wires, 20, step=10)
    assert len(wires.containers(uuid)) == 1


@pytest.mark.parametrize("kind", ["stuck_in_creating", "never_scheduled"])
def test_an_instance_stays_in_creating_and_goes_on_when_the_rule_is_gone(wires: Wires, kind: str) -> None:
    arm(wires, kind, provider="matrixdc")
    untouched, stuck, fine = wires.deploy(job()), wires.rent(), wires.rent()
    passing(wires, 100, step=20)
    assert wires.running(untouched)  # the rule is for the other provider
    assert (wires.box(stuck)["status"], wires.box(fine)["status"]) == ("Creating", "Running")
    assert [(each["id"], each["held_by"]) for each in wires.control("GET", "state")["waiting"]] == [(stuck, "fault")]
    disarm(wires)
    passing(wires, 3)
    assert wires.box(stuck)["status"] == "Running"


def test_a_stuck_container_can_be_stopped_and_frees_its_host(wires: Wires) -> None:
    arm(wires, "stuck_in_creating", provider="autodl")
    stock = wires.control("GET", "state")["stock"]
    uuid = wires.deploy(job())
    passing(wires, 10, step=5)
    assert wires.events(uuid) == ["creating"]
    wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})
    eventually(lambda: wires.advance(1) or wires.deployments() == [])
    assert wires.control("GET", "state")["stock"] == stock
    disarm(wires)
    passing(wires, 5)
    assert list(wires.fake.world.ground.containers.running()) == []


def test_a_machine_that_dies_in_boot_is_failed_and_never_billed(wires: Wires) -> None:
    arm(wires, "dies_in_boot", machine="doomed", count=None)
    name, uuid = wires.rent(displayName="doomed"), wires.deploy(job(name="doomed"))
    eventually(lambda: wires.advance(1) or wires.box(name)["status"] == "Failed")
    eventually(lambda: wires.advance(1) or "failed" in wires.events(uuid))
    assert {each["billed_s"] for each in wires.truth()} == {0}
    assert wires.matrixdc("DELETE", f"{INSTANCES}?name={name}") == "ok"


def test_a_machine_dies_in_mid_run_and_its_provider_says_so(wires: Wires, containers: QuietContainers) -> None:
    arm(wires, "dies_mid_run", seconds=100, count=None)
    name, (_, container) = run_box(wires), run_job(wires)
    passing(wires, 80, step=20)
    assert wires.box(name)["status"] == "Running"
    eventually(lambda: wires.advance(20) or wires.box(name)["status"] == "Failed")
    eventually(lambda: wires.advance(1) or truth_of(wires, container)["gone_at"] is not None)
    assert name not in containers.running()
    billed = truth_of(wires, name)["billed_s"]
    wires.advance(1000)
    assert 100 <= truth_of(wires, name)["billed_s"] == billed < 200


def test_a_rule_strikes_a_machine_that_runs_already(wires: Wires) -> None:
    name = run_box(wires)
    arm(wires, "dies_mid_run", machine=name, seconds=10)
    eventually(lambda: wires.advance(5) or wires.box(name)["status"] == "Failed")


def test_a_death_that_was_called_off_does_not_come(wires: Wires) -> None:
    name = run_box(wires)
    arm(wires, "dies_mid_run", machine=name, seconds=10)
    disarm(wires)
    passing(wires, 30, step=10)
    assert wires.box(name)["status"] == "Running"


def test_an_unnoticed_death_is_billed_and_called_running(wires: Wires, containers: QuietContainers) -> None:
    name = run_box(wires)
    arm(wires, "dies_unnoticed", machine="box", seconds=10)
    wires.advance(11)
    eventually(lambda: name not in containers.running())
    wires.advance(500)
    assert wires.box(name)["status"] == "Running"
    assert truth_of(wires, name)["billed_s"] > 500
    assert wires.matrixdc("DELETE", f"{INSTANCES}?name={name}") == "ok"
    eventually(lambda: wires.advance(1) or wires.boxes() == [])


def test_a_snapshot_that_fails_leaves_no_image_and_the_next_one_works(wires: Wires) -> None:
    arm(wires, "snapshot_fails")
    save = {"gracePeriodSeconds": 0, "needSnapshot": True, "imageName": "env", "tag": "v1"}
    for images in ([], ["images.neolink-ai.com/fake-user/env:v1"]):
        name = run_box(wires)
        wires.matrixdc("POST", f"{INSTANCES}/{name}/power_off", save)
        eventually(lambda name=name: wires.advance(1) or wires.box(name)["status"] == "Shutdown")
        assert wires.control("GET", "state")["images"] == images


def test_a_release_fails_so_many_times_for_the_machine_that_is_named(wires: Wires) -> None:
    sticky, other = run_box(wires, displayName="sticky"), run_box(wires)
    uuid, container = run_job(wires, name="sticky-job")
    arm(wires, "release_fails", machine="sticky*", count=5)
    assert wires.matrixdc("DELETE", f"{INSTANCES}?name={other}") == "ok"
    url = f"{wires.fake.matrixdc_url}{INSTANCES}?name={sticky}"
    assert [requests.delete(url, headers=MDC, timeout=60).status_code for _ in range(2)] == [500, 500]
    asked = {"deployment_uuid": uuid, "operate": "stop", "deployment_container_uuid": container}
    for method, path in (
        ("DELETE", "/deployment"),
        ("PUT", "/deployment/operate"),
        ("PUT", "/deployment/container/stop"),
    ):
        api = f"{wires.fake.autodl_url}/api/v1/dev{path}"
        reply = requests.request(method, api, json=asked, headers={"Authorization": "fake-token"}, timeout=60)
        assert reply.status_code == 500
    passing(wires, 5)
    assert wires.box(sticky)["status"] == "Running"
    assert wires.matrixdc("DELETE", f"{INSTANCES}?name={sticky}") == "ok"


def test_a_token_expires_after_so_many_calls_for_one_provider(wires: Wires) -> None:
    arm(wires, "token_expired", provider="autodl", after=2)
    codes = [wires.autodl("POST", LIST, PAGE)["code"] for _ in range(4)]
    assert codes == ["Success", "Success", "AuthorizeFailed", "AuthorizeFailed"]
    assert wires.boxes() == []


def test_a_token_expires_after_so_many_seconds(wires: Wires) -> None:
    arm(wires, "token_expired", provider="matrixdc", seconds=3600)
    assert wires.boxes() == []
    wires.advance(3601)
    wires.matrixdc("GET", INSTANCES, status=401)
    disarm(wires)
    assert wires.boxes() == []


def test_a_stale_list_repeats_its_last_answer_or_knows_nothing(wires: Wires) -> None:
    arm(wires, "stale_list", count=3, after=0)
    first = wires.rent()
    assert wires.boxes() == []
    disarm(wires)
    assert wires.boxes() == [first]
    arm(wires, "stale_list", count=2)
    second = wires.rent()
    assert [wires.boxes() for _ in range(3)] == [[first], [first], [second, first]]


def test_lists_lag_behind_what_was_created_while_the_machine_itself_is_known() -> None:
    timings = Timings(list_lag_s=30)
    with FakeServer(speed=0, timings=timings, containers=QuietContainers) as fake:
        wires = Wires(fake)
        with wires.session:
            name, uuid = wires.rent(), wires.deploy(job())
            assert (wires.boxes(), wires.deployments()) == ([], [])
            assert wires.box(name)["name"] == name
            wires.advance(31)
            assert (wires.boxes(), len(wires.deployments())) == ([name], 1)
            wires.control("POST", "timings", {"list_lag_s": 0})
            assert [each["uuid"] for each in wires.deployments()] == [uuid]


def test_events_come_twice_or_in_any_order(wires: Wires) -> None:
    uuid, _ = run_job(wires)
    right = wires.events(uuid)
    arm(wires, "duplicated_events")
    assert wires.events(uuid) == [status for status in right for _ in range(2)]
    arm(wires, "reordered_events", seed=4)
    mixed = wires.events(uuid)
    assert mixed != right
    assert sorted(mixed) == sorted(right) == sorted(wires.events(uuid))
    disarm(wires)
    arm(wires, "reordered_events", seed=4)
    assert wires.events(uuid) == mixed
    assert wires.events(uuid) == right


@pytest.mark.parametrize(("kind", "cut"), [("reset_in_body", "reset"), ("truncated_body", "ended")])
def test_a_reply_breaks_off_in_its_body_after_the_act(wires: Wires, kind: str, cut: str) -> None:
    arm(wires, kind, endpoint="matrixdc.create_instance")
    url = f"{wires.fake.matrixdc_url}{INSTANCES}"
    got = b""
    with requests.post(url, json=instance(), headers=MDC, timeout=60, stream=True) as reply:
        promised = int(reply.headers["Content-Length"])
        with pytest.raises(Exception, match=r"reset|IncompleteRead|broken") as broken:  # noqa: PT012
            while piece := reply.raw.read(64):
                got += piece
    assert reply.status_code == 200
    assert len(got) < promised
    assert ("reset" in str(broken.value).lower()) == (cut == "reset")
    assert len(wires.boxes()) == 1


def test_probability_and_seed_draw_the_same_lot_again(wires: Wires) -> None:
    def struck() -> list[int]:
        rule = arm(wires, "error_500", endpoint="autodl.list_deployments", probability=0.4, seed=9, count=None)
        url, headers = f"{wires.fake.autodl_url}/api/v1/dev{LIST}", {"Authorization": "fake-token"}
        codes = [wires.session.post(url, json=PAGE, headers=headers, timeout=60).status_code for _ in range(40)]
        wires.control("DELETE", f"faults/{rule}")
        return codes

    codes = struck()
    assert codes == struck()
    assert 5 < codes.count(500) < 30


def test_faults_are_armed_from_python_too(quiet: FakeServer, wires: Wires) -> None:
    quiet.faults.arm("error_500", endpoint="autodl.list_deployments")
    url, headers = f"{quiet.autodl_url}/api/v1/dev{LIST}", {"Authorization": "fake-token"}
    codes = [wires.session.post(url, json=PAGE, headers=headers, timeout=60).status_code for _ in range(2)]
    assert codes == [500, 200]
    with pytest.raises(ValueError, match="no fault is named"):
        quiet.faults.arm("earthquake")
    with pytest.raises(ValueError, match="takes no endpoint"):
        FaultRule.model_validate({"kind": "ssh_cut", "endpoint": "autodl.*"})
    with pytest.raises(ValueError, match="needs bytes_per_s or latency_s"):
        quiet.faults.arm("ssh_slow")


def test_every_kind_of_fault_can_be_armed_by_its_name_alone_from_python() -> None:
    with FakeCloud(speed=0, containers=QuietContainers) as cloud:
        for kind in KINDS:
            cloud.fault(kind, **({"latency_s": 1.0} if kind == "ssh_slow" else {}))
        rules = cloud.server.faults.as_json()["rules"]
    assert [rule["kind"] for rule in rules] == list(KINDS)
    assert {rule["kind"]: rule["endpoint"] for rule in rules}["release_fails"] != "*"
    assert {rule["endpoint"] for rule in rules if KINDS[rule["kind"]].layer != "call"} == {""}


def test_stages_are_timed_and_told_to_go_on_from_python() -> None:
    with FakeCloud(containers=QuietContainers) as cloud:
        assert cloud.set_timings(matrixdc_creating_s="manual", matrixdc_deleting_s=0)["matrixdc_deleting_s"] == 0
        wires = Wires(cloud.server)
        with wires.session:
            name = wires.rent()
            assert [each["id"] for each in cloud.let_go("box", "*creating")] == [name]
            wires.boxed(name, "Running")
