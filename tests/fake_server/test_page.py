"""The page at /: whom it answers, what it escapes, and that its buttons are pressed on it and nowhere else."""

import re
from typing import Any

import pytest
import requests

from fake_server.fault_rules import KINDS
from fake_server.page import COMMON_FAULTS
from fake_server.server import FakeServer
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, Wires, eventually, job


def form_token(wires: Wires) -> str:
    found = re.search(r'name="token" value="([0-9a-f]{64})"', wires.session.get(wires.fake.url, timeout=60).text)
    assert found
    return found[1]


def press(wires: Wires, action: str, *, headers: dict[str, str] | None = None, **fields: Any) -> requests.Response:
    given = {"token": form_token(wires), **fields}
    url = f"{wires.fake.url}/page/{action}"
    return wires.session.post(url, data=given, headers=headers, timeout=60, allow_redirects=False)


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_script_of_others(wires: Wires) -> None:
    reply = wires.session.get(wires.fake.url, timeout=60)
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "Access-Control-Allow-Origin" not in reply.headers
    assert not re.search(r"(?:src|href|action)=\"(?!/|data:)", reply.text)
    for file in re.findall(r"(?:src|href)=\"(/[^\"]+)\"", reply.text):
        assert wires.session.get(wires.fake.url + file, timeout=60).status_code == 200


def test_what_others_write_is_escaped(wires: Wires) -> None:
    wires.rent(displayName='"><script>x</script>')
    wires.session.get(f"{wires.fake.url}/api/v1/dev/<script>y</script>", timeout=60)
    text = wires.session.get(wires.fake.url, timeout=60).text
    assert "&lt;script&gt;x" in text
    assert "<script>x" not in text
    assert "<script>y" not in text


def test_no_password_and_no_token_is_on_the_page(wires: Wires) -> None:
    uuid = wires.deploy(job())
    name = wires.rent()
    eventually(lambda: wires.advance(1) or wires.containers(uuid, status=["running"]))
    secrets = [
        wires.running(uuid)[0]["info"]["root_password"],
        wires.boxed(name, "Running")["servers"]["SSH"]["sshPassword"],
    ]
    text = wires.session.get(wires.fake.url, timeout=60).text
    assert uuid in text
    for secret in [*secrets, wires.fake.token, wires.fake.control_token]:
        assert secret
        assert secret not in text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_button_pressed_on_another_page_does_nothing(wires: Wires, headers: dict[str, str]) -> None:
    wires.rent()
    assert press(wires, "reset", headers=headers).status_code == 403
    assert len(wires.boxes()) == 1


def test_a_form_without_the_pages_token_does_nothing(wires: Wires) -> None:
    wires.rent()
    for token in ("", "0" * 64):
        assert press(wires, "reset", token=token).status_code == 403
    assert len(wires.boxes()) == 1
    assert press(wires, "reset").status_code == 303
    assert wires.boxes() == []


def test_a_look_changes_nothing(wires: Wires) -> None:
    wires.rent()
    before = wires.control("GET", "state"), wires.truth()
    wires.session.get(wires.fake.url, timeout=60)
    assert (wires.control("GET", "state"), wires.truth()) == before
    assert wires.session.get(f"{wires.fake.url}/page/reset", timeout=60).status_code == 405


def test_the_clock_is_moved_and_a_wrong_order_told(wires: Wires) -> None:
    now = wires.control("GET", "state")["now"]
    assert press(wires, "clock", advance="3600").status_code == 303
    assert press(wires, "clock", speed="60").status_code == 303
    state = wires.control("GET", "state")
    assert state["now"] >= now + 3600
    assert state["speed"] == 60
    for wrong in ({}, {"advance": "-1"}, {"advance": "soon"}, {"speed": "nan"}):
        assert press(wires, "clock", **wrong).status_code == 400


@pytest.mark.parametrize("name", COMMON_FAULTS)
def test_every_common_fault_can_be_armed(wires: Wires, name: str) -> None:
    assert press(wires, "common-fault", name=name).status_code == 303
    rule = wires.control("GET", "faults")["rules"][0]
    assert rule.items() >= COMMON_FAULTS[name][1].items()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_fault_can_be_armed(wires: Wires, kind: str) -> None:
    fields = {"bytes_per_s": "1000"} if kind == "ssh_slow" else {}
    assert press(wires, "fault", kind=kind, **fields).status_code == 303
    assert wires.control("GET", "faults")["rules"][0]["kind"] == kind


def test_an_unknown_fault_is_told(wires: Wires) -> None:
    assert press(wires, "common-fault", name="flood").status_code == 400
    assert press(wires, "fault", kind="flood").status_code == 400
    assert press(wires, "fault", kind="reset", count="many").status_code == 400
    assert press(wires, "unfault", id="x").status_code == 400


def test_with_a_control_token_of_its_own_the_page_shows_nothing_until_it_is_typed() -> None:
    with FakeServer(containers=QuietContainers, control_token="my own") as fake:
        wires = Wires(fake)
        with wires.session:
            wires.rent(displayName="gj-mia-7f3a")
            assert "gj-mia-7f3a" not in wires.session.get(fake.url, timeout=60).text
            assert press(wires, "reset").status_code == 403
            assert press(wires, "enter", control_token="guess").status_code == 403
            assert press(wires, "enter", control_token="my own", headers={"Origin": "http://a.b"}).status_code == 403
            entered = press(wires, "enter", control_token="my own")
            assert entered.status_code == 303
            assert {"HttpOnly", "SameSite=Strict"} <= set(entered.headers["Set-Cookie"].split("; "))
            assert "gj-mia-7f3a" in wires.session.get(fake.url, timeout=60).text
            assert press(wires, "reset").status_code == 303
            assert wires.matrixdc("GET", INSTANCES)["totalCount"] == 0
