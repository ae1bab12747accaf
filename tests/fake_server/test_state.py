"""A state folder keeps the world through an orderly end, and refuses what is not its own."""

import json
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fake_server.containers import Containers
from fake_server.server import FakeServer
from fake_server.store import FolderLock, StateError, Store
from fake_server.timings import Guesses, Timings
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.test_machines_live import box_shell, says
from tests.fake_server.wires import INSTANCES, Wires, eventually, job, replica_set


@contextmanager
def life(folder: Path, **options: Any) -> Iterator[Wires]:
    """A fake on that folder, and calls on it."""
    with FakeServer(**{"state": folder, "speed": 0, "containers": QuietContainers, **options}) as fake:
        wires = Wires(fake)
        with wires.session:
            yield wires


def double(wires: Wires) -> QuietContainers:
    containers = wires.fake.world.ground.containers
    assert isinstance(containers, QuietContainers)
    return containers


def views(wires: Wires, deployment: str) -> list[Any]:
    """All that both APIs show."""
    return [
        wires.matrixdc("GET", INSTANCES),
        wires.deployments(),
        wires.containers(deployment),
        wires.containers(deployment, released=True),
        wires.events(deployment),
        wires.data("GET", "/deployment/blacklist"),
        wires.data("POST", "/machine/region/gpu_stock", {"region_sign": "westDC2"}),
        wires.matrixdc("GET", "/skus/computings?region_id=14c5a9e3-0d09-4aa0-99d3-c096b80cceaa"),
    ]


def test_both_clouds_are_as_they_were(tmp_path: Path) -> None:
    with life(tmp_path) as before:
        before.rent(VolumeMount=[{"PathInContainer": "/root/data", "Size": 7, "Type": "shared-filesystem"}])
        off = before.rent(displayName="off")
        uuid = before.deploy(replica_set(replica_num=2, reuse_container=True))
        before.advance(1)
        first, _ = before.running(uuid, 2)
        before.boxed(off, "Running")
        before.matrixdc("POST", f"{INSTANCES}/{off}/power_off", {})
        before.data("POST", "/deployment/blacklist", {"deployment_container_uuid": first["uuid"], "comment": "slow"})
        before.data("PUT", "/deployment/container/stop", {"deployment_container_uuid": first["uuid"]})
        eventually(lambda: first["uuid"] not in double(before).running() and off not in double(before).running())
        before.advance(1)
        before.running(uuid, 2)
        before.boxed(off, "Shutdown")
        shown, truth = views(before, uuid), before.truth()
        passwords = {spec.name: (spec.password, spec.cmd) for spec in double(before).specs.values()}
    with life(tmp_path) as after:
        assert views(after, uuid) == shown
        assert after.truth() == truth
        assert {spec.name: (spec.password, spec.cmd) for spec in double(after).specs.values()} == passwords


@pytest.mark.parametrize("seconds", [0, 0.15, 0.31, 0.36, 0.46, 0.6])
def test_whatever_was_on_its_way_arrives(tmp_path: Path, seconds: float) -> None:
    with life(tmp_path) as before:
        name = before.rent()
        uuid = before.deploy(job())
        before.advance(seconds)
    with life(tmp_path) as after:
        after.advance(1)
        after.boxed(name, "Running")
        after.running(uuid)


@pytest.mark.parametrize("seconds", [0, 0.31])
def test_what_was_going_away_goes_and_gives_its_gpus_back(tmp_path: Path, seconds: float) -> None:
    with life(tmp_path) as before:
        stock = before.control("GET", "state")["stock"]
        name = before.rent()
        uuid = before.deploy(job())
        before.advance(1)
        before.boxed(name, "Running")
        before.running(uuid)
        before.matrixdc("DELETE", f"{INSTANCES}?name={name}")
        before.data("DELETE", "/deployment", {"deployment_uuid": uuid})
        before.advance(seconds)
    with life(tmp_path) as after:
        after.advance(1)
        eventually(lambda: after.boxes() == [] and after.deployments() == [])
        assert after.control("GET", "state")["stock"] == stock
        assert all(row["gone_at"] and not row["powered"] for row in after.truth())


def test_a_snapshot_under_way_is_taken(tmp_path: Path) -> None:
    with life(tmp_path) as before:
        name = before.rent()
        before.advance(1)
        before.boxed(name, "Running")
        (disk,) = [spec.disk for spec in double(before).specs.values()]
        (disk / "kept").write_text("yes")
        body = {"needSnapshot": True, "imageName": "env", "tag": "v1"}
        before.matrixdc("POST", f"{INSTANCES}/{name}/power_off", body)
    with life(tmp_path) as after:
        after.advance(1)
        eventually(lambda: list((tmp_path / "matrixdc/images").glob("*/kept")))
        after.advance(1)
        after.boxed(name, "Shutdown")
    with life(tmp_path) as later:
        second = later.rent(image="images.neolink-ai.com/fake-user/env:v1")
        later.advance(1)
        later.boxed(second, "Running")
        assert (double(later).specs[second].disk / "kept").read_text() == "yes"


def test_a_machine_comes_back_at_its_address_and_its_cmd_runs_again(tmp_path: Path) -> None:
    with life(tmp_path) as before:
        uuid = before.deploy(job(cmd="train"))
        before.advance(1)
        (container,) = before.running(uuid)
    with life(tmp_path) as after:
        (spec,) = double(after).started
        assert (spec.name, spec.cmd) == (container["uuid"], 'exec bash -c "train"')
        assert container["info"]["ssh_command"] == f"ssh -p {spec.port} root@127.0.0.1"
        double(after).end_cmd(spec.name)
        eventually(lambda: spec.name not in double(after).running())
        after.advance(1)
        eventually(lambda: after.deployments()[0]["finished_num"] == 1)


def test_what_cannot_boot_again_has_failed(tmp_path: Path) -> None:
    with life(tmp_path) as before:
        name = before.rent()
        before.advance(1)
        before.boxed(name, "Running")

    class Broken(QuietContainers):
        def start(self, *_: Any, **__: Any) -> Any:
            raise OSError("no such host any more")

    with life(tmp_path, containers=Broken) as after:
        assert after.boxed(name, "Failed")["status"] == "Failed"
        assert after.truth()[0]["powered"] is False


def test_the_ledger_and_the_calls_go_on(tmp_path: Path) -> None:
    with life(tmp_path) as before:
        name = before.rent()
        before.advance(1)
        before.boxed(name, "Running")
        double(before).report(name, "one")
        calls = before.control("GET", "calls")
    with life(tmp_path) as after:
        assert after.control("GET", "calls")["calls"][: calls["total"]] == calls["calls"]
        double(after).report(name, "two")
        assert [command["run_token"] for command in after.truth()[0]["commands"]] == [f"{name}#1", f"{name}#2"]
        assert after.control("GET", "ledger")["calls"]["matrixdc.create_instance"] == 1


def test_new_ids_do_not_repeat_old_ones_even_with_a_seed(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        with life(tmp_path, seed=5) as wires:
            names += [wires.rent(), wires.rent()]
    assert len(set(names)) == 6


def test_a_standing_clock_stands_while_no_fake_runs_and_a_running_one_runs(tmp_path: Path) -> None:
    with life(tmp_path) as wires:
        wires.advance(1000)
        at = wires.control("GET", "state")["now"]
    with life(tmp_path, speed=1000) as wires:
        assert at <= wires.control("GET", "state")["now"] < at + 60_000
        at = wires.control("GET", "state")["now"]
    with life(tmp_path) as wires:
        assert at < wires.control("GET", "state")["now"] < at + 100_000


def test_a_reset_forgets_the_folder_too(tmp_path: Path) -> None:
    with life(tmp_path) as wires:
        wires.rent()
        wires.control("POST", "reset")
    with life(tmp_path) as wires:
        assert (wires.boxes(), wires.truth()) == ([], [])


def test_a_second_fake_is_kept_out_of_the_folder_and_a_first_is_let_in_again(tmp_path: Path) -> None:
    with life(tmp_path), pytest.raises(StateError, match="another fake uses"), life(tmp_path):
        pass
    with life(tmp_path) as wires:
        assert wires.boxes() == []


def test_a_folder_of_something_else_is_refused_in_words_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "world.sqlite3").write_text("no database, but long enough to be taken for one" * 100)
    with pytest.raises(StateError, match="not a state of this fake"), life(tmp_path):
        pass
    assert (tmp_path / "world.sqlite3").read_text().startswith("no database")


def test_a_state_of_another_version_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save({("meta", "format"): '"2"'}, commands=[], calls=[])
    store.close()
    with pytest.raises(StateError, match="another version"), life(tmp_path):
        pass


def test_the_lists_of_the_ledger_can_only_grow(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save({}, commands=[("m", "{}")], calls=["{}"])
    store.close()
    with sqlite3.connect(tmp_path / "world.sqlite3") as database:
        for order in (
            "DELETE FROM command",
            "UPDATE command SET body = ''",
            "DELETE FROM call",
            "UPDATE call SET n = 7",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(order)


def test_a_save_that_fails_leaves_what_was_saved(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save({("a", "1"): "1"}, commands=[], calls=[])
    with pytest.raises(sqlite3.Error):
        store.save({("a", "1"): "2"}, commands=[("m", object())], calls=[])  # type: ignore[list-item]
    store.save({("a", "1"): "1", ("b", "1"): "3"}, commands=[], calls=[])
    store.close()
    again = Store(tmp_path)
    assert (list(again.things("a")), list(again.things("b"))) == ([("1", 1)], [("1", 3)])
    again.close()


def test_the_database_is_private(tmp_path: Path) -> None:
    with life(tmp_path):
        assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("world*")} == {
            "world.sqlite3": 0o600,
            "world.sqlite3-wal": 0o600,
            "world.sqlite3-shm": 0o600,
        }


def test_the_lock_goes_with_the_fake(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(StateError):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()


def test_a_used_port_of_a_machine_is_replaced(tmp_path: Path) -> None:
    quick = Timings(matrixdc_creating_s=0, sshd_s=0)
    with life(tmp_path, speed=1, containers=Containers, timings=quick) as before:
        name = before.rent()
        address = before.boxed(name, "Running")["servers"]["SSH"]["sshAddr"]
    port = int(address.split()[1].removeprefix("-p"))
    with socket.create_server(("127.0.0.1", port)), life(tmp_path, speed=1, containers=Containers) as after:
        assert after.boxed(name, "Running")["servers"]["SSH"]["sshAddr"] != address
        with box_shell(after, name) as client:
            assert says(client, "hostname")


def test_a_folder_in_use_is_said_on_the_command_line(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    command = [sys.executable, "-m", "fake_server", "--port", "0", "--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    lock.release()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fake_server: another fake uses the state folder")


def test_what_a_killed_fake_left_half_done_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    with life(tmp_path) as before:
        name = before.rent()
        uuid = before.deploy(job())
        before.advance(1)
        before.boxed(name, "Running")
        before.running(uuid)
        kept = [folder for spec in double(before).specs.values() for folder in (spec.disk, *spec.volumes.values())]
    left = [
        tmp_path / place
        for place in (
            "matrixdc/disks/old",
            "matrixdc/images/new.part",
            "matrixdc/volumes/v",
            "autodl/disks/x",
            "autodl/tmp/x",
        )
    ]
    for folder in left:
        folder.mkdir(parents=True)
    with life(tmp_path):
        assert [folder for folder in left if folder.exists()] == []
        assert [folder for folder in kept if not folder.exists()] == []


@pytest.mark.parametrize(("speed", "passed_s"), [(1000, 3600), (1, 3600), (0.5, 1800), (0, 0)])
def test_while_no_fake_runs_the_clock_goes_no_faster_than_real_time(
    tmp_path: Path, speed: float, passed_s: float
) -> None:
    with life(tmp_path):
        pass
    clock = _away(tmp_path, seconds=3600, speed=speed)
    with life(tmp_path) as wires:
        assert clock["at"] + passed_s <= wires.control("GET", "state")["now"] < clock["at"] + passed_s + 60


def test_what_waited_for_a_ban_to_end_still_does(tmp_path: Path) -> None:
    with life(tmp_path) as before:
        first = before.deploy(job(gpu_name_set=["TITAN Xp"], cuda_v_from=113))
        before.advance(1)
        (container,) = before.running(first)
        ban = {"deployment_container_uuid": container["uuid"], "expire_in_minutes": 10}
        before.data("POST", "/deployment/blacklist", ban)
        waiting = before.deploy(job(gpu_name_set=["TITAN Xp"]))
        before.advance(60)
        assert before.containers(waiting) == []
    with life(tmp_path) as after:
        after.advance(300)
        assert after.containers(waiting) == []
        after.advance(300)
        after.running(waiting)


def test_packages_and_coupons_are_as_they_were(tmp_path: Path) -> None:
    asks = Guesses(autodl_packages_pay=True)
    cost = {"CostType": "1", "CouponID": "coupon-1", "DiskSKUID": "1", "GPUSKUID": "66", "CostTime": ""}
    with life(tmp_path, guesses=asks) as before:
        before.rent(Cost=cost)
        uuid = before.deploy(job())
        before.advance(1)
        before.running(uuid)
        before.advance(3600)
        left = before.data("GET", f"/deployment/ddp/overview?deployment_uuid={uuid}")
        paid = [machine["paid_fen"] for machine in before.truth()]
    with life(tmp_path, guesses=asks) as after:
        assert after.data("GET", f"/deployment/ddp/overview?deployment_uuid={uuid}") == left
        assert [machine["paid_fen"] for machine in after.truth()] == paid
        assert after.fake.world.matrixdc.coupons == {"coupon-100": 100.0, "coupon-1": 0.0}
        after.advance(3600)
        assert after.data("GET", f"/deployment/ddp/overview?deployment_uuid={uuid}")[0]["balance"] < left[0]["balance"]


def _away(folder: Path, *, seconds: float, speed: float) -> dict[str, float]:
    """Let a folder look as if its fake had ended so long ago, at that speed; return the clock that it wrote."""
    with sqlite3.connect(folder / "world.sqlite3") as database:
        (body,) = database.execute("SELECT body FROM thing WHERE id = 'clock'").fetchone()
        clock: dict[str, float] = json.loads(body)
        changed = {**clock, "real_at": clock["real_at"] - seconds, "speed": speed}
        database.execute("UPDATE thing SET body = ? WHERE id = 'clock'", [json.dumps(changed)])
    database.close()
    return clock


def test_what_ran_while_no_fake_did_is_billed_and_paid(tmp_path: Path) -> None:
    asks = Guesses(autodl_packages_pay=True)
    with life(tmp_path, guesses=asks) as before:
        uuid = before.deploy(job())
        before.advance(1)
        before.running(uuid)
        (left,) = before.data("GET", f"/deployment/ddp/overview?deployment_uuid={uuid}")
        (row,) = before.truth()
    _away(tmp_path, seconds=7200, speed=1)
    with life(tmp_path, guesses=asks) as after:
        (now_left,) = after.data("GET", f"/deployment/ddp/overview?deployment_uuid={uuid}")
        (now_row,) = after.truth()
        assert 7200 <= left["balance"] - now_left["balance"] < 7260
        assert 7200 <= now_row["billed_s"] - row["billed_s"] < 7260
        assert now_row["paid_fen"] == 0 < now_row["cost_fen"]
