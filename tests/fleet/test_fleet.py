"""A fleet's machines are one run with one bill; whatever happens to one of them or to us, all are released."""

import random
import signal
import subprocess
import sys
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpujobs import Fleet, fleet_deal, fleet_run
from gpujobs.errors import BadInput, Cancelled, GpujobsError, JobFailed, OverLimit
from gpujobs.host import Host
from gpujobs.ledger import open_ledger
from gpujobs.reaper import reap, survey
from gpujobs.settings import Settings
from tests.call.project import load, run, write
from tests.clocks import eventually
from tests.cloud import GPUS, Control, Memory, recipe_for
from tests.conftest import QUICK

LIMIT_S = 60
pytestmark = pytest.mark.usefixtures("cloud_settings")


def keys(backend: str = "matrixdc", **more: Any) -> dict[str, Any]:
    return {"accelerators": GPUS[backend], "infra": backend, **more}


@pytest.mark.parametrize("backend", ["matrixdc", "autodl"])
def test_a_machine_that_dies_amid_its_tasks_is_replaced_and_each_result_comes_once(
    backend: str,
    work: ModuleType,
    control: Control,
    cloud_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gpujobs.host.Timing", lambda: replace(QUICK, lost_s=8.0))
    control.ask("POST", "faults", {"kind": "dies_mid_run", "seconds": 5000, "count": 1})
    came: list[int] = []
    with Fleet(keys(backend), machines=2) as pool:
        first = [pool.submit(work.wait_for, "go", f"at-{number}") for number in range(2)]
        eventually(lambda: all(one.running() for one in first), what="both machines are at work")
        rest = [pool.submit(work.square, number) for number in range(24)]
        for one in rest:
            one.add_done_callback(lambda done: came.append(done.result(0)))
        names = {one["name"] for one in control.machines()}
        control.ask("POST", "clock", {"advance": 5001})
        eventually(lambda: {one["name"] for one in control.machines()} > names, what="another takes its place")
        eventually(lambda: (_touch(pool, "go"), all(one.done() for one in first))[1], what="the held tasks end")
        assert [one.result(LIMIT_S) for one in first] == ["go", "go"]
        assert [one.result(LIMIT_S) for one in rest] == [number**2 for number in range(24)]
    assert sorted(came) == sorted(number**2 for number in range(24))
    assert control.left() == []
    with open_ledger(cloud_settings.database_url) as ledger:
        row = ledger.get_run(pool.run_id)
        bills = ledger.bills(pool.run_id)
        states = [one.state for one in ledger.attempts(pool.run_id)]
        runs = len(ledger.list_runs())
    assert (row.state, runs, "failed" in states, len(bills)) == ("succeeded", 1, True, len(states))
    assert row.cost_cny == pytest.approx(sum(one.cost_cny or 0 for one in bills))


def _touch(pool: Fleet, name: str) -> int:
    """Touch a file where the tasks of each machine run; give how many machines have it."""
    reached = 0
    for machine in list(pool._run._crew):
        if machine.link and machine.link.ready and machine.link.shell and machine.attempt:
            folder = machine.attempt._runner(machine.link.shell).work
            with suppress(GpujobsError):  # the machine that dies
                machine.link.shell.check(f"touch {folder}/{name}", what="touching")
                reached += 1
    return reached


def test_a_cut_connection_costs_no_task_and_no_second_start(work: ModuleType, control: Control) -> None:
    with Fleet(keys(), machines=1) as pool:
        future = pool.submit(work.wait_for, "go")
        eventually(future.running, what="the task is at work")
        (machine,) = pool._run._crew
        eventually(lambda: machine.link and machine.link.ready, what="the stream is there")
        assert machine.link is not None
        assert machine.link.shell is not None
        queued, cut = pool.submit(work.square, 3), machine.link.shell
        cut.close()
        eventually(lambda: machine.link and machine.link.ready and machine.link.shell is not cut, what="it came back")
        assert _touch(pool, "go") == 1
        assert (future.result(LIMIT_S), queued.result(LIMIT_S)) == ("go", 9)
    assert len(control.machines()) == 1
    assert control.left() == []


@pytest.mark.parametrize(
    "relay", ["import sys; sys.stdout.write('rubbish' * 9); sys.stdout.flush(); sys.stdin.read()", "raise SystemExit"]
)
def test_a_machine_that_sends_rubbish_or_nothing_is_let_go_and_its_task_goes_elsewhere(
    relay: str, work: ModuleType, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_deal, "_MEND_S", 0.1)
    with Fleet(keys(), machines=1) as pool:
        pool.submit(work.spoil, relay).result(LIMIT_S)
        (machine,) = pool._run._crew
        assert machine.link is not None
        assert machine.link.shell is not None
        machine.link.shell.close()
        assert pool.submit(work.square, 3).result(LIMIT_S) == 9
    assert len(control.machines()) == 2
    assert control.left() == []


def test_an_exception_out_of_the_with_block_releases_all(
    work: ModuleType, control: Control, cloud_settings: Settings
) -> None:
    with pytest.raises(LookupError), Fleet(keys(), machines=2) as pool:  # noqa: PT012 - the block is what is tried
        futures = [pool.submit(work.wait_for, "never") for _ in range(3)]
        eventually(lambda: sum(one.running() for one in futures) == 2, what="both machines are at work")
        raise LookupError
    assert sorted(type(one.exception(0)).__name__ for one in futures if not one.cancelled()) == ["Cancelled"] * 2
    assert sum(one.cancelled() for one in futures) == 1
    assert control.left() == []
    with open_ledger(cloud_settings.database_url) as ledger:
        assert ledger.get_run(pool.run_id).state == "cancelled"


def test_its_cancel_in_the_ledger_ends_a_fleet(work: ModuleType, control: Control, cloud_settings: Settings) -> None:
    with Fleet(keys(), machines=1) as pool:
        future = pool.submit(work.wait_for, "never")
        eventually(future.running, what="it is at work")
        with Host.open(cloud_settings) as host:
            host.ledger.request_cancel(pool.run_id, host.clock.now())
        assert isinstance(future.exception(LIMIT_S), Cancelled)
    assert control.left() == []


def test_budget_and_time_hold_for_the_whole_fleet(
    work: ModuleType, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = 0.0
    monkeypatch.setattr(fleet_run, "spent_cny", lambda *_: spent)
    with Fleet(keys(), machines=2, budget=5.0) as pool:
        futures = [pool.submit(work.wait_for, "never") for _ in range(3)]
        eventually(lambda: sum(one.running() for one in futures) == 2, what="both machines are at work")
        spent = 5.0
        errors = [one.exception(LIMIT_S) for one in futures]
        assert [type(one) for one in errors] == [OverLimit] * 3
        assert "budget of 5.00 CNY" in str(errors[0])
        with pytest.raises(BrokenExecutor, match=r"budget of 5\.00 CNY"):
            pool.submit(work.square, 1)
    with Fleet(keys(), machines=1, max_duration="1s") as pool:
        assert isinstance(pool.submit(work.wait_for, "never").exception(LIMIT_S), OverLimit)
    assert control.left() == []


def test_a_set_up_that_fails_ends_the_fleet_and_says_why(work: ModuleType, control: Control) -> None:
    with Fleet(keys(), machines=1, setup="echo no; exit 9") as pool:
        futures = [pool.submit(work.square, number) for number in range(2)]
        assert [type(one.exception(LIMIT_S)) for one in futures] == [JobFailed, JobFailed]
        assert "setup ended with exit code 9" in str(futures[0].exception())
    with Fleet(keys(), machines=1, python="python2.6") as pool:
        error = pool.submit(work.square, 1).exception(LIMIT_S)
        assert isinstance(error, BadInput)
        assert "there is no python2.6 on the machine" in str(error)
    assert control.left() == []


def test_what_cannot_be_a_fleet_is_refused_before_anything_is_rented(
    work: ModuleType, control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="machines= must be a number from 1 on"):
        Fleet(keys(), machines=0)
    with pytest.raises(BadInput, match="accelerator"):
        Fleet({"acelerators": "4090"}, machines=1)
    with pytest.raises(BadInput, match="budget= goes into the recipe"):
        Fleet(recipe_for("matrixdc"), machines=1, budget=3)
    pool = Fleet(recipe_for("matrixdc", outputs={"a": "b"}), machines=1)
    with pytest.raises(BadInput, match="outputs is of no use in a fleet"):
        pool.submit(work.square, 1)
    other = load(write(tmp_path / "other", "elsewhere.py", "def same(x):\n    return x\n"), monkeypatch)
    with Fleet(recipe_for("matrixdc"), machines=1) as pool:
        pool.submit(work.square, 1)
        with pytest.raises(BadInput, match="name one folder that holds both with workdir="):
            pool.submit(other.same, 1).result(0)
        pool.cancel()
    assert control.left() == []


def test_the_reaper_lets_a_living_fleet_be_and_ends_that_of_a_dead_process(
    tmp_path: Path, control: Control, cloud_settings: Settings
) -> None:
    path = write(
        tmp_path / "proj",
        "dies.py",
        """
        from gpujobs import Fleet

        def wait(number):
            print("waiting", number, flush=True)
            time.sleep(600)

        if __name__ == "__main__":
            KEYS.pop("retry")
            with Fleet(KEYS, machines=2) as pool:
                futures = [pool.submit(wait, number) for number in range(2)]
                while not all(one.running() for one in futures):
                    time.sleep(0.05)
                print("both", flush=True)
                time.sleep(600)
        """,
        backend="matrixdc",
    )
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"both\n"
        with Host.open(cloud_settings, dice=random.Random(1), timing=QUICK) as host:
            found = survey(host, host.backend("matrixdc"))
            assert [one.action for one in found] == ["leave", "leave"]
            assert all("is at work on it" in one.why for one in found)
        process.kill()
    with Host.open(cloud_settings, dice=random.Random(1), timing=QUICK) as host:
        (row,) = host.ledger.list_runs()
        host.ledger.update_run(row.id, lease_until=row.created_at - timedelta(hours=1))
        reap(host, yes=False, reporter=Memory())
        assert host.ledger.get_run(row.id).state in {"failed", "cancelled"}
        assert {one.state for one in host.ledger.tasks(row.id)} <= {"lost", "cancelled"}
        assert host.ledger.machines_alive() == []
    assert control.left() == []


STUDY = """
@gpu_job(**KEYS)
def score(x: int, y: int = 0) -> int:
    if x < 0:
        raise ValueError(x)
    print("scored", x)
    return x * 10 + y

@gpu_job(**KEYS)
def sleep(_) -> None:
    Path("asleep").touch()
    time.sleep(600)

if __name__ == "__main__":
    print("go", flush=True)
    list(sleep.map(range(2), machines=2))
"""


def test_a_decorated_function_maps_over_a_fleet(
    tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load(write(tmp_path / "proj", "study.py", STUDY), monkeypatch)
    found = study.score.map([3, 1, 2], [1, 2, 3], machines=2)
    assert list(found) == [31, 12, 23]
    assert control.left() == [], "all is released at the end"
    assert "scored 1" in found.logs()
    some = study.score.starmap([(1,), (-1,), (2, 2)], machines=1, return_exceptions=True)
    assert sorted((index, repr(value)) for index, value in some.as_completed()) == [
        (0, "10"),
        (1, "ValueError(-1)"),
        (2, "22"),
    ]
    with pytest.raises(ValueError, match="-1"):
        list(study.score.map([-1, 5]))
    with pytest.raises(TypeError):
        study.score.map([1], [2], [3])
    assert control.left() == []
    assert len({one["name"].split("-")[2] for one in control.machines()}) == 3


def test_ctrl_c_in_a_script_releases_its_fleet(tmp_path: Path, control: Control) -> None:
    path = write(tmp_path / "proj", "script.py", STUDY)
    with subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        eventually(control.alive, what="machines are rented")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert control.left() == []


def test_a_script_that_ends_waits_for_its_fleets(tmp_path: Path, control: Control) -> None:
    text = """
    from gpujobs import Fleet

    def double(x):
        return 2 * x

    if __name__ == "__main__":
        KEYS.pop("retry")
        pool = Fleet(KEYS, machines=1)
        pool.submit(double, 4).add_done_callback(lambda done: print(done.result()))
    """
    done = run(write(tmp_path / "proj", "ends.py", text))
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr
    assert control.left() == []
