"""The server itself: the control room, whom it answers, how it starts and ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from fake_server.server import FakeServer
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, OwnThreads, Wires, eventually, job

CONTROL = {"X-Fake-Control": "fake-control"}


def quiet_fake(**options: Any) -> FakeServer:
    return FakeServer(containers=QuietContainers, **options)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "state"),
        ("GET", "ledger"),
        ("POST", "reset"),
        ("POST", "clock"),
        ("POST", "stock"),
        ("GET", "faults"),
        ("POST", "faults"),
        ("DELETE", "faults"),
        ("DELETE", "faults/1"),
    ],
)
@pytest.mark.parametrize("headers", [{}, {"X-Fake-Control": "wrong"}, {"Authorization": "fake-token"}])
def test_the_control_room_is_closed_without_its_header(
    wires: Wires, method: str, path: str, headers: dict[str, str]
) -> None:
    reply = requests.request(method, f"{wires.fake.url}/_fake/{path}", headers=headers, timeout=60)
    assert reply.status_code == 403
    assert set(reply.json()) == {"message"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:80", "[::1]:9", "LOCALHOST"])
def test_loopback_names_are_answered(wires: Wires, host: str) -> None:
    assert requests.get(f"{wires.fake.url}/_fake/state", headers={**CONTROL, "Host": host}, timeout=60).ok


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "[::1", ""])
@pytest.mark.parametrize("path", ["/_fake/state", "/mdc/api/v1/regions", "/api/v1/dev/deployment/blacklist"])
def test_foreign_host_names_are_refused(wires: Wires, host: str, path: str) -> None:
    headers = {**CONTROL, "Authorization": "fake-token", "Host": host}
    assert requests.get(f"{wires.fake.url}{path}", headers=headers, timeout=60).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_only_loopback_is_listened_on(host: str) -> None:
    with pytest.raises(ValueError, match="loopback only"):
        FakeServer(host=host)


def test_connections_stay_open_between_calls(wires: Wires) -> None:
    connection = http.client.HTTPConnection(wires.fake.url.removeprefix("http://"), timeout=60)
    ports = set()
    for path in ("/mdc/api/v1/regions", "/nothing", "/_fake/state"):
        connection.request("GET", path, headers=CONTROL)
        reply = connection.getresponse()
        reply.read()
        assert connection.sock is not None
        ports.add(connection.sock.getsockname()[1])
    connection.close()
    assert len(ports) == 1


def test_a_body_of_unknown_length_or_too_long_is_refused(wires: Wires) -> None:
    address = wires.fake.url.removeprefix("http://")
    for headers, status in (({"Transfer-Encoding": "chunked"}, 411), ({"Content-Length": str(2**21)}, 413)):
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.putrequest("POST", "/api/v1/dev/deployment")
        for key, value in headers.items():
            connection.putheader(key, value)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()


def test_the_state_tells_what_lives_and_the_isolation(wires: Wires) -> None:
    wires.rent()
    uuid = wires.deploy(job())
    state = wires.control("GET", "state")
    assert (state["isolation"], state["speed"]) == ("unshare", 0)
    assert [(machine["provider"], machine["name"]) for machine in state["machines"]] == [("matrixdc", "box")]
    assert [(each["id"], each["status"]) for each in state["deployments"]] == [(uuid, "running")]
    assert state["stock"]["matrixdc"]["4090"] == 15
    assert state["stock"]["autodl"]["westDC2"]["RTX 4090"] == 36


def test_the_ledger_holds_each_machines_commands_and_the_calls(wires: Wires, containers: QuietContainers) -> None:
    name = wires.rent()
    wires.advance(1)
    wires.boxed(name, "Running")
    containers.report(name, "python train.py", code=-9)
    ledger = wires.control("GET", "ledger")
    (command,) = ledger["machines"][0]["commands"]
    assert (command["command"], command["kind"], command["exit_code"], command["bytes_written"]) == (
        "python train.py",
        "exec",
        -9,
        3,
    )
    assert command["ended_at"] == ledger["now"]
    assert ledger["calls"]["matrixdc.create_instance"] == 1
    assert "password" not in json.dumps(ledger)


def test_reset_ends_everything_and_forgets_it(wires: Wires, containers: QuietContainers) -> None:
    wires.rent()
    wires.deploy(job())
    wires.control("POST", "faults", {"endpoint": "autodl.*", "kind": "reset", "count": None})
    wires.advance(1)
    eventually(lambda: len(containers.running()) == 2)
    wires.control("POST", "reset")
    assert containers.running() == []
    assert (wires.truth(), wires.boxes(), wires.deployments()) == ([], [], [])
    assert wires.control("GET", "ledger")["calls"] == {"matrixdc.list_instances": 1, "autodl.list_deployments": 1}


@pytest.mark.parametrize("order", [{}, {"advance": -1}, {"speed": -1}, {"advance": "5"}, {"warp": 9}])
def test_a_clock_order_that_makes_no_sense_is_refused(wires: Wires, order: dict[str, Any]) -> None:
    before = wires.control("GET", "state")["now"]
    assert wires.control("POST", "clock", order, status=400)["message"]
    assert wires.control("GET", "state")["now"] == before


def test_the_clock_is_moved_and_sped_up_from_the_control_room(wires: Wires) -> None:
    before = wires.control("GET", "state")["now"]
    assert wires.control("POST", "clock", {"advance": 90}) == {"now": before + 90, "speed": 0}
    assert wires.control("POST", "clock", {"speed": 5})["speed"] == 5
    eventually(lambda: wires.control("GET", "state")["now"] > before + 90)


def test_the_same_seed_gives_the_same_ids() -> None:
    def names(seed: int) -> tuple[str, str]:
        with quiet_fake(seed=seed, speed=0) as fake:
            wires = Wires(fake)
            with wires.session:
                return wires.rent(), wires.deploy(job())

    assert names(3) == names(3) != names(4)


def test_passwords_do_not_follow_from_the_seed() -> None:
    def password() -> str:
        with quiet_fake(seed=3) as fake:
            wires = Wires(fake)
            with wires.session:
                return str(wires.boxed(wires.rent(), "Running")["servers"]["SSH"]["sshPassword"])

    assert password() != password()


def test_credentials_can_be_chosen_and_env_hands_them_on() -> None:
    with quiet_fake(token="t-1", namespace="n-1", control_token="c-1") as fake:
        env = fake.env()
        assert env == {
            "AUTODL_TOKEN": "t-1",
            "AUTODL_API_URL": fake.url,
            "MATRIXDC_TOKEN": "t-1",
            "MATRIXDC_NAMESPACE": "n-1",
            "MATRIXDC_API_URL": f"{fake.url}/mdc/api/v1",
        }
        headers = {"Authorization": "bearer t-1", "namespace": "n-1"}
        assert requests.get(f"{env['MATRIXDC_API_URL']}/regions", headers=headers, timeout=60).ok
        assert requests.get(f"{fake.url}/_fake/state", headers={"X-Fake-Control": "c-1"}, timeout=60).ok


def test_a_given_state_folder_is_private_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with quiet_fake(state=folder, speed=0):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.is_dir()


def test_a_temporary_state_folder_goes_with_the_fake() -> None:
    with quiet_fake() as fake:
        folder = fake.world.ground.folder
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_the_end_leaves_no_thread_even_with_a_connection_held_open(own_threads: OwnThreads) -> None:
    with quiet_fake() as fake:
        wires = Wires(fake)
        wires.boxed(wires.rent(), "Running")
        assert own_threads()
    eventually(lambda: not own_threads(), within_s=60)
    wires.session.close()


def test_a_taken_port_is_an_error_of_the_caller() -> None:
    with quiet_fake() as fake, pytest.raises(OSError, match="in use"):
        quiet_fake(port=int(fake.url.rsplit(":", 1)[1])).start()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """`python -m fake_server` on a free port."""
    started = subprocess.Popen(
        [sys.executable, "-m", "fake_server", "--port", "0", "--seed", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    yield started
    started.kill()
    started.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_line_says_it_is_ready_and_a_signal_ends_it_and_its_machines(
    process: subprocess.Popen[str], number: signal.Signals
) -> None:
    ready = re.fullmatch(r"fake_server listening on (http://127\.0\.0\.1:\d+)\n", first_line(process))
    assert ready is not None
    url = ready[1]
    headers = {"Authorization": "bearer fake-token", "namespace": "fake-user"}
    body = {
        "Cost": {"CostType": "1", "DiskSKUID": "1", "GPUSKUID": "66"},
        "VolumeMount": [],
        "namespace": "fake-user",
        "displayName": "doomed",
        "image": "images.neolink-ai.com/matrixdc/ubuntu:22.04",
    }
    name = requests.post(f"{url}/mdc/api/v1{INSTANCES}", json=body, headers=headers, timeout=30).json()["name"]

    def port() -> int:
        box = requests.get(f"{url}/mdc/api/v1{INSTANCES}/{name}", headers=headers, timeout=30).json()
        return int(box["servers"]["SSH"]["sshAddr"].split()[1][2:]) if box["status"] == "Running" else 0

    ssh_port = eventually(port)
    eventually(lambda: answers(ssh_port))
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == 0
    assert time.monotonic() - begun < 5
    assert not answers(ssh_port)


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def test_a_missing_isolation_is_said_loudly() -> None:
    code = """
import fake_server.__main__ as door
from functools import partial
from tests.fake_server.doubles import QuietContainers
QuietContainers.isolation = "none"
door.FakeServer = partial(door.FakeServer, containers=QuietContainers)
raise SystemExit(door.main(["--port", "0"]))
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    ) as started:
        url = first_line(started).split()[-1]
        state = requests.get(f"{url}/_fake/state", headers=CONTROL, timeout=60).json()
        assert (state["isolation"], state["safe"]) == ("none", False)
        started.terminate()
        _, said = started.communicate(timeout=60)
    assert "WARNING: no isolation here" in said.splitlines()[0]
    assert "UNSAFE" in said.splitlines()[0]


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--speed", "-1"], ["--disk", "0"], ["--port", "x"]])
def test_wrong_arguments_are_refused_with_a_message(arguments: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "fake_server", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "COLUMNS": "200"},
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert ended.stderr
