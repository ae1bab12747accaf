"""The SSH server has the manners of OpenSSH's: who comes in, what a command gets, what the client hears of its end."""

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import paramiko
import pytest

from fake_server.containers import Endpoint
from tests.fake_server.machines.clients import PASSWORD, Client, Cloud, pieces, until

MB = 1_000_000


@pytest.fixture
def endpoint(cloud: Cloud) -> Endpoint:
    return cloud.containers.start(cloud.spec())


@contextlib.asynccontextmanager
async def connected(endpoint: Endpoint) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with asyncssh.connect(
        endpoint.host,
        endpoint.port,
        username="root",
        password=PASSWORD,
        known_hosts=asyncssh.import_known_hosts(f"[{endpoint.host}]:{endpoint.port} {endpoint.host_key}\n"),
        client_keys=None,
        config=None,
    ) as connection:
        yield connection


# Who comes in


@pytest.mark.parametrize(("user", "password"), [("root", "wrong"), ("root", ""), ("nobody", PASSWORD)])
def test_wrong_password_and_other_users_are_refused(cloud: Cloud, endpoint: Endpoint, user: str, password: str) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        cloud.client(endpoint, username=user, password=password)


def test_own_key_is_accepted_once_installed_and_not_before(cloud: Cloud, endpoint: Endpoint, tmp_path: Path) -> None:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "key")
    key = paramiko.Ed25519Key.from_private_key_file(str(tmp_path / "key"))
    with pytest.raises(paramiko.AuthenticationException):
        cloud.client(endpoint, password=None, pkey=key)
    machine = cloud.client(endpoint)
    line = f"{key.get_name()} {key.get_base64()} me@home"
    machine.text(f"mkdir -m 700 .ssh; (echo '# comment'; echo nonsense; echo '{line}') > .ssh/authorized_keys")
    assert cloud.client(endpoint, password=None, pkey=key).text("echo in") == "in\n"
    machine.text("chmod 666 .ssh/authorized_keys")
    with pytest.raises(paramiko.AuthenticationException):
        cloud.client(endpoint, password=None, pkey=key)
    machine.text(
        f"chmod 600 .ssh/authorized_keys; sed -i 's/^ssh-/# ssh-/' .ssh/authorized_keys; echo '#{line}' >> .ssh/x"
    )
    with pytest.raises(paramiko.AuthenticationException):
        cloud.client(endpoint, password=None, pkey=key)


def test_key_file_that_is_a_link_or_a_pipe_lets_nobody_in(cloud: Cloud, endpoint: Endpoint, tmp_path: Path) -> None:
    private = asyncssh.generate_private_key("ssh-ed25519")
    private.write_private_key(tmp_path / "key")
    private.write_public_key(tmp_path / "outside")
    key = paramiko.Ed25519Key.from_private_key_file(str(tmp_path / "key"))
    machine = cloud.client(endpoint)
    for trick in (
        f"mkdir -m 700 .ssh; ln -s {tmp_path}/outside .ssh/authorized_keys",
        "rm .ssh/authorized_keys; mkfifo .ssh/authorized_keys",
        f"rm -r .ssh; ln -s {tmp_path} .ssh",
    ):
        machine.text(trick)
        with pytest.raises(paramiko.AuthenticationException):
            cloud.client(endpoint, password=None, pkey=key)


def test_gcm_ciphers_and_own_host_key_are_offered(endpoint: Endpoint) -> None:
    async def offered(cipher: str) -> object:
        options = {"encryption_algs": [cipher], "username": "root", "password": PASSWORD, "config": None}
        async with asyncssh.connect(endpoint.host, endpoint.port, known_hosts=None, client_keys=None, **options) as one:
            key = one.get_server_host_key()
            assert key is not None
            assert " ".join(key.export_public_key().decode().split()[:2]) == endpoint.host_key
            return one.get_extra_info("send_cipher")

    for cipher in ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com"):
        assert asyncio.run(offered(cipher)) == cipher


# What a command gets, and what the client hears of its end


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exit_code_comes_through(machine: Client, code: int) -> None:
    assert machine.run(f"exit {code}").code == code


def test_missing_program_is_127(machine: Client) -> None:
    assert machine.run("no-such-program").code == 127


def test_each_command_is_recorded(cloud: Cloud, machine: Client) -> None:
    machine.run("printf 12345; printf 678 >&2; exit 4")
    machine.run("kill -9 $$")
    until(lambda: len(cloud.records) == 2)
    seen = [(one.machine, one.kind, one.command, one.exit_code, one.bytes_written) for one in cloud.records]
    assert seen == [
        ("one", "exec", "printf 12345; printf 678 >&2; exit 4", 4, 8),
        ("one", "exec", "kill -9 $$", -9, 0),
    ]
    assert all(one.started_at <= one.ended_at for one in cloud.records)


def test_streams_stay_apart_and_input_arrives(machine: Client) -> None:
    done = machine.run("cat; echo problem >&2; exit 2", b"typed\0\xff")
    assert (done.code, done.out, done.err) == (2, b"typed\0\xff", b"problem\n")


def test_fifty_megabytes_arrive_whole(machine: Client) -> None:
    machine.text("head -c 50000000 /dev/urandom > big")
    expected = machine.text("sha256sum < big").split()[0]
    assert hashlib.sha256(machine.run("cat big").out).hexdigest() == expected


def test_fifty_megabytes_are_taken_whole(machine: Client) -> None:
    data = os.urandom(50 * MB)
    assert machine.run("sha256sum", data).out.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_slow_reader_of_input_loses_nothing(machine: Client) -> None:
    data = os.urandom(8 * MB)
    done = machine.run("sleep 0.3; sha256sum", data)
    assert done.out.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_command_that_takes_no_input_is_not_held_up(machine: Client) -> None:
    done = machine.run("exec 0<&-; echo enough", os.urandom(8 * MB))
    assert (done.code, done.out) == (0, b"enough\n")


def test_command_that_reads_nothing_makes_the_client_wait(machine: Client) -> None:
    channel = machine.channel()
    channel.exec_command("until [ -e go ]; do sleep 0.02; done; wc -c")
    channel.settimeout(1)
    sent = fill(channel)
    assert sent < 10 * MB
    machine.text("touch go")
    channel.settimeout(10)
    channel.shutdown_write()
    assert int(b"".join(pieces(channel.recv))) == sent


def fill(channel: paramiko.Channel) -> int:
    """Send until the other side takes no more; return how many bytes it took."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 30 * MB:
            sent += channel.send(bytes(32768))
    return sent


def test_no_signal_is_ignored_or_blocked_at_the_start(machine: Client) -> None:
    blocked, ignored = machine.text("grep -E 'Sig(Ign|Blk)' /proc/self/status | cut -f 2").split()
    internal = 0b11 << 31  # 32 and 33 are the C library's own; whoever starts the tests may have set them aside
    assert (int(blocked, 16) & ~internal, int(ignored, 16) & ~internal) == (0, 0)


def test_both_streams_can_be_large(machine: Client) -> None:
    done = machine.run("head -c 8000000 /dev/zero & head -c 8000000 /dev/zero >&2; wait")
    assert (done.code, len(done.out), len(done.err)) == (0, 8 * MB, 8 * MB)


def test_client_that_does_not_read_makes_the_command_wait(cloud: Cloud, machine: Client) -> None:
    channel = machine.channel()
    channel.exec_command("head -c 30000000 /dev/zero; touch written")
    assert machine.text("sleep 0.3; ls written 2>/dev/null || true") == ""
    assert sum(map(len, pieces(channel.recv))) == 30 * MB
    until(lambda: cloud.records)


def test_tail_written_just_before_the_end_is_not_lost(machine: Client) -> None:
    for _ in range(20):
        done = machine.run("head -c 300000 /dev/zero; printf tail; printf problem >&2")
        assert (done.code, len(done.out), done.out[-4:], done.err) == (0, 300_004, b"tail", b"problem")


def test_exit_status_does_not_wait_for_a_child_that_holds_the_output(machine: Client) -> None:
    channel = machine.channel()
    channel.exec_command("(until [ -e go ]; do sleep 0.02; done; echo late) & echo early; exit 6")
    channel.settimeout(10)
    until(channel.exit_status_ready)
    assert channel.recv_exit_status() == 6
    assert channel.recv(100) == b"early\n"
    assert not channel.eof_received
    machine.text("touch go")
    assert b"".join(pieces(channel.recv)) == b"late\n"


def test_signal_that_ended_a_command_is_named(endpoint: Endpoint) -> None:
    async def ends() -> list[object]:
        async with connected(endpoint) as one:
            return [(await one.run(f"kill -{name} $$")).exit_signal for name in ("TERM", "KILL", "USR1", "VTALRM")]

    seen = asyncio.run(ends())
    assert [one[0] for one in seen if isinstance(one, tuple)] == ["TERM", "KILL", "USR1", "SIG26@openssh.com"]


def test_signal_from_the_client_reaches_the_whole_group(endpoint: Endpoint) -> None:
    async def interrupted() -> tuple[int | None, object]:
        async with connected(endpoint) as one:
            async with one.create_process("trap 'echo caught; exit 3' TERM; echo up; sleep 98711 & wait") as process:
                assert await process.stdout.readline() == "up\n"
                process.send_signal("TERM")
                rest = await process.stdout.read()
            return process.exit_status, rest

    assert asyncio.run(interrupted()) == (3, "caught\n")


def test_command_outlives_a_cut_connection_until_it_writes(cloud: Cloud, endpoint: Endpoint) -> None:
    machine = cloud.client(endpoint)
    channel = machine.channel()
    channel.exec_command(
        "trap 'touch hup' HUP; touch up; until [ -e go ]; do sleep 0.02; done; touch alive; yes; touch no"
    )
    root = cloud.spec().disk / "root"
    until((root / "up").exists)
    machine.close()
    (root / "go").touch()
    until((root / "alive").exists)
    until(lambda: cloud.records)
    assert not (root / "hup").exists()
    assert cloud.records[0].exit_code == 0
    assert (root / "no").exists(), "yes got SIGPIPE, its shell went on"


def test_terminal_hangs_up_when_the_connection_goes(cloud: Cloud, endpoint: Endpoint) -> None:
    machine = cloud.client(endpoint)
    channel = machine.channel()
    channel.get_pty()
    channel.exec_command("touch up; sleep 98712")
    until((cloud.spec().disk / "root/up").exists)
    machine.close()
    until(lambda: cloud.records)
    assert cloud.records[0].exit_code == -signal.SIGHUP


def test_terminal_is_the_machines_own(machine: Client) -> None:
    done = machine.run("tty; stty size; echo $TERM $SSH_TTY; [ -t 0 ] && [ -t 2 ] && echo yes", terminal=True)
    assert done.out.decode().split() == ["/dev/pts/0", "40", "100", "xterm", "/dev/pts/0", "yes"]
    assert done.code == 0


def test_login_shell_answers_resizes_and_ends(cloud: Cloud, endpoint: Endpoint) -> None:
    channel = cloud.client(endpoint).ssh.invoke_shell("xterm", 80, 24)
    channel.settimeout(10)
    channel.resize_pty(132, 50)
    channel.sendall("stty size; shopt -q login_shell && echo log''in; command -v python; exit 9\r")
    seen = b"".join(pieces(channel.recv)).decode()
    assert re.search(r"50 132\r\n.*login\r\n/root/miniconda3/bin/python\r\n", seen, re.DOTALL), seen
    assert channel.recv_exit_status() == 9
    until(lambda: cloud.records)
    assert (cloud.records[0].kind, cloud.records[0].exit_code) == ("shell", 9)


def test_ctrl_c_interrupts_the_foreground(cloud: Cloud, endpoint: Endpoint) -> None:
    channel = cloud.client(endpoint).channel()
    channel.get_pty()
    channel.settimeout(10)
    channel.exec_command("echo up; sleep 98713; echo after")
    assert channel.recv(100) == b"up\r\n"
    channel.sendall("\x03")
    assert b"after" not in b"".join(pieces(channel.recv))
    until(lambda: cloud.records)
    assert cloud.records[0].exit_code == -signal.SIGINT


def test_shell_without_a_terminal_reads_commands(cloud: Cloud, endpoint: Endpoint) -> None:
    channel = cloud.client(endpoint).channel()
    channel.invoke_shell()
    channel.sendall("echo from $0\nexit 4\n")
    channel.shutdown_write()
    assert b"from -bash\n" in b"".join(pieces(channel.recv))
    assert channel.recv_exit_status() == 4


def test_only_locale_variables_are_taken_from_the_client(machine: Client) -> None:
    channel = machine.channel()
    for name, value in {"LC_TIME": "C", "LANG": "C", "LD_PRELOAD": "/evil.so"}.items():
        channel.set_environment_variable(name, value)
    channel.exec_command("echo $LC_TIME $LANG [$LD_PRELOAD] ${SSH_CONNECTION%% *}")
    assert b"".join(pieces(channel.recv)) == b"C C [] 127.0.0.1\n"


def test_many_sessions_share_a_connection(machine: Client) -> None:
    channels = [machine.channel() for _ in range(40)]
    for number, channel in enumerate(channels):
        channel.exec_command(f"echo {number}; exit {number}")
    assert [b"".join(pieces(one.recv)) for one in channels] == [f"{number}\n".encode() for number in range(40)]
    assert [one.recv_exit_status() for one in channels] == list(range(40))


def test_keepalives_are_answered(endpoint: Endpoint) -> None:
    async def quiet() -> str:
        options = {"known_hosts": None, "client_keys": None, "config": None}
        async with asyncssh.connect(
            endpoint.host, endpoint.port, username="root", password=PASSWORD, **options,
            keepalive_interval=0.1, keepalive_count_max=2,
        ) as one:  # fmt: skip
            return str((await one.run("sleep 1; echo still here")).stdout)

    assert asyncio.run(quiet()) == "still here\n"


# Files and forwarding


def test_sftp_serves_the_machines_own_root(cloud: Cloud, machine: Client) -> None:
    data = os.urandom(3 * MB)
    sftp = machine.ssh.open_sftp()
    with sftp.open("/root/up.bin", "wb") as file:
        file.set_pipelined(pipelined=True)
        file.write(data)
    assert machine.text("sha256sum up.bin").split()[0] == hashlib.sha256(data).hexdigest()
    machine.text(f"ln -s {cloud.base} out")
    with pytest.raises(FileNotFoundError):
        sftp.listdir("/root/out")
    assert sftp.normalize(".") == "/root"
    sftp.close()
    until(lambda: any(one.kind == "sftp" for one in cloud.records))


def test_other_subsystems_are_refused(machine: Client) -> None:
    with pytest.raises(paramiko.SSHException):
        machine.channel().invoke_subsystem("netconf")


def test_ports_of_the_machine_can_be_forwarded_and_no_others(machine: Client) -> None:
    transport = machine.ssh.get_transport()
    assert transport is not None
    with socket.create_server(("127.0.0.1", 0)) as server:
        channel = transport.open_channel("direct-tcpip", server.getsockname(), ("127.0.0.1", 1), timeout=60)
        peer = server.accept()[0]
        with peer:
            peer.sendall(b"hello")
            assert channel.recv(10) == b"hello"
    with socket.create_server(("127.0.0.2", 0)) as elsewhere, pytest.raises(paramiko.ChannelException):
        transport.open_channel("direct-tcpip", elsewhere.getsockname(), ("127.0.0.1", 1), timeout=60)
    channel.close()


# The machine goes away


def test_client_sees_a_cut_and_no_exit_status_when_the_machine_stops(cloud: Cloud, machine: Client) -> None:
    channel = machine.channel()
    channel.exec_command("echo up; sleep 98714")
    assert channel.recv(100) == b"up\n"
    cloud.containers.stop("one")
    assert channel.recv(100) == b""
    assert channel.recv_exit_status() == -1
    until(lambda: cloud.records)
    assert (cloud.records[0].exit_code, cloud.records[0].bytes_written) == (-9, 3)
