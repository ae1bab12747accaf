"""A recipe runs end to end on every backend, and whatever happens, nothing stays rented."""

import hashlib
import threading
from pathlib import Path

import pytest

from gpujobs import errors
from gpujobs.clock import StopToken
from gpujobs.host import Host
from gpujobs.lifecycle import Outcome, execute, new_run_id, open_run
from gpujobs.recipe import Recipe
from gpujobs.settings import Settings
from tests.cloud import BACKENDS, STARTS, Control, Memory, recipe_for

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def run(host: Host, recipe: Recipe, *, reporter: Memory | None = None, stop: StopToken | None = None) -> Outcome:
    run_id = new_run_id()
    open_run(host, recipe, run_id=run_id)
    return execute(host, run_id, stop=stop or StopToken(), reporter=reporter or Memory())


def assert_nothing_left(control: Control, *, machines: int = 1, starts: int = 1) -> None:
    made = control.machines()
    begun = [c for m in made for c in m["commands"] if c["command"].endswith(STARTS) and c["exit_code"] == 0]
    assert (len(made), control.left(), len(begun)) == (machines, [], starts)


def test_outputs_log_and_bill_come_home_and_the_machine_is_gone(
    backend: str, host: Host, control: Control, tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "in.txt").write_text("carried\n")
    reporter = Memory()
    recipe = recipe_for(
        backend,
        workdir=str(tmp_path / "src"),
        setup="echo setting up",
        envs={"WORD": "it's $HOME"},
        run='cat in.txt; echo "$WORD"; mkdir -p out/deep; echo 42 > out/deep/answer; echo oops >&2',
        outputs={"result": "out", "input": "in.txt"},
    )
    outcome = run(host, recipe, reporter=reporter)
    assert (outcome.state, outcome.exit_code, outcome.error, outcome.machines_alive) == ("succeeded", 0, "", 0)
    assert outcome.log.read_bytes() == b"setting up\ncarried\nit's $HOME\noops\n" == bytes(reporter.heard)
    assert (outcome.outputs["result"] / "deep" / "answer").read_text() == "42\n"
    assert outcome.outputs["input"].read_text() == "carried\n"
    assert reporter.phases[:2] == ["plan", "provision"]
    assert reporter.phases[-3:] == ["run", "pull", "release"]
    assert outcome.cost_cny is not None
    assert 0 < outcome.cost_cny < 0.1
    assert_nothing_left(control)


def test_the_local_log_has_the_hash_that_the_machine_recorded(backend: str, host: Host) -> None:
    outcome = run(host, recipe_for(backend, run="seq 1 200000"))
    assert outcome.exit_code == 0
    attempt = host.ledger.attempts(outcome.run_id)[0]
    assert attempt.log_sha256 == hashlib.sha256("".join(f"{n}\n" for n in range(1, 200001)).encode()).hexdigest()
    assert hashlib.sha256(outcome.log.read_bytes()).hexdigest() == attempt.log_sha256


class Spoiler(Memory):
    """Writes into the log here, after each piece of output that it hears of, up to `times` times."""

    def __init__(self, host: Host, run_id: str, times: int) -> None:
        super().__init__()
        self._log, self._times = host.settings.runs / run_id / "output.log", times

    def output(self, data: bytes) -> None:
        super().output(data)
        if self._times > 0:
            self._times -= 1
            with self._log.open("ab") as log:
                log.write(b"spoilt")


@pytest.mark.parametrize(("times", "state"), [(1, "succeeded"), (1000, "failed")])
def test_a_log_here_that_is_not_the_machines_is_fetched_again_and_never_believed(
    backend: str, times: int, state: str, host: Host
) -> None:
    run_id = new_run_id()
    open_run(host, recipe_for(backend, run="echo once"), run_id=run_id)
    outcome = execute(host, run_id, stop=StopToken(), reporter=Spoiler(host, run_id, times))
    assert outcome.state == state
    assert ("does not have the hash" in outcome.error) == (state == "failed")
    assert (outcome.log.read_bytes() == b"once\n") == (state == "succeeded")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo before; exit 3", "the command ended with exit code 3"),
        ("kill -9 $$", "the command was killed by signal 9"),
    ],
)
def test_a_failing_command_is_named_and_its_outputs_are_pulled(
    backend: str, script: str, said: str, host: Host, control: Control
) -> None:
    recipe = recipe_for(backend, run=f"echo kept > kept.txt\n{script}", outputs={"kept": "kept.txt"})
    outcome = run(host, recipe)
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert said in outcome.error
    assert outcome.outputs["kept"].read_text() == "kept\n"
    assert_nothing_left(control)


def test_failing_setup_is_named_and_the_command_never_runs(backend: str, host: Host, control: Control) -> None:
    outcome = run(host, recipe_for(backend, setup="exit 7", run="echo never"))
    assert outcome.exit_code == 1
    assert "setup ended with exit code 7" in outcome.error
    assert b"never" not in outcome.log.read_bytes()
    assert control.left() == []


def test_an_output_that_was_not_written_fails_the_run_by_name(backend: str, host: Host, control: Control) -> None:
    outcome = run(host, recipe_for(backend, outputs={"model": "nowhere/model.bin"}))
    assert outcome.exit_code == 1
    assert "model (nowhere/model.bin)" in outcome.error
    assert_nothing_left(control)


def test_past_max_duration_the_work_is_stopped_and_what_it_wrote_comes_home(
    backend: str, host: Host, control: Control
) -> None:
    recipe = recipe_for(backend, run="echo half > half.txt; sleep 60", outputs={"half": "half.txt"}, max_duration="2s")
    outcome = run(host, recipe)
    assert outcome.exit_code == 5
    assert "max_duration" in outcome.error
    assert outcome.outputs["half"].read_text() == "half\n"
    assert_nothing_left(control)


def test_a_budget_bounds_the_work(backend: str, host: Host, control: Control) -> None:
    price = host.backend(backend).offers(recipe_for(backend))[0].price_cny_per_h
    assert price is not None
    outcome = run(host, recipe_for(backend, run="sleep 60", budget=price / 3600 * 5))
    assert outcome.exit_code == 5
    assert "budget" in outcome.error
    assert control.left() == []


@pytest.mark.parametrize("phase", ["plan", "provision", "boot", "push", "run", "pull"])
def test_a_cancel_at_each_phase_releases_the_machine(
    backend: str, phase: str, host: Host, control: Control, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    stop = StopToken()

    def cancel(name: str) -> None:
        if name == phase:
            stop.stop(errors.Cancelled("enough"))

    command = "echo begun; sleep 60" if phase == "run" else "true"
    recipe = recipe_for(backend, workdir=str(tmp_path), run=command, outputs={"file": "file"})
    outcome = run(host, recipe, reporter=Memory(on_phase=cancel), stop=stop)
    assert (outcome.state, outcome.exit_code, outcome.error) == ("cancelled", 4, "enough")
    assert control.left() == []
    assert outcome.machines_alive == 0


def test_cancelled_work_gets_term_and_leaves_its_last_words_and_outputs(
    backend: str, host: Host, control: Control
) -> None:
    stop, reporter = StopToken(), Memory()
    recipe = recipe_for(
        backend,
        run="trap 'echo farewell; echo saved > ckpt; exit 0' TERM\necho begun\nwhile :; do sleep 0.1; done",
        outputs={"ckpt": "ckpt"},
    )
    threading.Thread(
        target=lambda: reporter.wrote.wait(30) and stop.stop(errors.Cancelled("enough")), daemon=True
    ).start()
    outcome = run(host, recipe, reporter=reporter, stop=stop)
    assert outcome.exit_code == 4
    assert outcome.log.read_bytes().startswith(b"begun\n")
    assert outcome.log.read_bytes().endswith(b"farewell\n")
    assert outcome.outputs["ckpt"].read_text() == "saved\n"
    assert_nothing_left(control)


def test_a_cancel_asked_for_in_the_ledger_is_heard(backend: str, host: Host, control: Control) -> None:
    run_id, reporter = new_run_id(), Memory()
    open_run(host, recipe_for(backend, run="echo begun; sleep 60"), run_id=run_id)

    def ask() -> None:
        reporter.wrote.wait(30)
        host.ledger.request_cancel(run_id, host.clock.now())

    threading.Thread(target=ask, daemon=True).start()
    assert execute(host, run_id, stop=StopToken(), reporter=reporter).exit_code == 4
    assert_nothing_left(control)


def test_a_run_that_was_let_go_is_taken_up_where_it_stands(backend: str, host: Host, control: Control) -> None:
    run_id, first, letting_go = new_run_id(), Memory(), StopToken()
    open_run(host, recipe_for(backend, run="for i in 1 2 3 4 5 6; do echo $i; sleep 0.3; done"), run_id=run_id)
    threading.Thread(
        target=lambda: first.wrote.wait(30) and letting_go.stop(errors.Detached("leaving")), daemon=True
    ).start()
    assert execute(host, run_id, stop=letting_go, reporter=first).state == "running"
    assert len(control.alive()) == 1
    second = Memory()
    outcome = execute(host, run_id, stop=StopToken(), reporter=second)
    assert (outcome.state, outcome.log.read_bytes()) == ("succeeded", b"1\n2\n3\n4\n5\n6\n")
    assert bytes(first.heard + second.heard) == outcome.log.read_bytes()
    assert_nothing_left(control)


def test_two_drivers_never_drive_one_run(backend: str, host: Host, cloud_settings: Settings) -> None:
    run_id, reporter, stop = new_run_id(), Memory(), StopToken()
    open_run(host, recipe_for(backend, run="echo begun; sleep 60"), run_id=run_id)
    other = threading.Thread(target=execute, args=(host, run_id), kwargs={"stop": stop, "reporter": reporter})
    other.start()
    assert reporter.wrote.wait(30)
    with Host.open(cloud_settings, timing=host.timing) as rival, pytest.raises(errors.Busy, match="another process"):
        execute(rival, run_id, stop=StopToken(), reporter=Memory())
    stop.stop(errors.Cancelled("enough"))
    other.join()


def test_secrets_reach_the_command_and_no_file_of_ours(
    backend: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-7d1e")
    outcome = run(host, recipe_for(backend, secrets=["MY_TOKEN"], run='printf %s "$MY_TOKEN" | sha256sum'))
    assert outcome.log.read_bytes().startswith(hashlib.sha256(b"canary-7d1e").hexdigest().encode())
    files = [path for path in host.settings.home.rglob("*") if path.is_file()]
    assert [path for path in files if b"canary-7d1e" in path.read_bytes()] == []
    assert [path for path in files if path.stat().st_mode & 0o077] == []
