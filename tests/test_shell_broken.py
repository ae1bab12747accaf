"""What is no SSH server, is none any more or says nothing: a clear error within its time, and never a hang."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpujobs.errors import RemoteFailure, Unreachable
from gpujobs.models import Access
from gpujobs.shell import Timeouts, connect, reachable
from gpujobs.shell_exchange import Exchange
from tests.sshd.machines import PASSWORD, QUICK, Server, skip_without_sshd
from tests.sshd.openssh import OpenSsh
from tests.sshd.proxy import Proxy

pytest_plugins = ("tests.sshd.fixtures",)


@contextlib.contextmanager
def listener(greeting: bytes = b"") -> Iterator[int]:
    """Something that takes TCP connections and is no SSH server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    held[-1].sendall(greeting)

        threading.Thread(target=serve, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        for sock in held:
            sock.close()


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def access_at(port: int) -> Access:
    return Access(host="127.0.0.1", port=port, user="root", password=PASSWORD)


# Addresses where no SSH server answers


def test_reachable_means_that_an_ssh_server_greets(server: Server) -> None:
    assert reachable(server.access.host, server.access.port, 3)


def test_nothing_there_is_unreachable_at_once() -> None:
    port = unused_port()
    started = time.monotonic()
    assert not reachable("127.0.0.1", port, 3)
    with pytest.raises(Unreachable, match="refused"):
        connect(access_at(port), host_key=None)
    assert time.monotonic() - started < 1


def test_a_server_that_speaks_something_else_is_unreachable() -> None:
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert not reachable("127.0.0.1", port, 1)
        with pytest.raises(Unreachable, match="no SSH there yet"):
            connect(access_at(port), host_key=None, timeouts=QUICK)


def test_a_silent_port_is_unreachable_within_its_time() -> None:
    with listener() as port:
        started = time.monotonic()
        assert not reachable("127.0.0.1", port, 0.3)
        with pytest.raises(Unreachable):
            connect(access_at(port), host_key=None, timeouts=QUICK)
        assert time.monotonic() - started < QUICK.banner_s + 3


def test_a_server_that_freezes_after_its_greeting_is_unreachable_within_its_time() -> None:
    with listener(b"SSH-2.0-frozen\r\n") as port:
        started = time.monotonic()
        with pytest.raises(Unreachable):
            connect(access_at(port), host_key=None, timeouts=replace(QUICK, handshake_s=2))
        assert time.monotonic() - started < 6
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]


def test_a_server_that_freezes_amid_the_key_exchange_is_unreachable_within_its_time(server: Server) -> None:
    with Proxy(server.access.port) as proxy:
        proxy.freeze_after(300)  # its greeting and the beginning of its list of algorithms
        started = time.monotonic()
        with pytest.raises(Unreachable, match="did not end in time"):
            connect(
                server.at(proxy.port),
                host_key=None,
                pkey_path=server.key,
                timeouts=replace(QUICK, banner_s=1, handshake_s=2),
            )
        assert time.monotonic() - started < 8


@pytest.mark.parametrize("old", ["KexAlgorithms diffie-hellman-group14-sha1", "HostKeyAlgorithms ssh-rsa"])
def test_a_server_of_sha1_alone_gets_a_clear_error(tmp_path: Path, old: str) -> None:
    skip_without_sshd()
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", tmp_path / "rsa"], check=True)
    sshd = OpenSsh(tmp_path / "old", more=f"{old}\nHostKey {tmp_path}/rsa")
    try:
        with pytest.raises(RemoteFailure, match="no longer safe"):
            connect(access_at(sshd.port), host_key=None)
    finally:
        sshd.close()


# Connections that break


def test_a_cut_stream_is_unreachable_and_not_an_end(server: Server, proxy: Proxy) -> None:
    with server.connect(port=proxy.port, timeouts=QUICK) as shell:
        proxy.cut_after(200_000)
        with pytest.raises(Unreachable):
            shell.stream_out("yes", lambda _: None)
        deadline = time.monotonic() + 60
        while shell.alive and time.monotonic() < deadline:
            time.sleep(0.01)  # the channel hears of the cut a moment before the connection is taken down
        assert not shell.alive
        with pytest.raises(Unreachable, match="connect again"):
            shell.run("true")


def test_a_cut_upload_is_unreachable(server: Server, proxy: Proxy) -> None:
    with server.connect(port=proxy.port, timeouts=QUICK) as shell:
        source = (b"x" * 65536 if i < 20 else proxy.cut() or b"y" for i in range(200))
        with pytest.raises(Unreachable):
            shell.stream_in("cat >/dev/null", source)


def test_a_killed_server_is_unreachable(tmp_path: Path) -> None:
    skip_without_sshd()
    sshd = OpenSsh(tmp_path / "one")
    access = Access(host="127.0.0.1", port=sshd.port, user=sshd.user, password="")
    with connect(access, host_key=sshd.host_key, pkey_path=sshd.key) as shell:
        shell_pid = int(shell.run("echo $PPID").stdout)  # the session's own sshd, not the listener
        with pytest.raises(Unreachable):
            shell.run(f"kill -KILL {shell_pid}; sleep 20")
    sshd.close()


@pytest.mark.parametrize(
    "act",
    [
        lambda shell: shell.run("sleep 60"),
        lambda shell: shell.stream_out("yes", lambda _: None),
        lambda shell: shell.stream_in("cat >/dev/null", iter(lambda: b"x" * 65536, b"")),
    ],
    ids=["waiting", "reading", "writing"],
)
def test_a_frozen_peer_is_ended_within_seconds(server: Server, proxy: Proxy, act: "object") -> None:
    assert callable(act)
    with server.connect(port=proxy.port, timeouts=QUICK) as shell:
        timer = threading.Timer(0.5, proxy.freeze)
        timer.start()
        started = time.monotonic()
        with pytest.raises(Unreachable, match="no sign of life"):
            act(shell)
        assert time.monotonic() - started < 6
        timer.join()


def test_a_command_cannot_hang_on_a_peer_that_froze_before(server: Server, proxy: Proxy) -> None:
    with server.connect(port=proxy.port, timeouts=QUICK) as shell:
        proxy.freeze()
        with pytest.raises(Unreachable):
            shell.run("true")


def test_a_command_over_its_time_on_a_peer_that_froze_is_a_lost_connection(server: Server, proxy: Proxy) -> None:
    timeouts = Timeouts(probe_every_s=0.05, dead_after_s=600)
    with server.connect(port=proxy.port, timeouts=timeouts) as shell:
        exchange = Exchange(shell._connection, sink=lambda _: proxy.freeze(), stop=None, timeout_s=5.0)
        with pytest.raises(Unreachable, match="no sign of life"):
            exchange.run("echo on; sleep 60", [])


def test_a_quiet_command_on_a_living_peer_is_left_alone(server: Server) -> None:
    with server.connect(timeouts=QUICK) as shell:
        assert shell.run(f"sleep {2 * QUICK.dead_after_s}; echo done").stdout == b"done\n"


def test_a_dribbling_upload_to_a_living_peer_is_left_alone(server: Server) -> None:
    def source() -> Iterator[bytes]:
        ends_at = time.monotonic() + 2 * QUICK.dead_after_s
        while time.monotonic() < ends_at:
            threading.Event().wait(0.05)
            yield b"."

    with server.connect(timeouts=QUICK) as shell:
        assert int(shell.stream_in("wc -c", source()).stdout) > 10


SLEEPER = """
import sys
from pathlib import Path
from tests.sshd.machines import QUICK
from gpujobs.models import Access
from gpujobs.shell import connect
port, user, key = sys.argv[1:]
access = Access(host="127.0.0.1", port=int(port), user=user, password="")
with connect(access, host_key=None, pkey_path=Path(key), timeouts=QUICK) as shell:
    print("connected", flush=True)
    sys.stdin.readline()
    print(shell.run("echo alive").stdout.decode(), flush=True)
"""


def test_a_controller_that_was_asleep_does_not_blame_the_peer(openssh_server: OpenSsh) -> None:
    arguments = [str(openssh_server.port), openssh_server.user, str(openssh_server.key)]
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == "connected\n"
        child.send_signal(signal.SIGSTOP)
        time.sleep(2 * QUICK.dead_after_s)
        child.send_signal(signal.SIGCONT)
        time.sleep(0.5)  # the watchdog looks again
        child.stdin.write("go on\n")
        child.stdin.flush()
        assert child.stdout.readline() == "alive\n"


def test_closing_from_another_thread_frees_a_blocked_reader(server: Server) -> None:
    shell = server.connect()
    timer = threading.Timer(0.3, shell.close)
    timer.start()
    with pytest.raises(Unreachable, match="was closed"):
        shell.run("sleep 60")
    timer.join()


def test_no_thread_outlives_its_connection(server: Server) -> None:
    before = set(threading.enumerate())
    with server.connect(timeouts=QUICK) as shell:
        shell.run("true")
    ends_at = time.monotonic() + 60
    while left := [t for t in threading.enumerate() if t not in before and not t.name.startswith("fake-")]:
        assert time.monotonic() < ends_at, left
        left[0].join(0.1)


def test_aes_gcm_is_what_is_spoken(server: Server) -> None:
    with server.connect() as shell:
        assert shell._connection._transport.local_cipher == "aes128-gcm@openssh.com"


def test_ssh_itself_still_agrees_with_the_fixture(openssh_server: OpenSsh) -> None:
    """The reference client sees what ours sees: the fixture is a real server."""
    command = ["ssh", "-F", "none", "-i", openssh_server.key, "-p", str(openssh_server.port), "-o", "BatchMode=yes",
               "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
               f"{openssh_server.user}@127.0.0.1",
               f"echo {shlex.quote('a  b')}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=True, env={"PATH": os.environ["PATH"]})
    assert done.stdout == b"a  b\n"
