"""Faults on demand, seen from the client's side of a real socket."""

import time
from typing import Any

import pytest
import requests

from fake_server.faults import KINDS
from fake_server.server import FakeServer
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, OwnThreads, Wires, eventually, instance, job

HEADERS = {"Authorization": "fake-token"}
PAGE = {"page_index": 1, "page_size": 10}


def arm(wires: Wires, endpoint: str, kind: str, **more: Any) -> int:
    return int(wires.control("POST", "faults", {"endpoint": endpoint, "kind": kind, **more})["id"])


def list_once(wires: Wires, timeout: float = 10) -> requests.Response:
    """One deployment/list on a connection of its own."""
    url = f"{wires.fake.autodl_url}/api/v1/dev/deployment/list"
    return requests.post(url, json=PAGE, headers=HEADERS, timeout=timeout)


def create_once(wires: Wires) -> requests.Response:
    url = f"{wires.fake.autodl_url}/api/v1/dev/deployment"
    return requests.post(url, json=job(), headers=HEADERS, timeout=60)


def test_reset_is_a_real_reset_and_does_nothing(wires: Wires) -> None:
    arm(wires, "autodl.create_deployment", "reset")
    with pytest.raises(requests.ConnectionError) as refused:
        create_once(wires)
    assert "Connection reset by peer" in str(refused.value)
    assert wires.deployments() == []
    assert create_once(wires).json()["code"] == "Success"


def test_lost_reply_acts_and_then_resets(wires: Wires) -> None:
    arm(wires, "autodl.create_deployment", "lost_reply")
    with pytest.raises(requests.ConnectionError) as refused:
        create_once(wires)
    assert "Connection reset by peer" in str(refused.value)
    assert [row["name"] for row in wires.deployments()] == ["work"]


def test_late_act_fails_now_and_acts_later(wires: Wires) -> None:
    arm(wires, "autodl.create_deployment", "late_act", seconds=30)
    assert create_once(wires).status_code == 500
    wires.advance(29)
    assert wires.deployments() == []
    wires.advance(2)
    eventually(wires.deployments)


def test_a_late_act_carries_the_path_too(wires: Wires) -> None:
    name = wires.rent()
    arm(wires, "matrixdc.delete_instance", "late_act", seconds=5)
    headers = {"Authorization": "bearer fake-token", "namespace": "fake-user"}
    reply = requests.delete(f"{wires.fake.matrixdc_url}{INSTANCES}?name={name}", headers=headers, timeout=60)
    assert reply.status_code == 500
    wires.advance(6)
    eventually(lambda: wires.advance(1) or wires.boxes() == [])


def test_timeout_holds_the_reply_and_then_closes(wires: Wires) -> None:
    arm(wires, "autodl.list_deployments", "timeout", seconds=0.3, count=2)
    begun = time.monotonic()
    with pytest.raises(requests.ConnectionError):
        list_once(wires)
    assert time.monotonic() - begun >= 0.3
    with pytest.raises(requests.ReadTimeout):
        list_once(wires, timeout=0.05)


def test_error_500_does_nothing(wires: Wires) -> None:
    arm(wires, "matrixdc.create_instance", "error_500")
    headers = {"Authorization": "bearer fake-token", "namespace": "fake-user"}
    reply = requests.post(f"{wires.fake.matrixdc_url}{INSTANCES}", json=instance(), headers=headers, timeout=60)
    assert reply.status_code == 500
    assert wires.boxes() == []


def test_any_status_of_5xx_can_be_asked_for(wires: Wires) -> None:
    arm(wires, "autodl.list_deployments", "error_500", status=503)
    reply = list_once(wires)
    assert (reply.status_code, reply.text) == (503, "Service Unavailable")


def test_rate_limit_says_when_to_come_back(wires: Wires) -> None:
    arm(wires, "autodl.list_deployments", "rate_limit_429", retry_after=7)
    reply = list_once(wires)
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "7")


def test_broken_json_acts_and_cuts_the_body(wires: Wires) -> None:
    arm(wires, "autodl.create_deployment", "broken_json")
    reply = create_once(wires)
    assert reply.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        reply.json()
    assert len(wires.deployments()) == 1


def test_error_envelope_is_http_200_with_the_providers_error(wires: Wires) -> None:
    arm(wires, "autodl.create_deployment", "error_envelope")
    arm(wires, "matrixdc.list_regions", "error_envelope")
    assert wires.autodl("POST", "/deployment", job()) == {
        "code": "InternalError",
        "msg": "服务器内部错误",
        "data": None,
    }
    assert wires.matrixdc("GET", "/regions") == {"message": "internal error"}
    assert wires.deployments() == []


def test_after_and_count_choose_the_calls(wires: Wires) -> None:
    arm(wires, "autodl.list_deployments", "error_500", after=1, count=2)
    assert [list_once(wires).status_code for _ in range(5)] == [200, 500, 500, 200, 200]


def test_no_count_is_for_ever_and_a_rule_can_be_removed(wires: Wires) -> None:
    rule = arm(wires, "list_deployments", "error_500", provider="autodl", count=None)
    assert [list_once(wires).status_code for _ in range(3)] == [500, 500, 500]
    shown = wires.control("GET", "faults")["rules"]
    assert [(each["id"], each["seen"], each["fired"]) for each in shown] == [(rule, 3, 3)]
    assert wires.control("DELETE", f"faults/{rule}")["rules"] == []
    assert list_once(wires).status_code == 200


def test_a_pattern_hits_one_provider_and_delete_clears_all(wires: Wires) -> None:
    arm(wires, "autodl.*", "error_500", count=None)
    arm(wires, "*.list_*", "error_500", count=None)
    assert list_once(wires).status_code == 500
    wires.control("DELETE", "faults")
    assert list_once(wires).status_code == 200


def test_every_endpoint_has_a_published_name_and_every_kind_an_explanation(wires: Wires) -> None:
    shown = wires.control("GET", "faults")
    assert len(shown["endpoints"]) == 13 + 8
    assert {"autodl.create_deployment", "matrixdc.power_off"} <= set(shown["endpoints"])
    assert set(shown["kinds"]) == set(KINDS)
    assert len(KINDS) == 28
    assert all(len(meaning) > 20 for meaning in shown["kinds"].values())


@pytest.mark.parametrize(
    "rule",
    [
        {"endpoint": "autodl.nothing", "kind": "reset"},
        {"endpoint": "autodl.gpu_stock", "kind": "earthquake"},
        {"endpoint": "autodl.gpu_stock", "kind": "reset", "count": 0},
        {"endpoint": "autodl.gpu_stock", "kind": "reset", "often": True},
        {"kind": "reset"},
    ],
)
def test_a_rule_that_cannot_work_is_refused(wires: Wires, rule: dict[str, Any]) -> None:
    assert wires.control("POST", "faults", rule, status=400)["message"]
    assert wires.control("GET", "faults")["rules"] == []


def test_the_end_of_the_fake_lets_go_of_held_replies(own_threads: OwnThreads) -> None:
    with FakeServer(containers=QuietContainers) as fake:
        wires = Wires(fake)
        with wires.session:
            arm(wires, "autodl.list_deployments", "timeout", seconds=600)
        with pytest.raises(requests.ReadTimeout):
            list_once(wires, timeout=0.1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    eventually(lambda: not own_threads(), within_s=60)
