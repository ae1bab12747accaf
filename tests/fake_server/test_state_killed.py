"""A state folder keeps all that was answered through the death of the fake at any moment."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import paramiko
import requests

from tests.fake_server.test_machines_live import box_shell, container_shell, says
from tests.fake_server.wires import INSTANCES, Wires, eventually, job


class Process:
    """A fake as its users run it, which can be killed."""

    def __init__(self, folder: Path, port: int) -> None:
        command = [sys.executable, "-m", "fake_server", "--port", str(port), "--state", str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"fake_server listening on http://127.0.0.1:{port}\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


class Address:
    """What Wires needs of a fake that runs in another process."""

    token, namespace, control_token = "fake-token", "fake-user", "fake-control"

    def __init__(self, port: int) -> None:
        self.url = self.autodl_url = f"http://127.0.0.1:{port}"
        self.matrixdc_url = f"{self.url}/mdc/api/v1"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def host_key(client: paramiko.SSHClient) -> str:
    transport = client.get_transport()
    assert transport is not None
    return transport.get_remote_server_key().get_base64()


def test_a_killed_fake_comes_back_with_all_that_it_had_answered(tmp_path: Path) -> None:
    port = free_port()
    process = Process(tmp_path, port)
    wires = Wires(Address(port))  # type: ignore[arg-type]
    try:
        name = wires.rent()
        uuid = wires.deploy(job(cmd="echo boot >> /root/boots; sleep 1000"))
        with box_shell(wires, name) as client:
            key = host_key(client)
            says(client, "echo disk > /root/s; echo data > /root/data/d; sync")
        (container,) = wires.running(uuid)
        box, ran = wires.box(name), eventually(lambda: wires.truth()[0]["commands"])
        last = wires.rent(displayName="the last word")
        process.kill()
        process = Process(tmp_path, port)
        wires.session.close()
        assert wires.box(name)["servers"] == box["servers"]
        assert wires.box(name)["uid"] == box["uid"]
        with box_shell(wires, name) as client:
            assert host_key(client) == key
            assert says(client, "cat /root/s /root/data/d").split() == ["disk", "data"]
        assert wires.containers(uuid)[0]["info"] == container["info"]
        with container_shell(container) as client:
            eventually(lambda: says(client, "cat /root/boots").split() == ["boot", "boot"])
        assert wires.boxed(last, "Running")["displayName"] == "the last word"
        assert wires.truth()[0]["commands"][: len(ran)] == ran
    finally:
        wires.session.close()
        process.kill()


def test_whatever_was_answered_is_there_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    port, names = free_port(), list[str]()
    for _ in range(3):
        process = Process(tmp_path, port)
        try:
            names = _replace_all(Wires(Address(port)), names)  # type: ignore[arg-type]
        finally:
            process.kill()


def _replace_all(wires: Wires, names: list[str]) -> list[str]:
    """Find what was left, rent as many anew, delete the old; return what was there at the last look."""
    with wires.session:
        assert set(wires.boxes()) == set(names)
        new = [wires.rent() for _ in range(2)]
        for name in names:
            wires.matrixdc("DELETE", f"{INSTANCES}?name={name}")
        eventually(lambda: set(wires.boxes()) == set(new))
        assert wires.control("GET", "state")["stock"]["matrixdc"]["4090"] == 14
        return new


def _rent_until_it_dies(port: int, answered: list[str]) -> None:
    """Make deployments one after the other, noting each as soon as it is answered."""
    wires = Wires(Address(port))  # type: ignore[arg-type]
    with wires.session, suppress(requests.RequestException):
        while True:
            answered.append(wires.deploy(job(name=f"job-{len(answered)}")))


def test_under_load_a_kill_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    port, answered = free_port(), list[str]()
    process = Process(tmp_path, port)
    with ThreadPoolExecutor(6) as clients:
        runs = [clients.submit(_rent_until_it_dies, port, answered) for _ in range(6)]
        eventually(lambda: len(answered) > 100)
        process.kill()
    assert [run.exception() for run in runs] == [None] * 6
    process = Process(tmp_path, port)
    try:
        wires = Wires(Address(port))  # type: ignore[arg-type]
        with wires.session:
            found = {each["uuid"] for each in wires.deployments(page_size=1000)}
            assert set(answered) <= found
            assert len(found) <= len(answered) + 6, "only calls that were never answered may be there too"
    finally:
        process.kill()
