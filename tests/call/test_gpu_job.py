"""A decorated function runs on a rented machine and comes back as if it had run here; and nothing stays rented."""

import asyncio
import concurrent.futures
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpujobs
from gpujobs.errors import BadInput, BadResult, JobFailed, KilledRemotely, NoCapacity, RemoteError
from gpujobs.settings import Settings
from tests.call.project import load, run, write
from tests.clocks import eventually
from tests.cloud import BACKENDS, Control

LIMIT_S = 120
pytestmark = pytest.mark.usefixtures("cloud_settings")


@pytest.mark.parametrize("backend", BACKENDS)
def test_remote_prints_the_output_and_returns_what_the_function_returns(
    backend: str, tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path / "proj",
        "study.py",
        """
        import helper

        @dataclasses.dataclass
        class Metrics:
            loss: float
            weights: np.ndarray
            where: Path

        @gpu_job(**KEYS, envs={"WORD": "from envs"}, secrets=["A_SECRET"])
        def train(weights, rate=0.1) -> Metrics:
            print("rate", rate, os.environ["WORD"], len(os.environ["A_SECRET"]), flush=True)
            data = Path("data.txt").read_text()
            assert not Path("big.skip").exists()
            return Metrics(helper.twice(rate), weights * 2, Path(data))
        """,
        backend=backend,
    )
    (path.parent / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
    (path.parent / "data.txt").write_text("carried")
    (path.parent / "big.skip").write_text("stays here")
    (path.parent / ".gitignore").write_text("*.skip\n")
    monkeypatch.setenv("A_SECRET", "very-secret")
    study = load(path, monkeypatch)
    weights = np.arange(6.0).reshape(2, 3)
    found = study.train.remote(weights, rate=0.25)
    assert (type(found), found.loss, found.where) == (study.Metrics, 0.5, Path("carried"))
    assert np.array_equal(found.weights, weights * 2)
    out, err = capfd.readouterr()
    assert out == "rate 0.25 from envs 11\n"
    assert "] provision" in err
    assert "very-secret" not in out + err
    assert control.left() == []
    folder = next((tmp_path / "home/runs").iterdir())
    assert not (folder / "call").exists(), "what went up is not kept"
    assert b"very-secret" not in b"".join(one.read_bytes() for one in folder.rglob("*") if one.is_file())


def test_jobs_run_side_by_side_and_are_futures(
    tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        tmp_path / "proj",
        "many.py",
        """
        class Odd(Exception):
            def __init__(self, number, *, why):
                super().__init__(f"{number} {why}")
                self.number = number

        @gpu_job(**KEYS, outputs={"notes": "notes.txt"})
        def work(number: int) -> dict:
            print("working on", number)
            Path("notes.txt").write_text(str(number))
            if number == 2:
                raise Odd(number, why="is even")
            if number == 3:
                raise KeyError("plain")
            if number == 4:
                class Inner(Exception):
                    pass
                raise Inner("gone")
            if number == 5:
                os.kill(os.getpid(), 9)
            if number == 6:
                return {"model": [1, object()]}
            return {"number": number}
        """,
    )
    many = load(path, monkeypatch)
    jobs = {number: many.work.submit(number) for number in range(1, 7)}
    called: list[object] = []
    jobs[1].add_done_callback(called.append)
    done, left = concurrent.futures.wait(jobs.values(), timeout=LIMIT_S)
    assert (len(done), left) == (6, set())
    assert (jobs[1].result(), called, jobs[1].running(), jobs[1].cancel()) == ({"number": 1}, [jobs[1]], False, False)
    assert jobs[1].logs() == "working on 1\n"
    assert jobs[1].outputs["notes"].read_text() == "1"
    assert jobs[1].cost is not None
    odd = jobs[2].exception()
    assert (type(odd), odd.args, odd.number) == (many.Odd, ("2 is even",), 2)
    assert 'raise Odd(number, why="is even")' in odd.__notes__[0]
    assert "call.py" not in odd.__notes__[0]
    assert jobs[2].outputs["notes"].read_text() == "2"
    plain = jobs[3].exception()
    assert (type(plain), plain.args) == (KeyError, ("plain",))
    inner = jobs[4].exception()
    assert (type(inner), str(inner)) == (RemoteError, "many.work.<locals>.Inner: gone")
    killed = jobs[5].exception()
    assert (type(killed), killed.signal) == (KilledRemotely, 9)
    refused = jobs[6].exception()
    assert isinstance(refused, BadResult)
    assert str(refused).startswith("result['model'][1] is a builtins.object, which cannot come back by itself; have it")
    assert control.left() == []

    async def both() -> list[object]:
        return await asyncio.gather(many.work.aremote(7), asyncio.wrap_future(many.work.submit(8)))

    assert asyncio.run(both()) == [{"number": 7}, {"number": 8}]


def test_what_has_no_source_goes_by_value_and_more_than_the_codec_takes_by_pickle(
    tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        tmp_path / "proj",
        "values.py",
        """
        import threading

        class Model:
            def __init__(self, size):
                self.size = size

        @gpu_job(**KEYS, trust_remote=True)
        def make(size):
            return Model(size)

        def closing(offset, lock=None):
            @gpu_job(**KEYS)
            def add(number):
                return lock or number + offset
            return add
        """,
    )
    values = load(path, monkeypatch)
    made, added = values.make.submit(3), values.closing(40).submit(np.int64(2))
    assert (type(made.result(LIMIT_S)), made.result().size) == (values.Model, 3)
    assert added.result(LIMIT_S) == 42
    with pytest.raises(BadInput, match=r"lock, which closing.<locals>.add uses, cannot go to a machine: cannot pickle"):
        values.closing(1, values.threading.Lock()).submit(1)
    with pytest.raises(BadInput, match="the argument size cannot be sent to a machine: cannot pickle"):
        values.make.submit(values.threading.Lock())
    assert len(control.machines()) == 2
    assert control.left() == []


SCRIPT = """
import sys

@dataclasses.dataclass
class Config:
    rate: float

@gpu_job(**KEYS)
def train(config: Config) -> Config:
    return Config(config.rate * 2)

@gpu_job(**KEYS)
def sleep(seconds: int) -> None:
    print("asleep", flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    if sys.argv[1:] == ["train"]:
        print(train.remote(Config(0.5)), "returned")
    elif sys.argv[1:] == ["sleep"]:
        sleep.remote(600)
    else:
        print(train.submit(Config(2.0)).run_id)
"""


def test_a_scripts_own_classes_and_functions_are_found_there(tmp_path: Path) -> None:
    done = run(write(tmp_path / "proj", "script.py", SCRIPT), "train")
    assert done.stdout == "Config(rate=1.0) returned\n", done.stderr


def test_a_script_that_ends_waits_for_its_jobs_and_another_process_reads_them(
    tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "proj", "script.py", SCRIPT)
    done = run(path)
    assert control.left() == []
    script = load(path, monkeypatch)
    job = gpujobs.Job.from_id(done.stdout.strip(), script.train)
    assert job.result(LIMIT_S) == script.Config(4.0)
    with pytest.raises(BadInput, match="no run"):
        gpujobs.Job.from_id("nosuchrun")


def test_a_job_that_ran_elsewhere_is_read_from_the_store(
    tmp_path: Path, cloud_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUJOBS_STORE", f"file://{tmp_path}/store")
    path = write(
        tmp_path / "proj",
        "stored.py",
        """
        @gpu_job(**KEYS, outputs={"notes": "notes.txt"})
        def work(number: int) -> int:
            print("worked")
            Path("notes.txt").write_text("noted")
            return number + 1
        """,
    )
    stored = load(path, monkeypatch)
    run_id = stored.work.remote(4) and next(cloud_settings.runs.iterdir()).name
    monkeypatch.setenv("GPUJOBS_DATABASE_URL", cloud_settings.database_url)
    monkeypatch.setenv("GPUJOBS_HOME", str(tmp_path / "another"))  # as another machine of the team has it
    job = gpujobs.Job.from_id(run_id, stored.work)
    assert (job.result(LIMIT_S), job.logs(), job.outputs["notes"].read_text()) == (5, "worked\n", "noted")


def test_ctrl_c_cancels_and_the_machine_is_released(tmp_path: Path, control: Control) -> None:
    path = write(tmp_path / "proj", "script.py", SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(path), "sleep"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asleep\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT_S)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert control.left() == []


def test_what_a_killed_process_had_begun_goes_on_in_another(
    tmp_path: Path, control: Control, cloud_settings: Settings
) -> None:
    path = write(
        tmp_path / "proj",
        "long.py",
        """
        @gpu_job(**KEYS)
        def wait() -> str:
            print("asleep", flush=True)
            while not Path("/tmp/go").exists():
                time.sleep(0.1)
            return "awake"

        if __name__ == "__main__":
            wait.remote()
        """,
    )
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    run_id = next(cloud_settings.runs.iterdir()).name
    job = gpujobs.Job.from_id(run_id)
    assert gpujobs.Job.from_id(run_id) is job
    assert job.running()
    assert job.cancel()
    assert (job.cancelled(), job.cancel(), job.done()) == (True, True, True)
    assert job.wait_released(LIMIT_S)
    assert control.left() == []


def test_cancel_ends_the_future_at_once_and_the_machine_in_the_background(
    tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load(write(tmp_path / "proj", "script.py", SCRIPT), monkeypatch)
    job = script.sleep.submit(600)
    eventually(lambda: "asleep" in job.logs(), what="the function is at work")
    assert (job.cancel(), job.cancelled(), job.running()) == (True, True, False)
    assert concurrent.futures.wait([job], timeout=0).done == {job}
    with pytest.raises(concurrent.futures.CancelledError):
        job.result(0)
    assert job.wait_released(LIMIT_S)
    assert control.left() == []

    async def give_up() -> None:
        await asyncio.wait_for(script.sleep.aremote(600), 0.5)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    eventually(lambda: not control.left(), what="the machine of the awaited call is gone")


def test_what_keeps_a_run_from_its_work_is_raised(
    tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        tmp_path / "proj",
        "unlucky.py",
        """
        @gpu_job(**{**KEYS, "max_price": 0.01})
        def cheap():
            pass

        @gpu_job(**KEYS, python="python2.6")
        def old():
            pass

        @gpu_job(**KEYS, setup="echo no; exit 9")
        def unset():
            pass

        """,
    )
    unlucky = load(path, monkeypatch)
    jobs = [unlucky.cheap.submit(), unlucky.old.submit(), unlucky.unset.submit()]
    kinds = [(type(error), str(error)) for error in (job.exception(LIMIT_S) for job in jobs)]
    assert [kind for kind, _ in kinds] == [NoCapacity, BadInput, JobFailed]
    assert "there is no python2.6 on the machine; name one with python=" in kinds[1][1]
    assert "setup ended with exit code 9" in kinds[2][1]
    assert control.left() == []
