"""How AutoDL's deployments and containers live and end, on a clock that the tests move."""

import pytest

from fake_server.server import FakeServer
from fake_server.timings import Guesses, Timings
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import Wires, eventually, job, replica_set, template

WHOLE_LIFE = ["shutdown", "shutting_down", "running", "oss_merged", "starting", "created", "creating"]


def boot(wires: Wires, deployment: str, count: int = 1) -> list[str]:
    """Let containers come up; return their uuids, newest first."""
    wires.advance(0.9)
    return [each["uuid"] for each in wires.running(deployment, count)]


def shut(wires: Wires, deployment: str, count: int = 1) -> None:
    """Wait until so many containers of the deployment are released."""

    def look() -> bool:
        wires.advance(0.05)
        return len(wires.containers(deployment, released=True)) == count

    eventually(look)


def status(wires: Wires, deployment: str) -> str:
    return str(wires.deployments(deployment_uuid=deployment)[0]["status"])


def test_a_container_passes_every_status_at_its_own_time(wires: Wires) -> None:
    uuid = wires.deploy(job())
    seen = []
    for step in (0.0, 0.1, 0.2, 0.05):
        wires.advance(step)
        seen.append([each["status"] for each in wires.containers(uuid)])
    assert seen == [[], ["creating"], ["created"], ["oss_merged"]]
    wires.advance(0.1)
    wires.running(uuid)
    wires.data("PUT", "/deployment/operate", {"deployment_uuid": uuid, "operate": "stop"})
    assert [each["status"] for each in wires.containers(uuid)] == ["shutting_down"]
    shut(wires, uuid)
    assert wires.events(uuid) == WHOLE_LIFE
    assert status(wires, uuid) == "stopped"


def test_starting_and_oss_merged_share_a_second_and_the_later_one_is_listed_first(wires: Wires) -> None:
    uuid = wires.deploy(job())
    boot(wires, uuid)
    rows = wires.data(
        "POST",
        "/deployment/container/event/list",
        {"deployment_uuid": uuid, "page_index": 1, "page_size": 10},
    )["list"]
    by_status = {row["status"]: row["created_at"] for row in rows}
    assert by_status["starting"] == by_status["oss_merged"]
    assert [row["status"] for row in rows][1:3] == ["oss_merged", "starting"]


def test_a_stop_while_creating_starts_no_container(wires: Wires, containers: QuietContainers) -> None:
    uuid = wires.deploy(job())
    wires.advance(0.1)
    wires.data("PUT", "/deployment/operate", {"deployment_uuid": uuid, "operate": "stop"})
    shut(wires, uuid)
    assert wires.events(uuid) == ["shutdown", "shutting_down", "creating"]
    assert containers.started == []


def test_a_stop_while_the_container_starts_leaves_none_running(wires: Wires, containers: QuietContainers) -> None:
    containers.may_start.clear()
    uuid = wires.deploy(job())
    wires.advance(0.5)
    wires.data("PUT", "/deployment/operate", {"deployment_uuid": uuid, "operate": "stop"})
    containers.may_start.set()
    shut(wires, uuid)
    assert containers.running() == []
    assert wires.events(uuid) == [each for each in WHOLE_LIFE if each != "running"]
    assert [(machine["gone_at"] is None, machine["billed_s"]) for machine in wires.truth()] == [(False, 0)]


def test_a_container_that_does_not_start_fails_and_is_replaced(wires: Wires, containers: QuietContainers) -> None:
    containers.refuse_to_start = True
    uuid = wires.deploy(job())
    wires.advance(0.5)
    eventually(lambda: wires.containers(uuid, released=True, status=["failed"]))
    containers.refuse_to_start = False
    wires.advance(1)
    wires.running(uuid)
    assert wires.deployments()[0]["finished_num"] == 0


def test_a_job_ends_when_its_containers_commands_have_ended(wires: Wires, containers: QuietContainers) -> None:
    uuid = wires.deploy(job(replica_num=3, parallelism_num=2))
    first, second = boot(wires, uuid, 2)
    row = wires.deployments()[0]
    assert (row["replica_num"], row["parallelism_num"], row["running_num"], row["finished_num"]) == (3, 2, 2, 0)
    containers.end_cmd(first, 0)
    shut(wires, uuid, 1)
    wires.advance(1)
    assert len(wires.running(uuid, 2)) == 2
    for name in {each["uuid"] for each in wires.containers(uuid)}:
        containers.end_cmd(name, 1)
    shut(wires, uuid, 3)
    assert second in {each["uuid"] for each in wires.containers(uuid, released=True)}
    assert status(wires, uuid) == "running"  # for a moment, as was seen live
    wires.advance(0.3)
    row = wires.deployments()[0]
    assert (row["status"], row["finished_num"], row["running_num"]) == ("stopped", 3, 0)
    assert row["stopped_at"] is not None


def test_a_command_that_ends_before_its_container_is_up_ends_it_once_it_is(
    wires: Wires, containers: QuietContainers
) -> None:
    containers.may_start.clear()
    uuid = wires.deploy(job(cmd="true"))
    wires.advance(0.5)
    name = wires.containers(uuid)[0]["uuid"]
    containers.end_cmd(name)
    wires.advance(0.1)
    containers.may_start.set()
    shut(wires, uuid)
    assert wires.events(uuid) == WHOLE_LIFE


def test_a_jobs_stopped_container_is_replaced_by_a_new_one(wires: Wires) -> None:
    uuid = wires.deploy(job())
    (old,) = boot(wires, uuid)
    wires.data("PUT", "/deployment/container/stop", {"deployment_container_uuid": old})
    shut(wires, uuid)
    wires.advance(1)
    (new,) = (each["uuid"] for each in wires.running(uuid))
    assert new != old
    assert wires.deployments()[0]["finished_num"] == 0


def test_whether_a_jobs_stopped_container_counts_as_finished_is_a_setting() -> None:
    guesses = Guesses(job_replaces_stopped=False)
    with FakeServer(speed=0, guesses=guesses, containers=QuietContainers) as fake:
        wires = Wires(fake)
        with wires.session:
            uuid = wires.deploy(job())
            (old,) = boot(wires, uuid)
            wires.data("PUT", "/deployment/container/stop", {"deployment_container_uuid": old})
            shut(wires, uuid)
            wires.advance(1)
            assert status(wires, uuid) == "stopped"


def test_a_replica_set_replaces_ended_containers_and_counts_them(wires: Wires, containers: QuietContainers) -> None:
    uuid = wires.deploy(replica_set(replica_num=1))
    for ended in (1, 2):
        (name,) = boot(wires, uuid)
        containers.end_cmd(name)
        shut(wires, uuid, ended)
    boot(wires, uuid)
    row = wires.deployments()[0]
    assert (row["status"], row["finished_num"], row["replica_num"]) == ("running", 2, 1)


def test_a_replica_set_scales_up_and_down(wires: Wires) -> None:
    uuid = wires.deploy(replica_set(replica_num=1))
    (first,) = boot(wires, uuid)
    wires.data("PUT", "/deployment/replica_num", {"deployment_uuid": uuid, "replica_num": 3})
    assert boot(wires, uuid, 3)[-1] == first
    wires.data("PUT", "/deployment/replica_num", {"deployment_uuid": uuid, "replica_num": 1})
    shut(wires, uuid, 2)
    wires.advance(1)
    assert [each["uuid"] for each in wires.containers(uuid)] == [first]


def test_only_a_replica_set_scales(wires: Wires) -> None:
    uuid = wires.deploy(job())
    reply = wires.autodl("PUT", "/deployment/replica_num", {"deployment_uuid": uuid, "replica_num": 3})
    assert reply["code"] == "RequestParameterIsWrong"


def test_a_stopped_container_can_take_its_replica_with_it(wires: Wires) -> None:
    uuid = wires.deploy(replica_set(replica_num=2))
    one, _ = boot(wires, uuid, 2)
    wires.data(
        "PUT",
        "/deployment/container/stop",
        {"deployment_container_uuid": one, "decrease_one_replica_num": True},
    )
    shut(wires, uuid, 1)
    wires.advance(1)
    assert len(wires.running(uuid, 1)) == 1
    assert wires.deployments()[0]["replica_num"] == 1


def test_a_container_deployment_ends_with_its_container(wires: Wires, containers: QuietContainers) -> None:
    body = {
        "name": "one",
        "deployment_type": "Container",
        "container_template": {
            key: value for key, value in template(cuda_v=113).items() if key not in {"cuda_v_from", "cuda_v_to"}
        },
    }
    uuid = wires.deploy(body)
    (name,) = boot(wires, uuid)
    containers.end_cmd(name)
    shut(wires, uuid)
    wires.advance(1)
    row = wires.deployments()[0]
    assert (row["status"], row["finished_num"], row["replica_num"]) == ("stopped", 1, 1)


def test_delete_stops_first_and_then_the_deployment_leaves_the_list(wires: Wires) -> None:
    uuid = wires.deploy(job())
    boot(wires, uuid)
    wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})
    assert [row["status"] for row in wires.deployments()] == ["stopped"]
    eventually(lambda: wires.advance(0.1) or wires.deployments() == [])
    assert wires.autodl("DELETE", "/deployment", {"deployment_uuid": uuid})["code"] == "RecordNotFoundError"
    assert wires.truth()[0]["gone_at"] is not None


def test_a_farewell_command_runs_before_the_stop_and_a_calls_own_one_wins(
    wires: Wires, containers: QuietContainers
) -> None:
    uuid = wires.deploy(replica_set(replica_num=1, cmd_before_shutdown="save"))
    (name,) = boot(wires, uuid)
    wires.data(
        "PUT",
        "/deployment/container/stop",
        {"deployment_container_uuid": name, "cmd_before_shutdown": "save elsewhere"},
    )
    shut(wires, uuid)
    (second,) = boot(wires, uuid)
    wires.data("PUT", "/deployment/operate", {"deployment_uuid": uuid, "operate": "stop"})
    shut(wires, uuid, 2)
    assert containers.farewells == [(name, "save elsewhere"), (second, "save")]
    assert containers.farewell_timeouts == [5.0, 5.0]


def test_a_released_container_is_used_again_with_its_disk_and_sooner(wires: Wires, containers: QuietContainers) -> None:
    uuid = wires.deploy(replica_set(replica_num=1, reuse_container=True))
    (old,) = boot(wires, uuid)
    wires.data("PUT", "/deployment/container/stop", {"deployment_container_uuid": old})
    shut(wires, uuid)
    assert wires.containers(uuid, released=True)[0]["status"] == "in_cache"
    wires.advance(0.36)
    (new,) = (each["uuid"] for each in wires.running(uuid))
    first, second = containers.started
    assert (new != old, second.disk, second.volumes) == (True, first.disk, first.volumes)
    assert wires.containers(uuid, released=True)[0]["status"] == "shutdown"


@pytest.mark.parametrize(("reuse", "no_cache"), [(True, True), (False, False)])
def test_a_container_that_is_not_to_be_reused_loses_its_disk(
    wires: Wires, containers: QuietContainers, *, reuse: bool, no_cache: bool
) -> None:
    uuid = wires.deploy(replica_set(replica_num=1, reuse_container=reuse))
    (old,) = boot(wires, uuid)
    wires.data("PUT", "/deployment/container/stop", {"deployment_container_uuid": old, "no_cache": no_cache})
    shut(wires, uuid)
    assert wires.containers(uuid, released=True)[0]["status"] == "shutdown"
    eventually(lambda: not containers.started[0].disk.exists())
    boot(wires, uuid)
    assert containers.started[1].disk != containers.started[0].disk


def test_what_a_container_is_started_with(wires: Wires, containers: QuietContainers) -> None:
    uuid = wires.deploy(job(gpu_num=2, dc_list=["westDC3"], cmd="run me"))
    (name,) = boot(wires, uuid)
    spec = containers.started[0]
    assert (spec.name, spec.gpu_name, spec.gpu_count, spec.gpu_memory_mb, spec.cpus, spec.memory_gb) == (
        name,
        "NVIDIA GeForce RTX 4090",
        2,
        24564,
        32,
        240,
    )
    assert spec.env == {
        "AutoDLContainerUUID": name,
        "AutoDLDeploymentUUID": uuid,
        "AutoDLDataCenter": "westDC3",
    }
    assert (spec.conda, set(spec.volumes)) == ("/root/miniconda3", {"/root/autodl-tmp", "/root/autodl-fs"})
    assert spec.cmd == 'exec bash -c "run me"'
    assert spec.password == wires.containers(uuid)[0]["info"]["root_password"]


def test_autodl_fs_is_one_folder_a_data_centre_and_autodl_tmp_one_a_container(
    wires: Wires, containers: QuietContainers
) -> None:
    here = wires.deploy(job(replica_num=2, parallelism_num=2, dc_list=["westDC2"]))
    there = wires.deploy(job(dc_list=["westDC3"]))
    boot(wires, here, 2)
    boot(wires, there)
    folders = {spec.name: spec.volumes for spec in containers.started}
    shared = [folders[each["uuid"]]["/root/autodl-fs"] for each in wires.containers(here)]
    elsewhere = folders[wires.containers(there)[0]["uuid"]]["/root/autodl-fs"]
    assert shared[0] == shared[1] != elsewhere
    assert len({volumes["/root/autodl-tmp"] for volumes in folders.values()}) == 3


def test_the_ssh_server_comes_later_than_running_by_the_clocks_speed() -> None:
    with FakeServer(speed=50, timings=Timings(sshd_s=5), containers=QuietContainers) as fake:
        wires = Wires(fake)
        with wires.session:
            wires.running(wires.deploy(job()))
            double = fake.world.ground.containers
            assert isinstance(double, QuietContainers)
            assert double.sshd_delays == [0.1]
