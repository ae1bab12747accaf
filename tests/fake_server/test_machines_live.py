"""Both clouds with real machines: what is rented is reached over SSH, works, is saved, and is gone."""

import contextlib
import shlex
import socket
from collections.abc import Iterator
from typing import Any

import paramiko
import pytest

from tests.fake_server.wires import INSTANCES, Wires, eventually, job, replica_set


@contextlib.contextmanager
def ssh(command: str, password: str) -> Iterator[paramiko.SSHClient]:
    """A connection by the words that the provider hands out: `ssh -p PORT root@HOST` or `ssh -pPORT root@HOST`."""
    words = shlex.split(command.replace("-p ", "-p"))
    port, (user, host) = int(words[1].removeprefix("-p")), words[2].split("@")
    eventually(lambda: _answers(host, port))
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect(host, port, user, password, look_for_keys=False, allow_agent=False, timeout=60)
    with client:
        yield client


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=60) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def says(client: paramiko.SSHClient, command: str) -> str:
    """What a command prints; it must succeed."""
    _, stdout, stderr = client.exec_command(command, timeout=60)
    text = stdout.read().decode()
    assert stdout.channel.recv_exit_status() == 0, stderr.read().decode()
    return text.strip()


@contextlib.contextmanager
def box_shell(wires: Wires, name: str) -> Iterator[paramiko.SSHClient]:
    server = wires.boxed(name, "Running")["servers"]["SSH"]
    with ssh(server["sshAddr"], server["sshPassword"]) as client:
        yield client


@contextlib.contextmanager
def container_shell(container: dict[str, Any]) -> Iterator[paramiko.SSHClient]:
    with ssh(container["info"]["ssh_command"], container["info"]["root_password"]) as client:
        yield client


def test_a_matrixdc_machine_shows_the_rented_gpus_and_keeps_its_disk_through_power_off(real: Wires) -> None:
    name = real.rent(Cost={"CostType": "1", "DiskSKUID": "1", "GPUSKUID": "67"})
    with box_shell(real, name) as client:
        gpus = says(client, "nvidia-smi --query-gpu=name --format=csv,noheader").splitlines()
        assert gpus == ["NVIDIA GeForce RTX 4090"] * 2
        says(client, "echo data > /root/data/d; echo disk > /root/s; /opt/miniconda3/bin/python3 -c 'import numpy'")
    real.matrixdc("POST", f"{INSTANCES}/{name}/power_off", {"gracePeriodSeconds": 1})
    real.boxed(name, "Shutdown")
    real.matrixdc("POST", f"{INSTANCES}/{name}/power_on")
    with box_shell(real, name) as client:
        assert says(client, "cat /root/data/d /root/s").split() == ["data", "disk"]
    real.matrixdc("DELETE", f"{INSTANCES}?name={name}")


def test_a_snapshot_boots_with_the_files_of_the_system_disk_alone(real: Wires) -> None:
    first = real.rent()
    with box_shell(real, first) as client:
        says(client, "mkdir -p /opt/env && echo tool > /opt/env/tool && ln -s tool /opt/env/link && touch /root/data/d")
    body = {"gracePeriodSeconds": 1, "needSnapshot": True, "imageName": "env", "tag": "v1"}
    real.matrixdc("POST", f"{INSTANCES}/{first}/power_off", body)
    real.boxed(first, "Shutdown")
    real.matrixdc("DELETE", f"{INSTANCES}?name={first}")
    second = real.rent(image="images.neolink-ai.com/fake-user/env:v1")
    with box_shell(real, second) as client:
        assert says(client, "cat /opt/env/link; ls /root/data") == "tool"
    real.matrixdc("DELETE", f"{INSTANCES}?name={second}")


def test_an_autodl_job_runs_its_cmd_and_ends_with_it(real: Wires) -> None:
    uuid = real.deploy(job(cmd="while ! test -e /root/end; do sleep 0.1; done"))
    container = real.running(uuid)[0]
    with container_shell(container) as client:
        assert says(client, "echo $AutoDLContainerUUID $AutoDLDeploymentUUID $AutoDLDataCenter").split() == [
            container["uuid"],
            uuid,
            container["data_center"],
        ]
        says(client, "/root/miniconda3/bin/python3 -c 'import numpy'; touch /root/end")
    eventually(lambda: real.deployments(deployment_uuid=uuid)[0]["status"] == "stopped")
    assert real.deployments(deployment_uuid=uuid)[0]["finished_num"] == 1
    truth = next(machine for machine in real.truth() if machine["id"] == container["uuid"])
    assert truth["gone_at"] is not None
    kinds = [command["kind"] for command in truth["commands"]]
    assert (kinds.count("cmd"), kinds.count("exec")) == (1, 2)
    assert all(command["exit_code"] == 0 for command in truth["commands"])


@pytest.mark.parametrize(
    ("cmd", "written"),
    [
        ("echo plain words > /root/autodl-fs/out", "plain words"),
        ("echo cGxhaW4gYXMgZGF5Cg== | base64 -d > /root/autodl-fs/out", "plain as day"),
        ("X=inner; echo [$X] > /root/autodl-fs/out", "[]"),
        ("echo $AutoDLDataCenter > /root/autodl-fs/out", "foshanDC1"),
        ('echo "two  words" > /root/autodl-fs/out', None),
    ],
)
def test_cmd_is_expanded_once_before_bash_gets_it(real: Wires, cmd: str, written: str | None) -> None:
    fs = real.fake.world.ground.folder / "autodl" / "fs" / "foshanDC1" / "out"
    fs.unlink(missing_ok=True)
    place = {"dc_list": ["foshanDC1"], "gpu_name_set": ["RTX 3080 Ti"]}
    uuid = real.deploy(job(cmd=cmd, **place))
    eventually(lambda: real.deployments(deployment_uuid=uuid)[0]["status"] == "stopped")
    assert (fs.read_text().strip() if fs.exists() else None) == written


def test_autodl_fs_is_shared_and_a_reused_container_is_dirty(real: Wires) -> None:
    uuid = real.deploy(replica_set(replica_num=1, reuse_container=True))
    old = real.running(uuid)[0]
    with container_shell(old) as client:
        says(client, "touch /root/left /root/autodl-tmp/left /root/autodl-fs/left")
    real.data("PUT", "/deployment/container/stop", {"deployment_container_uuid": old["uuid"]})
    eventually(lambda: real.containers(uuid, released=True))
    new = real.running(uuid)[0]
    with container_shell(new) as client:
        found = says(client, "ls -d /root/left /root/autodl-tmp/left /root/autodl-fs/left | wc -l")
    assert (found, new["uuid"] != old["uuid"]) == ("3", True)
    real.data("DELETE", "/deployment", {"deployment_uuid": uuid})
    fresh = real.deploy(job(dc_list=[new["data_center"]]))
    with container_shell(real.running(fresh)[0]) as client:
        assert says(client, "ls /root/left /root/autodl-tmp/left 2>/dev/null; ls /root/autodl-fs").split() == ["left"]
    real.data("DELETE", "/deployment", {"deployment_uuid": fresh})


def test_a_farewell_command_runs_in_the_machine(real: Wires) -> None:
    place = {"dc_list": ["foshanDC1"], "gpu_name_set": ["RTX 3080 Ti"]}
    uuid = real.deploy(job(cmd_before_shutdown="echo bye > /root/autodl-fs/bye", **place))
    real.running(uuid)
    real.data("DELETE", "/deployment", {"deployment_uuid": uuid})
    eventually(lambda: not real.deployments(deployment_uuid=uuid))
    assert (real.fake.world.ground.folder / "autodl" / "fs" / "foshanDC1" / "bye").read_text() == "bye\n"
