"""What answers on a machine's SSH port may be anything: it costs a clear error, within a bound, and shows no escape."""

import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from gpujobs.errors import GpujobsError, Unreachable
from gpujobs.models import Access
from gpujobs.shell import connect
from tests.sshd.machines import QUICK

GREETING = b"SSH-2.0-OpenSSH_9.9\r\n"
ESCAPES = b"\x1b]52;c;ZXZpbA==\x07\x1b]0;owned\x07\x1bP+q\x1b\\\x1b[2J"
Serve = Callable[[socket.socket], None]


@contextmanager
def listening(serve: Serve) -> Iterator[int]:
    """Run `serve` for each connection to a port of loopback, until it ends or the peer hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def one() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:  # the test is over
                    return
                with client, suppress(OSError):
                    serve(client)

        threading.Thread(target=one, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def refused(serve: Serve) -> str:
    with listening(serve) as port:
        access = Access(host="127.0.0.1", port=port, user="root", password="correct horse")
        with pytest.raises(GpujobsError) as caught:
            connect(access, host_key=None, timeouts=replace(QUICK, banner_s=1, handshake_s=1))
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 600
    assert "correct horse" not in said
    return said


def packet(payload: bytes) -> bytes:
    """An SSH packet as it is before any key is agreed on. Source: RFC 4253, 6."""
    padding = 8 - (len(payload) + 5) % 8
    padding += 8 if padding < 4 else 0
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def for_ever(data: bytes) -> Serve:
    def serve(client: socket.socket) -> None:
        while True:
            client.sendall(data)

    return serve


def drip(data: bytes) -> Serve:
    def serve(client: socket.socket) -> None:
        client.settimeout(0.2)
        while True:
            client.sendall(data)
            with suppress(TimeoutError):
                if not client.recv(65536):
                    return

    return serve


def last(data: bytes) -> Serve:
    return lambda client: client.sendall(data)


def once(data: bytes) -> Serve:
    def serve(client: socket.socket) -> None:
        client.sendall(data)
        while client.recv(65536):
            pass

    return serve


def test_a_greeting_without_end_is_not_read_on() -> None:
    assert "its greeting does not end" in refused(for_ever(b"x" * 65536))


@pytest.mark.parametrize("data", [b"x", b"x\r\n", GREETING[:4]], ids=["a byte", "a line", "half a greeting"])
def test_a_greeting_that_drips_is_given_up(data: bytes) -> None:
    assert refused(drip(data)).startswith("127.0.0.1:")


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-" + ESCAPES + b"\r\n",
        b"SSH-1.0-" + ESCAPES + b"\r\n",
        ESCAPES + b"\r\n" + ESCAPES + b"\r\n",
        b"\xff\xfe\x9b\r\n",
        GREETING + packet(b"\x01" + struct.pack(">I", 2) + text(ESCAPES) + text(b"")),  # a farewell
        GREETING + packet(b"\x01" + struct.pack(">I", 2) + text(b"\xff\x9b") + text(b"")),
        GREETING + packet(b"\x01" + struct.pack(">I", 2) + struct.pack(">I", 2**31)),
        GREETING + packet(b"\x14" + bytes(16) + text(b"\xff") * 10),  # its list of algorithms
        GREETING + packet(b"\x14" + bytes(16) + text(b"") * 10 + bytes(5)),
        GREETING + packet(b"\x14"),
        GREETING + packet(b""),
        GREETING + b"\x7f\xff\xff\xff" + bytes(1000),
        GREETING + struct.pack(">IB", 1, 255) + bytes(100),
    ],
)
def test_what_is_no_ssh_is_a_clear_error_without_escapes(data: bytes) -> None:
    refused(once(data))


def test_noise_is_a_clear_error() -> None:
    dice = random.Random(7)
    for _ in range(40):
        payload = bytes([dice.choice([1, 2, 4, 20, 21, 31, 33, 52, 80, 90])]) + dice.randbytes(dice.randrange(60))
        refused(last(GREETING + packet(payload)))


def test_a_server_that_only_reads_gets_no_password() -> None:
    heard = bytearray()

    def serve(client: socket.socket) -> None:
        client.sendall(GREETING)
        while data := client.recv(65536):
            heard.extend(data)

    with pytest.raises(Unreachable), listening(serve) as port:
        connect(
            Access(host="127.0.0.1", port=port, user="root", password="correct horse"),
            host_key=None,
            timeouts=replace(QUICK, banner_s=1, handshake_s=1),
        )
    assert heard.startswith(b"SSH-2.0-")
    assert b"correct horse" not in heard
