"""The shell keeps its word against a real OpenSSH server and the fake's: no hang, no fake end, no wrong host."""

import contextlib
import logging
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from paramiko import Message
from paramiko.common import cMSG_CHANNEL_DATA, cMSG_CHANNEL_EOF

from gpujobs.clock import StopToken
from gpujobs.errors import AuthRefused, BadInput, Cancelled, HostKeyChanged, RemoteFailure
from gpujobs.models import Access
from gpujobs.shell import Shell, connect, make_key, quote_path, readable
from tests.sshd.machines import PASSWORD, Server
from tests.sshd.openssh import OpenSsh

pytest_plugins = ("tests.sshd.fixtures",)

BIG = 6 * 1024 * 1024

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
