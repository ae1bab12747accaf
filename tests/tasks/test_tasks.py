"""The tasks of a recipe are one run with one bill: each is done, told of, and done again where its machine was lost."""

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from gpujobs import fleet_run
from gpujobs.cli.tasks import failed_tasks
from gpujobs.clock import StopToken
from gpujobs.ending import keep_in_store
from gpujobs.errors import BadInput, Busy, Cancelled, JobFailed
from gpujobs.host import Host
from gpujobs.ledger_rows import Kind, TaskRecord
from gpujobs.lifecycle import Outcome, execute, new_run_id, open_run
from gpujobs.recipe import Recipe
from gpujobs.renting import Job
from gpujobs.run_folder import RunFolder, attempt_log
from gpujobs.store import Store
from gpujobs.sweep_clerk import Clerk
from tests.clocks import REAL_LIMIT_S, eventually
from tests.cloud import BACKENDS, Control, Memory, recipe_for
from tests.conftest import QUICK
from tests.ledger_values import a_run, an_attempt

HOLD = "[ $GPUJOBS_TASK_INDEX = 0 ] || sleep 6000"


def run(host: Host, recipe: Recipe) -> Outcome:
    run_id = new_run_id()
    open_run(host, recipe, run_id=run_id)
    return execute(host, run_id, stop=StopToken(), reporter=Memory())


@contextmanager
def running(host: Host, recipe: Recipe, stop: StopToken) -> Iterator[tuple[str, list[Outcome]]]:
    """Give the id of a run that a thread drives, and where its outcome will be; waits for it at the end."""
    run_id, ended = new_run_id(), list[Outcome]()
    open_run(host, recipe, run_id=run_id)
    thread = threading.Thread(
        target=lambda: ended.append(execute(host, run_id, stop=stop, reporter=Memory())), daemon=True
    )
    thread.start()
    yield run_id, ended
    thread.join(2 * REAL_LIMIT_S)
    assert ended, "the run has not ended"


def states(host: Host, run_id: str) -> list[str]:
    return [row.state for row in host.ledger.tasks(run_id)]


def test_each_combination_runs_by_itself_and_all_have_one_bill(host: Host, control: Control, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "metrics.json").write_text('{"stale": 1}')
    recipe = recipe_for(
        "autodl",
        workdir=str(tmp_path / "src"),
        envs={"KEPT": "yes"},
        setup="echo once >prepared",
        matrix={"WORD": ["a b", "it's $HOME"], "N": [1, 2]},
        concurrency=2,
        run="""
            [ ! -e mine ] && touch mine && cat prepared && [ "$KEPT" = yes ]
            mkdir out && printf %s "$WORD" >out/word
            [ "$N" = 2 ] || echo "{\\"n\\": $N, \\"bad\\": NaN, \\"deep\\": {}}" >metrics.json
            [ "$N$WORD" != "2a b" ] || exit 3
            echo "task $GPUJOBS_TASK_INDEX of $GPUJOBS_TASK_COUNT"
        """,
        outputs={"result": "out"},
    )
    outcome = run(host, recipe)
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert "1 of 4 tasks did not succeed (1)" in outcome.error
    rows = host.ledger.tasks(outcome.run_id)
    assert [(row.state, row.exit_code, row.tries, row.metrics, row.error) for row in rows] == [
        ("succeeded", 0, 1, '{"n": 1}', ""),
        ("failed", 3, 1, "{}", "the command ended with exit code 3"),
        ("succeeded", 0, 1, '{"n": 1}', ""),
        ("succeeded", 0, 1, "{}", ""),
    ]
    assert json.loads(rows[3].parameters) == {"WORD": "it's $HOME", "N": "2"}
    assert all(row.began_at and row.ended_at and row.began_at <= row.ended_at for row in rows)
    homes = [outcome.outputs[f"task-{number}"] for number in range(4)]
    assert [(home / "result" / "word").read_text() for home in homes] == ["a b", "a b", "it's $HOME", "it's $HOME"]
    assert (homes[2] / "output.log").read_bytes() == b"once\ntask 2 of 4\n"
    assert {b"[2] once", b"[2] task 2 of 4", b"[1] once"} <= set(outcome.log.read_bytes().splitlines())
    assert {row.machine for row in rows} <= {one["name"] for one in control.machines()}
    assert outcome.cost_cny == pytest.approx(sum(bill.cost_cny or 0 for bill in host.ledger.bills(outcome.run_id)))
    assert (len(control.machines()) <= 2, control.left()) == (True, [])

    again = failed_tasks(host.ledger, host.ledger.get_run(outcome.run_id))
    assert (again.only_tasks, again.machines_at_once) == ([1], 1)
    second = run(
        host, again.model_copy(update={"run": "echo task $GPUJOBS_TASK_INDEX of $GPUJOBS_TASK_COUNT; mkdir out"})
    )
    assert (second.state, states(host, second.run_id)) == ("succeeded", ["succeeded"])
    assert (second.outputs["task-1"] / "output.log").read_bytes() == b"task 1 of 4\n"
    assert control.left() == []


def test_a_task_ends_as_its_command_does_and_the_others_go_on(host: Host, control: Control) -> None:
    modes = ["exit 0", "kill -9 $$", "rm kept", "sleep 6000 & exit 0", "seq 1 20000 | tail -c 90000; printf end"]
    recipe = recipe_for(
        "matrixdc", tasks=[{"MODE": mode} for mode in modes], run='touch kept; eval "$MODE"', outputs={"kept": "kept"}
    )
    outcome = run(host, recipe)
    rows = host.ledger.tasks(outcome.run_id)
    assert [(row.state, row.exit_code, row.error) for row in rows] == [
        ("succeeded", 0, ""),
        ("failed", 137, "the command was killed by signal 9"),
        ("failed", 0, "outputs that the command did not write: kept"),
        ("succeeded", 0, ""),
        ("succeeded", 0, ""),
    ]
    wrote = (outcome.outputs["task-4"] / "output.log").read_bytes()
    assert (len(wrote), wrote[-9:]) == (90003, b"20000\nend")
    told = [line for line in outcome.log.read_bytes().splitlines() if line.startswith(b"[4] ")]
    assert b"\n".join(line.removeprefix(b"[4] ") for line in told) == wrote
    assert (len(control.machines()), control.left()) == (1, [])


def test_the_tasks_of_a_lost_machine_go_again_elsewhere(host: Host, control: Control) -> None:
    host.timing = replace(QUICK, lost_s=8.0)
    control.ask("POST", "faults", {"kind": "dies_mid_run", "seconds": 5000, "count": 1})
    recipe = recipe_for("matrixdc", tasks=3, run="case $GPUJOBS_MACHINE-$GPUJOBS_TASK_INDEX in *-1-1) sleep 6000; esac")
    with running(host, recipe, StopToken()) as (run_id, ended):
        eventually(lambda: states(host, run_id)[:2] == ["succeeded", "running"], what="the second task is at work")
        control.ask("POST", "clock", {"advance": 5001})
    assert (ended[0].state, states(host, run_id)) == ("succeeded", ["succeeded"] * 3)
    rows = host.ledger.tasks(run_id)
    assert [(row.machine.rpartition("-")[2], row.tries) for row in rows] == [("1", 1), ("2", 2), ("2", 1)]
    assert (len(control.machines()), control.left()) == (2, [])


HOLD_WITH_FILES = """
    mkdir out && echo "half of $GPUJOBS_TASK_INDEX" >out/half && echo '{"loss": 0.5}' >metrics.json && echo begun
    [ $GPUJOBS_TASK_INDEX != 0 ] || exit 0
    trap 'echo told >out/told; exit 9' TERM
    while true; do sleep 0.1; done
"""


def cancelled_at_work(host: Host, backend: str) -> tuple[Outcome, str]:
    """Cancel a run whose second task is at work and has written; give its outcome and its id."""
    recipe = recipe_for(backend, tasks=3, run=HOLD_WITH_FILES, outputs={"result": "out"})
    with running(host, recipe, StopToken()) as (run_id, ended):
        log = RunFolder(host.settings.runs / run_id).log
        eventually(lambda: log.exists() and b"[1] begun" in log.read_bytes(), what="the second task is at work")
        host.ledger.request_cancel(run_id, host.clock.now())
    return ended[0], run_id


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cancel_ends_the_tasks_and_brings_home_what_they_have_written(
    backend: str, host: Host, control: Control
) -> None:
    outcome, run_id = cancelled_at_work(host, backend)
    assert (outcome.state, outcome.exit_code) == ("cancelled", 4)
    rows = host.ledger.tasks(run_id)
    assert [row.state for row in rows] == ["succeeded", "cancelled", "cancelled"]
    home = outcome.outputs["task-1"]
    assert sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()) == [
        "metrics.json",
        "output.log",
        "result/half",
        "result/told",
    ]
    assert (home / "result" / "half").read_text() == "half of 1\n"
    assert (home / "output.log").read_bytes().startswith(b"begun\n")
    assert (rows[1].metrics, home.stat().st_mode & 0o777) == ('{"loss": 0.5}', 0o700)
    assert "task-2" not in outcome.outputs
    assert [path.name for path in home.parent.iterdir() if path.name.startswith(".")] == []
    assert (len(control.machines()), control.left()) == (1, [])


def test_who_ends_the_run_of_a_dead_process_brings_home_what_its_tasks_have_written(
    host: Host, control: Control
) -> None:
    stop = StopToken()
    recipe = recipe_for("matrixdc", tasks=2, run=HOLD_WITH_FILES, outputs={"result": "out"})
    with running(host, recipe, stop) as (run_id, _):
        log = RunFolder(host.settings.runs / run_id).log
        eventually(lambda: log.exists() and b"[1] begun" in log.read_bytes(), what="the second task is at work")
        stop.stop(Busy("another has it"))
    cancel = StopToken()
    cancel.stop(Cancelled("by the reaper"))
    outcome = execute(host, run_id, stop=cancel, reporter=Memory())
    assert (outcome.state, states(host, run_id)[1]) == ("cancelled", "cancelled")
    assert (outcome.outputs["task-1"] / "result" / "half").read_text() == "half of 1\n"
    assert host.ledger.tasks(run_id)[1].metrics == '{"loss": 0.5}'
    assert control.left() == []


def test_max_duration_counts_from_the_first_machine_whoever_goes_on(host: Host, control: Control) -> None:
    stop = StopToken()
    recipe = recipe_for("matrixdc", tasks=2, run="sleep 6000", max_duration="1h")
    with running(host, recipe, stop) as (run_id, _):
        eventually(lambda: "running" in states(host, run_id), what="a task is at work")
        stop.stop(Busy("another has it"))
    [machine] = host.ledger.machines(run_id)
    host.ledger.update_machine(machine.name, running_at=host.clock.now() - timedelta(hours=2))
    outcome = execute(host, run_id, stop=StopToken(), reporter=Memory())
    assert (outcome.state, outcome.exit_code) == ("failed", 5)
    assert "max_duration (3600 s) was reached" in outcome.error
    assert states(host, run_id) == ["cancelled", "cancelled"]
    assert (len(control.machines()), control.left()) == (1, [])


def test_the_budget_is_for_all_tasks_together(host: Host, control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    spent = 0.0
    monkeypatch.setattr(fleet_run, "spent_cny", lambda *_: spent)
    with running(host, recipe_for("matrixdc", tasks=3, run=HOLD, budget=5.0), StopToken()) as (run_id, ended):
        eventually(lambda: states(host, run_id)[:2] == ["succeeded", "running"], what="the second task is at work")
        spent = 5.0
    assert (ended[0].state, ended[0].exit_code) == ("failed", 5)
    assert "budget of 5.00 CNY" in ended[0].error
    assert states(host, run_id) == ["succeeded", "cancelled", "cancelled"]
    assert control.left() == []


def test_who_takes_up_the_run_of_a_dead_process_does_only_what_is_left(host: Host, control: Control) -> None:
    stop = StopToken()
    recipe = recipe_for("matrixdc", tasks=3, run="case $GPUJOBS_MACHINE-$GPUJOBS_TASK_INDEX in *-1-1) sleep 6000; esac")
    with running(host, recipe, stop) as (run_id, ended):
        eventually(lambda: states(host, run_id)[:2] == ["succeeded", "running"], what="the second task is at work")
        stop.stop(Busy("another has it"))
    assert (ended[0].state, len(control.alive())) == ("running", 1)
    assert states(host, run_id) == ["succeeded", "running", "waiting"]
    outcome = execute(host, run_id, stop=StopToken(), reporter=Memory())
    assert (outcome.state, states(host, run_id)) == ("succeeded", ["succeeded"] * 3)
    assert [row.machine.rpartition("-")[2] for row in host.ledger.tasks(run_id)] == ["1", "2", "2"]
    assert (len(control.machines()), control.left()) == (2, [])


def job_of(host: Host, recipe: Recipe, *, kind: Kind = "tasks") -> Job:
    open_run(host, recipe, run_id="k3x9", kind=kind)
    return Job(host=host, run=host.ledger.get_run("k3x9"), recipe=recipe, stop=StopToken(), reporter=Memory())


def test_what_comes_after_the_clerk_has_failed_is_closed_all_the_same(host: Host) -> None:
    job = job_of(host, recipe_for("autodl", tasks=2))
    clerk, left = Clerk(job), io.BytesIO(b"rubbish")
    clerk.failed(7, JobFailed("of no task that the ledger knows"))
    clerk.came(0, left)
    clerk.start()
    clerk.close()
    assert "no task 7" in str(clerk.error)
    assert (left.closed, job.stop.error) == (True, clerk.error)


def test_logs_of_a_fleets_machines_are_put_into_the_store_though_the_runs_log_has_them_all(
    host: Host, tmp_path: Path
) -> None:
    job = job_of(host, recipe_for("autodl"), kind="fleet")
    host.store = Store(f"file://{tmp_path}/store")
    for number, text in ((1, b"one\n"), (2, b"two\n")):
        (job.folder.path / attempt_log(number)).write_bytes(text)
        attempt = replace(an_attempt("k3x9", number), log_sha256=hashlib.sha256(text).hexdigest())
        host.ledger.add_attempt(attempt)
    job.folder.log.write_bytes(b"one\ntwo\n")
    keep_in_store(job)
    kept = host.store.manifest("k3x9")
    assert kept is not None
    assert {"output.log", "attempt-1.log", "attempt-2.log"} <= set(kept.files)


@pytest.mark.parametrize(
    ("parts", "state", "done", "words"),
    [
        ({}, "failed", [], "has no tasks, only one job; submit its recipe again"),
        ({"tasks": 2}, "running", [0], "is not over; wait for it, or stop it: gpujobs cancel k3x9"),
        ({"tasks": 2}, "succeeded", [0, 1], "all 2 tasks of run k3x9 .* succeeded; there is nothing to do again"),
    ],
)
def test_a_run_with_nothing_to_do_again_is_refused(
    host: Host, parts: dict[str, int], state: str, done: list[int], words: str
) -> None:
    host.ledger.add_run(a_run(state=state, recipe_json=recipe_for("autodl", **parts).model_dump_json()))
    host.ledger.add_tasks([TaskRecord(run_id="k3x9", number=number, state="succeeded") for number in done])
    with pytest.raises(BadInput, match=words):
        failed_tasks(host.ledger, host.ledger.get_run("k3x9"))
