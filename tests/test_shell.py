"""The shell keeps its word against a real OpenSSH server and the fake's: no hang, no fake end, no wrong host."""

import contextlib
import logging
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from paramiko import Message
from paramiko.common import cMSG_CHANNEL_DATA, cMSG_CHANNEL_EOF

from gpujobs.clock import StopToken
from gpujobs.errors import AuthRefused, BadInput, Cancelled, HostKeyChanged, RemoteFailure, Unreachable
from gpujobs.models import Access
from gpujobs.shell import Shell, Timeouts, connect, make_key, quote_path, reachable, readable
from gpujobs.shell_exchange import Exchange
from tests.sshd.machines import PASSWORD, QUICK, Server, skip_without_sshd
from tests.sshd.openssh import OpenSsh
from tests.sshd.proxy import Proxy

pytest_plugins = ("tests.sshd.fixtures",)

BIG = 6 * 1024 * 1024


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


# Commands


def test_a_command_gives_its_code_and_both_outputs(shell: Shell) -> None:
    done = shell.run("echo out; echo err >&2; exit 7")
    assert (done.code, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_standard_input_arrives_whole_and_ends(shell: Shell) -> None:
    data = bytes(range(256)) * 1000
    assert shell.run("cat", stdin=data).stdout == data


def test_six_megabytes_on_stderr_do_not_block_stdout(shell: Shell) -> None:
    done = shell.run(f"head -c {BIG} /dev/zero | tr '\\0' e >&2; echo end", timeout_s=30)
    assert (done.code, done.stdout) == (0, b"end\n")
    assert done.stderr == b"e" * 64 * 1024


def test_output_that_comes_while_input_is_sent_does_not_block_either(shell: Shell) -> None:
    came = bytearray()

    def keep(data: bytes) -> None:
        came.extend(data)

    def source() -> Iterator[bytes]:
        for _ in range(BIG // 65536):
            yield b"x" * 65536

    done = shell.stream_in("tee /dev/stderr", source())
    assert done.code == 0
    assert len(done.stdout) >= 64 * 1024
    assert shell.stream_out(f"head -c {BIG} /dev/zero", keep).code == 0
    assert len(came) == BIG


def test_output_over_the_cap_is_an_error_and_not_a_flood(shell: Shell) -> None:
    with pytest.raises(RemoteFailure, match="more than 1000 bytes"):
        shell.run("yes", max_output=1000)
    assert shell.run("echo still here").stdout == b"still here\n"


def test_a_command_that_stops_reading_says_why(shell: Shell) -> None:
    source = (b"x" * 65536 for _ in range(200))
    done = shell.stream_in("echo disk full >&2; exit 3", source)
    assert (done.code, done.stderr) == (3, b"disk full\n")
    with pytest.raises(RemoteFailure, match=r"writing it failed on the machine with exit code 3: disk full"):
        done.require("writing it")


def test_a_command_over_its_time_is_given_up_and_the_connection_stays(shell: Shell) -> None:
    started = time.monotonic()
    with pytest.raises(RemoteFailure, match=r"did not end within 0\.5 s"):
        shell.run("sleep 60", timeout_s=0.5)
    assert time.monotonic() - started < 3
    assert shell.run("echo on").stdout == b"on\n"


def test_a_command_that_closes_its_outputs_early_is_waited_for(shell: Shell) -> None:
    done = shell.run("exec >&- 2>&-; sleep 0.3; exit 5")
    assert done.code == 5


def test_a_killed_command_is_neither_an_exit_code_nor_a_lost_connection(shell: Shell) -> None:
    with pytest.raises(RemoteFailure, match="by a signal"):
        shell.run("kill -KILL $$")
    assert shell.alive


def test_a_stopped_run_leaves_a_stream_at_once(shell: Shell) -> None:
    stop = StopToken()
    timer = threading.Timer(0.3, stop.stop, [Cancelled("enough")])
    timer.start()
    with pytest.raises(Cancelled, match="enough"):
        shell.stream_out("sleep 60", lambda _: None, stop=stop)
    timer.join()
    assert shell.run("true").code == 0


def test_many_threads_share_one_connection(shell: Shell) -> None:
    with ThreadPoolExecutor(8) as pool:
        said = pool.map(lambda i: shell.run(f"echo {i}").stdout, range(24))
        assert list(said) == [f"{i}\n".encode() for i in range(24)]


@pytest.mark.parametrize("sent", [b"", b"too late"])
def test_a_sender_that_a_commands_end_overtakes_does_no_harm(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    connection = shell._connection
    transport, passed, held = connection._transport, threading.Event(), []

    def late(message: Message) -> None:
        if threading.current_thread().name == "sender" and message.asbytes()[:1] in (
            cMSG_CHANNEL_DATA,
            cMSG_CHANNEL_EOF,
        ):
            held.append(message)
            assert passed.wait(60)
        send_user_message(message)

    send_user_message = transport._send_user_message  # type: ignore[attr-defined]
    monkeypatch.setattr(transport, "_send_user_message", late)
    channel = connection.execute("echo $$; exec sleep 600")
    pid = int(channel.makefile().readline())
    end = connection.send_eof if not sent else lambda channel: connection.send_data(channel, sent)
    sender = threading.Thread(target=end, args=(channel,), name="sender")
    sender.start()
    deadline = time.monotonic() + 60
    while not held:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shell.run(f"kill {pid}")
    while not channel.closed:  # by the server, as the command has ended
        assert time.monotonic() < deadline
        time.sleep(0.01)
    passed.set()
    sender.join(60)
    assert len(held) == 1
    assert shell.run("echo on").stdout == b"on\n"


def test_a_command_with_nul_is_refused_here(shell: Shell) -> None:
    with pytest.raises(BadInput, match="NUL"):
        shell.run("echo \0")


def test_check_names_what_failed_and_strips_terminal_escapes(shell: Shell) -> None:
    with pytest.raises(RemoteFailure) as caught:
        shell.check(r"printf '\033[31mred\033[0m\007' >&2; exit 9", what="painting")
    assert str(caught.value) == "painting failed on the machine with exit code 9: [31mred[0m"


@pytest.mark.parametrize("name", ["a b", "it's", '"q"', "$HOME", "-rf", "`id`", "new\nline", "*", "ü"])
def test_any_name_can_be_a_path(shell: Shell, place: str, name: str) -> None:
    path = quote_path(f"{place}/{name}")
    shell.check(f"echo here >{path}", what="writing")
    assert shell.check(f"cat {path}; rm {path}; ls -A {quote_path(place)}", what="reading") == b"here\n"


def test_paths_are_quoted_for_the_shell() -> None:
    assert [quote_path(p) for p in ("~", "~/a b", "-x", "/a~")] == ['"$HOME"', "\"$HOME\"'/a b'", "./-x", "'/a~'"]
    for bad in ("", "a\0b"):
        with pytest.raises(BadInput):
            quote_path(bad)


def test_readable_keeps_text_and_drops_control_characters() -> None:
    assert readable(b"\x1b]0;owned\x07ok\n\xff\xc2\x9b31m\t") == "]0;ownedok\n�31m"


# Logging in


def test_first_sight_tells_the_host_key_to_keep(server: Server) -> None:
    with connect(server.access, host_key=None, pkey_path=server.key) as shell:
        assert shell.host_key == server.host_key


def test_another_host_key_is_fatal_and_nothing_was_offered(server: Server, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    with pytest.raises(HostKeyChanged, match="not the one first seen"):
        connect(server.access, host_key=other, pkey_path=server.key)


def test_no_login_is_tried_where_the_host_key_is_wrong(openssh_server: OpenSsh, tmp_path: Path) -> None:
    log = openssh_server.log
    before = log.stat().st_size
    access = Access(host="127.0.0.1", port=openssh_server.port, user=openssh_server.user, password=PASSWORD)
    with pytest.raises(HostKeyChanged):
        connect(access, host_key=make_key(tmp_path / "other"))
    deadline = time.monotonic() + 60
    while b"Connection" not in log.read_bytes()[before:] and time.monotonic() < deadline:
        time.sleep(0.01)
    told = log.read_bytes()[before:]
    assert b"Connection" in told
    assert not any(word in told for word in (b"authenticating", b"Failed", b"Accepted", b"userauth"))


def test_a_host_that_hides_its_pinned_kind_of_key_is_fatal(openssh_server: OpenSsh) -> None:
    access = Access(host="127.0.0.1", port=openssh_server.port, user=openssh_server.user, password="")
    with pytest.raises(HostKeyChanged, match="kind of key"):
        connect(access, host_key="ecdsa-sha2-nistp256 AAAA", pkey_path=openssh_server.key)


def test_a_refused_key_is_auth_refused(server: Server, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    access = Access(host=server.access.host, port=server.access.port, user=server.access.user, password="")
    with pytest.raises(AuthRefused, match="is refused now"):
        connect(access, host_key=server.host_key, pkey_path=tmp_path / "stranger")


def test_a_wrong_password_is_auth_refused_and_not_told(fake_machine: Server) -> None:
    access = Access(host="127.0.0.1", port=fake_machine.access.port, user="root", password="hunter2")
    with pytest.raises(AuthRefused) as caught:
        connect(access, host_key=fake_machine.host_key)
    assert "hunter2" not in str(caught.value)


def test_the_password_opens_where_the_key_does_not_yet(fake_machine: Server, tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    with connect(fake_machine.access, host_key=fake_machine.host_key, pkey_path=tmp_path / "key") as shell:
        assert shell.run("id -u").stdout == b"0\n"


def test_a_server_that_takes_no_password_says_what_it_takes(openssh_server: OpenSsh) -> None:
    access = Access(host="127.0.0.1", port=openssh_server.port, user=openssh_server.user, password="x")
    with pytest.raises(AuthRefused, match="publickey"):
        connect(access, host_key=None)


def test_nothing_to_offer_is_auth_refused(openssh_server: OpenSsh) -> None:
    access = Access(host="127.0.0.1", port=openssh_server.port, user=openssh_server.user, password="")
    with pytest.raises(AuthRefused, match="no key and no password"):
        connect(access, host_key=None)


def test_an_installed_key_replaces_the_password(server: Server, shell: Shell, tmp_path: Path) -> None:
    public = make_key(tmp_path / "own")
    shell.check('mkdir -p ~/.ssh; printf "# no newline" >~/.ssh/authorized_keys; chmod 666 ~/.ssh/*', what="a mess")
    shell.install_key(public)
    shell.install_key(public)
    lines = shell.run("cat ~/.ssh/authorized_keys; stat -c %a ~/.ssh ~/.ssh/authorized_keys").stdout.decode()
    assert lines.splitlines() == ["# no newline", public, "700", "600"]
    access = Access(host=server.access.host, port=server.access.port, user=server.access.user, password="")
    with connect(access, host_key=server.host_key, pkey_path=tmp_path / "own") as again:
        assert again.run("echo in").stdout == b"in\n"


def test_agent_and_keys_of_the_user_are_left_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent"))
        agent.listen()
        agent.settimeout(0.2)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        with connect(server.access, host_key=None, pkey_path=server.key), contextlib.suppress(TimeoutError):
            asked.append(agent.accept())
    assert asked == []


def test_the_password_is_in_no_log_and_no_repr(fake_machine: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("gpujobs.paramiko").setLevel(logging.DEBUG)
    try:
        with connect(fake_machine.access, host_key=None) as shell:
            assert PASSWORD not in repr(shell) + repr(fake_machine.access) + caplog.text
    finally:
        logging.getLogger("gpujobs.paramiko").setLevel(logging.CRITICAL)


def test_a_key_is_made_once_and_private(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        lines = set(pool.map(lambda _: make_key(tmp_path / "key"), range(8)))
    assert len(lines) == 1
    assert lines.pop().startswith("ssh-ed25519 AAAA")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["key"]
    assert subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / "key"], capture_output=True, check=True).stdout


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("not a key")
    with pytest.raises(BadInput, match="key is not an ed25519 private key"):
        make_key(tmp_path / "key")


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
