"""Machines begin, run what they are told, and end: all of it, and nothing else."""

import asyncio
import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import asyncssh
import pytest

from fake_server.containers import CommandRecord
from tests.fake_server.machines.clients import Client, Cloud, host_commands_with, until

OWNER = """
import sys
from pathlib import Path
from tests.fake_server.machines.clients import Cloud

cloud = Cloud(Path(sys.argv[1]))
for name in ("one", "two"):
    cloud.boot(name, cmd=f"sleep {sys.argv[2]}").text(f"(setsid nohup sleep {sys.argv[2]} >/dev/null 2>&1 &)")
print("ready", flush=True)
sys.stdin.read()
"""


def test_stop_kills_everything_at_once(cloud: Cloud) -> None:
    cloud.boot(cmd="sleep 98701").text("(setsid nohup sleep 98701 >/dev/null 2>&1 </dev/null &)")
    until(lambda: len(host_commands_with("98701")) >= 2)
    cloud.containers.stop("one")
    assert host_commands_with("98701") == []
    assert cloud.containers.running() == []


def test_killed_owner_leaves_no_process_behind(cloud: Cloud, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "owner"), "98702.5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        until(lambda: len(host_commands_with("98702.5")) >= 5)
        os.kill(owner.pid, signal.SIGKILL)
    until(lambda: not host_commands_with("98702.5"), within_s=60)
    until(lambda: not host_commands_with(str(tmp_path)), within_s=60)
    assert cloud.containers.running() == []


def test_commands_of_other_machines_live_on(cloud: Cloud) -> None:
    one, two = cloud.boot("one"), cloud.boot("two")
    cloud.containers.stop("one")
    assert two.text("echo here") == "here\n"
    assert one.ssh.get_transport() is not None
    until(lambda: not one.ssh.get_transport().is_active())  # type: ignore[union-attr]
    assert cloud.containers.running() == ["two"]


def test_process_outlives_its_connection(cloud: Cloud, machine: Client) -> None:
    machine.text("(setsid nohup sh -c 'until [ -e go ]; do sleep 0.02; done; echo $$ > done' >/dev/null 2>&1 &)")
    machine.close()
    again = cloud.client(cloud.containers.start(cloud.spec("two")))
    again.close()
    (cloud.spec().disk / "root/go").touch()
    until((cloud.spec().disk / "root/done").exists)


def test_grace_lets_a_command_tidy_up(cloud: Cloud) -> None:
    cmd = "trap 'echo tidy > /root/tidy; exit 0' TERM; touch /root/up; while :; do sleep 0.02; done"
    cloud.boot(cmd=cmd)
    up, tidy = (cloud.spec().disk / "root" / name for name in ("up", "tidy"))
    until(up.exists)
    cloud.containers.stop("one", grace_s=3600)  # it waits no longer than there is something to wait for
    assert tidy.read_text() == "tidy\n"
    until(lambda: cloud.records)
    assert (cloud.records[0].kind, cloud.records[0].exit_code) == ("cmd", 0)
    assert cloud.ended == [], "a stop is no news to whoever asked for it"


def test_grace_ends_for_what_ignores_term(cloud: Cloud) -> None:
    cloud.boot(cmd="trap '' TERM; touch /root/up; while :; do sleep 98703 & wait; done")
    until((cloud.spec().disk / "root/up").exists)
    cloud.containers.stop("one", grace_s=0.3)
    assert host_commands_with("98703") == []


def test_end_of_cmd_is_reported(cloud: Cloud) -> None:
    cloud.boot(cmd="echo working; echo failing >&2; exit 3")
    until(lambda: cloud.ended)
    assert cloud.ended == [("one", 3)]
    record = cloud.records[0]
    assert record == CommandRecord(
        machine="one",
        kind="cmd",
        command="echo working; echo failing >&2; exit 3",
        started_at=record.started_at,
        ended_at=record.ended_at,
        exit_code=3,
        bytes_written=16,
        sha256=hashlib.sha256(b"working\nfailing\n").hexdigest(),
        output_head=b"working\nfailing\n",
    )
    assert time.time() - 30 < record.started_at <= record.ended_at <= time.time()
    assert cloud.containers.running() == ["one"], "the world decides what becomes of the machine"


def test_cmd_sees_the_providers_variables_and_the_disk(cloud: Cloud) -> None:
    cloud.boot(cmd="echo $AutoDLContainerUUID $HOME $PWD > seen")
    until(lambda: cloud.ended)
    assert (cloud.spec().disk / "root/seen").read_text() == "uuid-1 /root /root\n"


def test_machine_whose_first_process_dies_is_gone(cloud: Cloud) -> None:
    machine = cloud.boot(cmd="sleep 98704")
    (first,) = set(host_commands_with(str(Path("fake_server/init.py")))) & children_of_launcher(cloud)
    os.kill(first, signal.SIGKILL)
    until(lambda: cloud.ended == [("one", -9)])
    until(lambda: not machine.ssh.get_transport().is_active())  # type: ignore[union-attr]
    assert cloud.containers.running() == []
    assert host_commands_with("98704") == []
    with pytest.raises(KeyError, match="no container one runs"):
        cloud.containers.execute("one", "true", timeout_s=5)
    cloud.containers.stop("one")
    assert cloud.boot().text("echo back") == "back\n"


def children_of_launcher(cloud: Cloud) -> set[int]:
    container = cloud.containers._containers["one"]
    assert container is not None
    launcher = container.sandbox.launcher.pid
    return {
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text().rpartition(")")[2].split()[1] == str(launcher)
    }


def test_execute_gives_the_exit_code(cloud: Cloud, machine: Client) -> None:
    assert cloud.containers.execute("one", "echo $HOME > mark; exit 5", timeout_s=10) == 5
    assert machine.text("cat mark") == "/root\n"
    assert cloud.containers.execute("one", "kill -TERM $$", timeout_s=10) == -15


def test_execute_is_killed_at_its_timeout(cloud: Cloud) -> None:
    cloud.boot()
    assert cloud.containers.execute("one", "sleep 98705; touch late", timeout_s=0.2) is None
    until(lambda: not host_commands_with("98705"))
    assert not (cloud.spec().disk / "root/late").exists()


def test_unknown_names_and_wrong_use_are_told_plainly(cloud: Cloud) -> None:
    cloud.containers.stop("never-was")
    with pytest.raises(KeyError, match="no container never-was runs"):
        cloud.containers.execute("never-was", "true", timeout_s=1)
    with pytest.raises(ValueError, match="is not made of letters"):
        cloud.boot("../etc")
    cloud.boot()
    with pytest.raises(ValueError, match="container one runs already"):
        cloud.boot()
    cloud.containers.close()
    with pytest.raises(ValueError, match="closed"):
        cloud.boot("two")


def test_port_refuses_until_the_delay_is_over(cloud: Cloud) -> None:
    endpoint = cloud.containers.start(cloud.spec(), sshd_delay_s=0.5)
    began = time.perf_counter()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((endpoint.host, endpoint.port), timeout=60)
    until(lambda: answers(endpoint.host, endpoint.port), within_s=60)
    assert time.perf_counter() - began > 0.3
    assert cloud.client(endpoint).text("echo up") == "up\n"


def test_stop_before_the_delay_is_over_frees_the_port(cloud: Cloud) -> None:
    endpoint = cloud.containers.start(cloud.spec(), sshd_delay_s=30)
    cloud.containers.stop("one")
    with socket.socket() as free:
        free.bind((endpoint.host, endpoint.port))

    async def still_waiting() -> int:
        return len(asyncio.all_tasks() - {asyncio.current_task()})

    until(lambda: cloud.containers._threads.run(still_waiting()) == 0, within_s=60)


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


def test_stop_while_the_ssh_server_opens_leaves_no_socket(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    opening: list[socket.socket] = []

    async def never_done(*, sock: socket.socket, **_: object) -> None:
        opening.append(sock)
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncssh, "listen", never_done)
    cloud.containers.start(cloud.spec(), sshd_delay_s=0.01)
    until(lambda: opening)
    cloud.containers.stop("one")
    until(lambda: opening[0].fileno() == -1)


def test_host_key_stays_with_the_name_and_differs_between_names(cloud: Cloud) -> None:
    first = cloud.containers.start(cloud.spec())
    other = cloud.containers.start(cloud.spec("two"))
    cloud.containers.stop("one")
    again = cloud.containers.start(cloud.spec())
    assert first.host_key == again.host_key != other.host_key
    assert first.host_key.startswith("ssh-ed25519 AAAA")


def test_twenty_machines_start_at_once_and_stop_at_once(cloud: Cloud) -> None:
    threads_before = threading.active_count()
    starts = [threading.Thread(target=cloud.containers.start, args=(cloud.spec(f"m{number}"),)) for number in range(20)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(cloud.containers.running()) == 20
    assert threading.active_count() - threads_before <= 3, "no thread a machine"
    cloud.containers.close()
    assert cloud.containers.running() == []


def test_concurrent_stops_both_return_after_the_end(cloud: Cloud) -> None:
    cloud.boot(cmd="trap '' TERM; while :; do sleep 98706; done")
    left: list[list[int]] = []

    def stop() -> None:
        cloud.containers.stop("one", grace_s=0.2)
        left.append(host_commands_with("98706"))

    stops = [threading.Thread(target=stop) for _ in range(2)]
    for one in stops:
        one.start()
    for one in stops:
        one.join()
    assert left == [[], []]


def test_stop_and_close_wait_for_a_start_under_way(cloud: Cloud) -> None:
    for end in (lambda: cloud.containers.stop("one"), cloud.containers.close):
        start = threading.Thread(target=cloud.containers.start, args=(cloud.spec(cmd="sleep 98707"),))
        start.start()
        until(lambda: "one" in cloud.containers._containers)
        end()
        start.join()
        assert cloud.containers.running() == []
        assert host_commands_with("98707") == []


def test_failed_start_leaves_nothing(cloud: Cloud) -> None:
    (cloud.base / "scratch/keys").mkdir(parents=True)
    (cloud.base / "scratch/keys/one").write_text("no key")
    with pytest.raises(asyncssh.KeyImportError):
        cloud.boot(cmd="sleep 98708")
    assert host_commands_with(str(cloud.base)) == host_commands_with("98708") == []
    (cloud.base / "scratch/keys/one").unlink()
    assert cloud.boot().text("echo well") == "well\n"


def test_callback_that_fails_stops_nothing(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    def broken(record: CommandRecord) -> None:
        raise RuntimeError(record.command)

    cloud.containers._on_command = broken
    machine = cloud.boot()
    assert machine.text("echo one") == "one\n"
    assert machine.text("echo two") == "two\n"
    until(lambda: "a callback of the containers failed" in caplog.text)


def test_scratch_is_private_and_the_password_is_not_shown(cloud: Cloud) -> None:
    cloud.boot()
    scratch = cloud.base / "scratch"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (scratch, scratch / "keys", scratch / "keys/one")}
    assert list(modes.values()) == [0o700, 0o700, 0o600]
    assert cloud.spec().password not in repr(cloud.spec())
    cloud.containers.stop("one")
    assert list((scratch / "run").iterdir()) == []


def test_big_command_passes(machine: Client) -> None:
    payload = "x" * 100_000
    assert machine.run(f"printf %s {payload} | sha256sum").out.split()[0].decode() == (
        hashlib.sha256(payload.encode()).hexdigest()
    )
    too_big = machine.run("true " + "x" * 200_000)
    assert (too_big.code, too_big.err) == (126, b"bash: Argument list too long\n")
