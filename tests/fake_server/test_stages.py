"""Time: stages that are immediate, timed or told to go on, and reads that change nothing."""

import time
from typing import Any

import pytest

from fake_server.server import FakeServer
from fake_server.timings import MANUAL, Timings
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, Wires, eventually, job


def advance(wires: Wires, **order: str) -> list[tuple[str, str]]:
    advanced = wires.control("POST", "advance", order)["advanced"]
    return [(each["name"], each["stage"]) for each in advanced]


def test_a_manual_stage_waits_for_the_control_room_whatever_the_clock_says(wires: Wires) -> None:
    wires.control("POST", "timings", {"matrixdc_creating_s": "manual"})
    mine, other = wires.rent(displayName="mine"), wires.rent(displayName="other")
    wires.advance(10_000)
    assert {wires.box(name)["status"] for name in (mine, other)} == {"Creating"}
    waiting = wires.control("GET", "state")["waiting"]
    assert [(each["id"], each["stage"], each["held_by"]) for each in waiting] == [
        (mine, "matrixdc_creating", "manual"),
        (other, "matrixdc_creating", "manual"),
    ]
    assert advance(wires, machine="mine") == [("mine", "matrixdc_creating")]
    wires.boxed(mine, "Running")
    assert wires.box(other)["status"] == "Creating"
    assert advance(wires, machine="mine") == []


def test_every_stage_of_a_job_can_be_stepped_through_by_hand() -> None:
    manual = Timings(
        autodl_queued_s=MANUAL,
        autodl_creating_s=MANUAL,
        autodl_created_s=MANUAL,
        autodl_starting_s=MANUAL,
        autodl_shutting_down_s=MANUAL,
        autodl_settle_s=MANUAL,
    )
    with FakeServer(timings=manual, containers=QuietContainers) as fake:
        wires = Wires(fake)
        with wires.session:
            uuid = wires.deploy(job(name="by-hand"))
            wires.control("POST", "stock", {"gpu": "RTX 4090", "idle": 8})
            assert wires.containers(uuid) == []  # there is room, but nobody told it to leave the queue
            assert advance(wires) == [("by-hand", "autodl_queued")]
            seen = [wires.containers(uuid)[0]["status"]]
            for stage in ("autodl_creating", "autodl_created"):
                assert advance(wires, stage=stage) == [("by-hand", stage)]
                seen.append(wires.containers(uuid)[0]["status"])
            assert advance(wires, machine=uuid + "-*") == [("by-hand", "autodl_starting")]
            container = wires.running(uuid)[0]["uuid"]
            assert seen == ["creating", "created", "oss_merged"]
            fake.world.ground.containers.end_cmd(container)  # type: ignore[attr-defined]
            eventually(lambda: wires.control("GET", "state")["waiting"])
            assert advance(wires) == [("by-hand", "autodl_shutting_down")]
            assert wires.deployments()[0]["status"] == "running"
            assert advance(wires) == [("by-hand", "autodl_settle")]
            assert wires.deployments()[0]["status"] == "stopped"


def test_immediate_stages_need_no_clock(wires: Wires) -> None:
    zero = {name: 0 for name in wires.control("GET", "state")["timings"] if name.startswith(("autodl", "matrixdc"))}
    wires.control("POST", "timings", zero)
    name, uuid = wires.rent(), wires.deploy(job())
    wires.boxed(name, "Running")
    wires.running(uuid)
    wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})
    wires.matrixdc("DELETE", f"{INSTANCES}?name={name}")
    eventually(lambda: wires.boxes() == [] and wires.deployments() == [])


def test_what_waits_goes_on_when_its_stage_is_timed_again(wires: Wires) -> None:
    wires.control("POST", "timings", {"matrixdc_creating_s": "manual"})
    name = wires.rent()
    assert wires.control("POST", "timings", {"matrixdc_creating_s": 60})["matrixdc_creating_s"] == 60
    wires.advance(59)
    assert wires.box(name)["status"] == "Creating"
    wires.advance(2)
    wires.boxed(name, "Running")


@pytest.mark.parametrize(
    "change",
    [
        {"nothing_s": 1},
        {"autodl_queued_s": -1},
        {"autodl_queued_s": "soon"},
        {"sshd_s": "manual"},
        ["x"],
        {"sshd_s": True},
    ],
)
def test_timings_that_make_no_sense_are_refused(wires: Wires, change: Any) -> None:
    before = wires.control("GET", "state")["timings"]
    assert wires.control("POST", "timings", change, status=400)["message"]
    assert wires.control("GET", "state")["timings"] == before


def test_reads_never_change_what_is(wires: Wires) -> None:
    """Half of everything is under way and the clock stands: whatever is read, nothing moves."""
    name, uuid = wires.rent(), wires.deploy(job(replica_num=3, parallelism_num=2))
    wires.advance(0.12)
    container = wires.containers(uuid)[0]["uuid"]
    wires.data("POST", "/deployment/blacklist", {"deployment_container_uuid": container})
    wires.rent()
    reads = (
        lambda: wires.box(name),
        wires.boxes,
        lambda: wires.matrixdc("GET", "/regions"),
        lambda: wires.matrixdc("GET", "/skus/computings?region_id=1"),
        wires.deployments,
        lambda: wires.containers(uuid),
        lambda: wires.containers(uuid, released=True),
        lambda: wires.events(uuid),
        lambda: wires.data("GET", "/deployment/blacklist"),
        lambda: wires.data("GET", f"/deployment/ddp/overview?deployment_uuid={uuid}"),
        lambda: wires.data("POST", "/machine/region/gpu_stock", {"region_sign": "westDC2"}),
        lambda: wires.data("POST", "/image/private/list", {"page_index": 1, "page_size": 10}),
    )

    def everything() -> Any:
        control = [wires.control("GET", path) for path in ("state", "faults")]
        return control, wires.truth(), [read() for read in reads]

    before = everything()
    for _ in range(20):
        for read in reads:
            read()
    time.sleep(0.1)  # real time passes; the world's does not
    assert everything() == before
