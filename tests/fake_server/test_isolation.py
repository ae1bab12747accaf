"""Many machines, many clients, many fakes: nobody gets somebody else's answer."""

import os
import re
import shlex
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import paramiko
import pytest
import requests

from fake_server.server import FakeServer
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.machines.clients import host_commands_with
from tests.fake_server.test_machines_live import ssh
from tests.fake_server.wires import INSTANCES, Wires, eventually, job

CLIENTS, MACHINES = 50, 200


def test_several_fakes_in_one_process_know_nothing_of_each_other() -> None:
    with ExitStack() as stack:
        fakes = [
            stack.enter_context(FakeServer(token=f"token-{n}", speed=0, seed=n, containers=QuietContainers))
            for n in range(4)
        ]
        wires = [Wires(fake) for fake in fakes]
        names = [[each.rent(displayName=f"of-{n}") for _ in range(n + 1)] for n, each in enumerate(wires)]
        wires[1].control("POST", "faults", {"kind": "error_500", "endpoint": "autodl.list_deployments"})
        wires[2].advance(5000)
        for n, each in enumerate(wires):
            assert sorted(each.boxes()) == sorted(names[n])
            assert len(each.control("GET", "faults")["rules"]) == (1 if n == 1 else 0)
            assert {machine["name"] for machine in each.truth()} == {f"of-{n}"}
        assert wires[0].autodl("POST", "/deployment/list", {}, token="token-1")["code"] == "AuthorizeFailed"
        assert wires[2].control("GET", "state")["now"] - wires[3].control("GET", "state")["now"] > 4000
        wires[3].control("POST", "reset")
        assert wires[3].boxes() == []
        assert sorted(wires[2].boxes()) == sorted(names[2])
        for each in wires:
            each.session.close()


def test_two_hundred_machines_and_fifty_clients_without_a_wrong_answer() -> None:
    """Each client rents on both clouds, asks only for its own, and releases; all 50 ask at the same time."""
    start, wrong = threading.Barrier(CLIENTS), Counter[str]()

    def client(fake: FakeServer, number: int) -> None:
        wires = Wires(fake)
        with wires.session:
            start.wait(30)
            boxes = {wires.rent(displayName=f"box-{number}-{n}"): f"box-{number}-{n}" for n in range(2)}
            jobs = {wires.deploy(job(name=f"job-{number}-{n}", gpu_name_set=GPUS)): n for n in range(2)}
            for _ in range(3):
                for name, shown in boxes.items():
                    box = wires.box(name)
                    wrong["box"] += (box["name"], box["displayName"]) != (name, shown)
                for uuid, n in jobs.items():
                    (row,) = wires.deployments(deployment_uuid=uuid)
                    wrong["job"] += (row["uuid"], row["name"]) != (uuid, f"job-{number}-{n}")
                    foreign = [each for each in wires.containers(uuid) if each["deployment_uuid"] != uuid]
                    wrong["container"] += len(foreign)
            for name in boxes:
                wires.boxed(name, "Running")
            for uuid in jobs:
                wires.running(uuid)
            start.wait(60)  # all 200 run now
            peaks.append(len(wires.fake.world.ground.containers.running()))
            start.wait(60)
            for name in boxes:
                wires.matrixdc("DELETE", f"{INSTANCES}?name={name}")
            for uuid in jobs:
                wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})

    peaks: list[int] = []
    with FakeServer(speed=20, containers=QuietContainers) as fake:
        owner = Wires(fake)
        with owner.session, ThreadPoolExecutor(CLIENTS) as pool:
            roomy(fake)
            stock = owner.control("GET", "state")["stock"]
            for done in [pool.submit(client, fake, number) for number in range(CLIENTS)]:
                done.result()
            eventually(lambda: owner.boxes() == [] and owner.deployments() == [])
            eventually(lambda: owner.control("GET", "state")["machines"] == [])
            assert owner.control("GET", "state")["stock"] == stock
            truth = owner.truth()
    assert (wrong.total(), min(peaks), len(truth)) == (0, MACHINES, MACHINES)
    assert len({machine["id"] for machine in truth}) == MACHINES
    assert all(machine["billed_s"] > 0 and machine["gone_at"] is not None for machine in truth)


GPUS = ["RTX 4090", "RTX 3090", "RTX A4000", "RTX 3080 Ti", "L20", "H800", "Tesla V100-SXM2-32GB"]


def roomy(fake: FakeServer) -> None:
    """More GPUs than the catalogue has, so that stock is not what the clients wait for."""
    with fake.world.ground.lock:
        for gpu in fake.world.matrixdc.idle:
            fake.world.matrixdc.idle[gpu] = 500
        for host in fake.world.autodl.fleet.hosts:
            fake.world.autodl.fleet.free(host, 100)


def test_machines_with_real_ssh_side_by_side_answer_with_their_own_name(real: Wires) -> None:
    if real.control("GET", "state")["isolation"] == "none":
        pytest.skip("NEITHER unshare NOR bubblewrap WORKS HERE: machines share one host, nothing was tested")

    def one(number: int) -> tuple[str, str]:
        wires = Wires(real.fake)
        with wires.session:
            name = wires.rent(displayName=f"real-{number}")
            ssh = wires.boxed(name, "Running")["servers"]["SSH"]
            client = paramiko.SSHClient()
            client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
            port = int(ssh["sshAddr"].split()[1][2:])

            def connected() -> bool:
                try:
                    client.connect("127.0.0.1", port, "root", ssh["sshPassword"], timeout=60, look_for_keys=False)
                except (OSError, paramiko.SSHException):
                    return False
                return True

            eventually(connected, within_s=60)
            with client:
                client.exec_command(f"echo {name} > /root/me", timeout=30)[1].read()
                mine = client.exec_command("cat /root/me; ls /proc | grep -c '^[0-9]'", timeout=30)[1].read()
            wires.matrixdc("DELETE", f"{INSTANCES}?name={name}")
            return name, mine.decode()

    with ThreadPoolExecutor(6) as pool:
        for name, said in pool.map(one, range(12)):
            assert re.fullmatch(rf"{name}\n[1-9]\n", said), said  # its own file, a handful of processes


def test_a_machine_can_neither_look_out_nor_reach_out_nor_outlive_its_release(real: Wires, tmp_path: Path) -> None:
    if real.control("GET", "state")["isolation"] == "none":
        pytest.skip("NEITHER unshare NOR bubblewrap WORKS HERE: machines are not shut in, nothing was tested")
    secret, marker = tmp_path / "secret", f"outlive-{os.getpid()}"
    secret.write_text("of the host")
    name = real.rent()
    ssh_server = real.boxed(name, "Running")["servers"]["SSH"]
    with ssh(ssh_server["sshAddr"], ssh_server["sshPassword"]) as client:
        tries = {
            "reads a file of the host": f"cat {secret}",
            "reads the host's home": f"ls /root | grep -x {Path.home().name or 'x'} || ls {Path(__file__).parent}",
            "reads the fake's own state": f"ls {real.fake.world.ground.folder}",
            "writes into the system": "touch /usr/bin/mine",
            "writes to the host's kernel": "echo 1 > /proc/sys/kernel/panic",
            "sees the fake's process": f"grep -q {Path(sys.executable).name} /proc/{os.getpid()}/cmdline",
            "signals the fake's process": f"kill -0 {os.getpid()}",
            "mounts the host's disk": "mkdir -p /mnt/host && mount /dev/vda /mnt/host",
            "gets out by chroot": "mknod /root/disk b 254 0",
        }
        codes = {what: client.exec_command(command, timeout=30)[1] for what, command in tries.items()}
        got_away = [what for what, stdout in codes.items() if stdout.channel.recv_exit_status() == 0]
        assert got_away == []
        wish = f"trap '' TERM HUP; while :; do sleep 1; done # {marker}"
        client.exec_command(f"setsid nohup bash -c {shlex.quote(wish)} > /dev/null 2>&1 < /dev/null &", timeout=30)
        eventually(lambda: host_commands_with(marker))
    real.matrixdc("DELETE", f"{INSTANCES}?name={name}")
    eventually(lambda: name not in real.boxes())
    assert host_commands_with(marker) == []


@pytest.mark.parametrize("path", ["/_fake/state", "/mdc/api/v1/regions", "/api/v1/dev/deployment/list"])
def test_no_other_web_page_may_read_an_answer(wires: Wires, path: str) -> None:
    foreign = {"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
    for method in ("OPTIONS", "GET", "POST"):
        reply = requests.request(method, f"{wires.fake.url}{path}", headers=foreign, timeout=60)
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]
        assert method == "OPTIONS" or not reply.ok or reply.json()["code"] == "AuthorizeFailed"


def test_the_state_says_whether_machines_are_shut_in(wires: Wires) -> None:
    assert (wires.control("GET", "state")["isolation"], wires.control("GET", "state")["safe"]) == ("unshare", True)


def test_rules_come_and_go_while_machines_do_and_nothing_waits_for_ever() -> None:
    """The locks of the world and of the rules are taken in one order, whoever takes them."""
    with FakeServer(speed=1000, containers=QuietContainers) as fake:
        ended = threading.Event()

        def rules() -> None:
            while not ended.is_set():
                for kind in ("dies_mid_run", "stuck_in_creating", "token_expired", "never_scheduled"):
                    rule = fake.faults.arm(kind, machine="nobody")
                    fake.faults.remove(rule)

        def machines(number: int) -> None:
            wires = Wires(fake)
            with wires.session:
                for _ in range(8):
                    name, uuid = wires.rent(), wires.deploy(job(name=f"job-{number}"))
                    wires.boxed(name, "Running")
                    wires.matrixdc("DELETE", f"{INSTANCES}?name={name}")
                    wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})

        with ThreadPoolExecutor(8) as pool:
            arming = [pool.submit(rules) for _ in range(2)]
            renting = [pool.submit(machines, number) for number in range(6)]
            try:
                for done in renting:
                    done.result(60)
            finally:
                ended.set()
            for done in arming:
                done.result(10)
