"""Faults of the network and of the SSH server in front of a machine, seen by a real client."""

import contextlib
import hashlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import paramiko
import pytest

from tests.fake_server.wires import INSTANCES, Wires, eventually

HASH_COMMAND = "head -c 3000000 /dev/zero | tr '\\0' 'x'"
WHOLE = b"x" * 3_000_000


class Box:
    """A machine on MatrixDC and its SSH address."""

    def __init__(self, wires: Wires, name: str = "box") -> None:
        self.wires = wires
        self.id = wires.rent(displayName=name)
        ssh = wires.boxed(self.id, "Running")["servers"]["SSH"]
        self.port, self.password = int(ssh["sshAddr"].split()[1][2:]), ssh["sshPassword"]

    def connect(self, **login: Any) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        options = {"username": "root", "password": self.password, "timeout": 10, "banner_timeout": 10, **login}
        try:
            client.connect("127.0.0.1", self.port, allow_agent=False, look_for_keys=False, **options)
        except BaseException:
            client.close()
            raise
        return client

    def connected(self) -> paramiko.SSHClient:
        """A connection, once the server is up."""
        eventually(self.listens)
        return self.connect()

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=60).close()
        except ConnectionRefusedError:
            return False
        return True


@contextlib.contextmanager
def armed(wires: Wires, kind: str, **fields: Any) -> Iterator[int]:
    rule = int(wires.control("POST", "faults", {"kind": kind, **fields})["id"])
    yield rule
    wires.control("DELETE", f"faults/{rule}")


@pytest.fixture
def box(real: Wires) -> Iterator[Box]:
    box = Box(real)
    yield box
    real.control("DELETE", "faults")
    real.matrixdc("DELETE", f"{INSTANCES}?name={box.id}")


def read_all(client: paramiko.SSHClient, command: str) -> bytes:
    """Read all that comes; with so much room that the client says nothing meanwhile, which would fail after a reset.

    A client that is slower than the reset would lose by that what its kernel still holds for it.
    """
    transport = client.get_transport()
    assert transport is not None
    channel = transport.open_session(window_size=2**26)
    channel.settimeout(30)
    channel.exec_command(command)
    with channel.makefile() as stdout:
        return bytes(stdout.read())


def test_a_line_without_faults_passes_every_byte(box: Box) -> None:
    with box.connected() as client:
        assert hashlib.sha256(read_all(client, HASH_COMMAND)).digest() == hashlib.sha256(WHOLE).digest()


def test_a_cut_after_so_many_bytes_lets_no_more_through_and_strikes_once(box: Box) -> None:
    with box.connected() as client, armed(box.wires, "ssh_cut", machine=box.id, bytes=1_000_000):
        got = read_all(client, HASH_COMMAND)
        assert 900_000 < len(got) < 1_000_000  # what passed has arrived; the rest is packets' heads and the exchange
        transport = client.get_transport()
        assert transport is not None
        eventually(lambda: not transport.is_active())
        with box.connect() as second:
            assert read_all(second, HASH_COMMAND) == WHOLE


def test_a_cut_without_bytes_is_a_reset_at_once_of_what_stands(box: Box) -> None:
    eventually(box.listens)
    with socket.create_connection(("127.0.0.1", box.port), timeout=60) as raw:
        assert raw.recv(4) == b"SSH-"
        with armed(box.wires, "ssh_cut", machine=box.id), pytest.raises(ConnectionResetError):  # noqa: PT012
            while raw.recv(4096):
                pass


def test_an_upload_is_cut_in_the_middle_too(box: Box) -> None:
    with box.connected() as client, armed(box.wires, "ssh_cut", machine=box.id, bytes=400_000):
        stdin, _, _ = client.exec_command("cat > /root/up", timeout=30)
        with pytest.raises((OSError, EOFError)):  # noqa: PT012 -- paramiko says it in several ways
            for _ in range(1000):
                stdin.channel.sendall(b"y" * 32768)
        with box.connect() as second:
            assert int(read_all(second, "stat -c %s /root/up")) <= 400_000


def test_half_open_freezes_both_ways_stays_open_and_thaws(box: Box) -> None:
    with box.connected() as client:
        with armed(box.wires, "ssh_half_open", machine=box.id) as rule:
            transport = client.get_transport()
            assert transport is not None
            with pytest.raises(paramiko.SSHException):
                transport.open_session(timeout=0.5)
            assert transport.is_active()
            with box.connect() as second:  # one connection was asked for
                assert read_all(second, "echo alive") == b"alive\n"
            shown = {each["id"]: each for each in box.wires.control("GET", "faults")["rules"]}[rule]
            assert shown["fired"] == 1
        assert read_all(client, "echo thawed") == b"thawed\n"


def test_half_open_ends_after_its_seconds_and_no_byte_is_lost(box: Box) -> None:
    with box.connected() as client, armed(box.wires, "ssh_half_open", machine=box.id, bytes=300_000, seconds=0.5):
        time.sleep(0.6)  # its seconds begin when it freezes
        begun = time.monotonic()
        assert read_all(client, HASH_COMMAND) == WHOLE
        assert time.monotonic() - begun >= 0.5
        assert read_all(client, HASH_COMMAND) == WHOLE


def test_refused_for_some_seconds_and_then_answered(box: Box) -> None:
    with box.connected() as standing, armed(box.wires, "ssh_refused", machine=box.id, seconds=0.6):
        begun = time.monotonic()
        eventually(lambda: not box.listens())
        assert read_all(standing, "echo still here") == b"still here\n"
        eventually(box.listens)
        assert time.monotonic() - begun >= 0.5
        with box.connect() as client:
            assert read_all(client, "echo hello") == b"hello\n"


def test_refused_from_the_start_until_the_rule_is_taken_away(real: Wires) -> None:
    with armed(real, "ssh_refused", machine="shy", seconds=0):
        box = Box(real, "shy")
        time.sleep(0.5)  # twice the time in which it would have answered
        assert not box.listens()
    with box.connected() as client:
        assert read_all(client, "echo hello") == b"hello\n"
    real.matrixdc("DELETE", f"{INSTANCES}?name={box.id}")


def test_the_right_password_is_wrong_for_some_seconds(box: Box) -> None:
    eventually(box.listens)
    with armed(box.wires, "wrong_password", machine=box.id, seconds=1.5):
        with pytest.raises(paramiko.AuthenticationException):
            box.connect()

        def let_in() -> bool:
            try:
                box.connect().close()
            except paramiko.AuthenticationException:
                return False
            return True

        eventually(let_in)


def test_the_host_key_changes_for_new_connections_and_changes_back(box: Box) -> None:
    def key() -> bytes:
        with box.connect() as client:
            transport = client.get_transport()
            assert transport is not None
            return bytes(transport.get_remote_server_key().asbytes())

    eventually(box.listens)
    first = key()
    with armed(box.wires, "changed_host_key", machine=box.id):
        eventually(lambda: key() != first)
        assert key() == key()
    eventually(lambda: key() == first)


def test_a_slow_line_takes_its_time_and_loses_nothing(box: Box) -> None:
    with box.connected() as client, armed(box.wires, "ssh_slow", machine=box.id, bytes_per_s=200_000):
        begun = time.monotonic()
        assert read_all(client, "head -c 200000 /dev/zero") == bytes(200_000)
        assert 0.9 < time.monotonic() - begun < 10


def test_latency_delays_each_way(box: Box) -> None:
    with box.connected() as client, armed(box.wires, "ssh_slow", machine=box.id, latency_s=0.2):
        begun = time.monotonic()
        assert read_all(client, "echo far away") == b"far away\n"
        assert time.monotonic() - begun >= 0.8  # the channel and the command: two ways each


def test_faults_of_one_machine_leave_the_others_alone(box: Box) -> None:
    other = Box(box.wires, "other")
    with (
        other.connected() as client,
        armed(box.wires, "ssh_slow", machine=box.id, latency_s=5.0),
        armed(box.wires, "ssh_half_open", machine="box", count=None),
    ):
        assert read_all(client, HASH_COMMAND) == WHOLE
    other.wires.matrixdc("DELETE", f"{INSTANCES}?name={other.id}")


def test_a_frozen_machine_can_still_be_released(real: Wires) -> None:
    box = Box(real, "frozen")
    with box.connected() as client, armed(real, "ssh_half_open", machine="frozen", count=None):
        real.matrixdc("DELETE", f"{INSTANCES}?name={box.id}")
        eventually(lambda: box.id not in real.boxes())
        transport = client.get_transport()
        assert transport is not None
        eventually(lambda: not transport.is_active())
