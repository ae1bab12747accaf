"""Every act that outlives its process has a named place before and after it; a new one without fails here."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from gpujobs.crash import Point, armed
from tests.cloud import BACKENDS
from tests.crash.acts import Act, acts, acts_of
from tests.crash.lives import live, place
from tests.crash.world import world_of

PLACES = Path(__file__).with_name("places")  # a file for each backend
EXPLAINED: Mapping[str, str] = {  # what has no point, and why none is wanted
    "ledger_database.py Database._write.once": "runs inside the one point of every write",
    "shell_connection.py Connection.execute": "below the point of Shell._exchange",
    "shell_connection.py Connection._open_channel": "below the point of Shell._exchange",
    "shell_connection.py _dial": "below the point of shell.connect",
    "runner.py _bundle": "an archive in memory",
    "transfer.py pull": "makes the folder beside which the result lands; again is fine",
    "progress.py drop": "opens the null device",
    "call_decode.py _Decoder._tensor": "a temporary file that has no name",
    "call_files.py _pickled": "a temporary file, or a file that nobody has been told of yet",
    "call_flow.py _told": "a deployed function's arguments, where the run is over or was never opened",
    "call_job.py Job._outcome": "a decorated call's own copy, once its result is in memory",
    "call_job.py submit": "a decorated call's arguments, where the run was never opened",
    "cli/doctor.py _skew_s": "a question that changes nothing; no run is at work",
    "cli/entry.py _write_down": "the report of a crash of ours",
    "cli/fake.py end": "the local fake cloud's own record",
    "cli/fake.py _answers": "a question to the local fake cloud",
    "cli/outputs.py pull": "a user's copy of what a run has brought home already",
    "cli/outputs.py _copy": "a user's copy of what a run has brought home already",
    "cli/recipes.py init": "a new recipe, before any run",
    "controller.py down": "the controller's record, once it has ended",
    "controller.py _await_api": "a question to our own server while it starts",
    "fleet_program.py FleetRun.begin": "a run that was never opened",
    "fleet_program.py FleetRun._drive": "what went up to the fleet's machines, once they are gone",
    "sweep.py run_tasks": "what went up to the tasks' machines, once they are gone",
    "fleet_task.py Task.drop": "a task's own arguments, once nobody waits for it",
    "prefect_database.py lay_out": "the Prefect server's database, before any run",
    "worker.py serve": "the lock file's own text",
}


def where(act: Act) -> str:
    return f"{act.file} {act.function}"


def test_every_act_is_at_a_point_or_explained() -> None:
    found = list(acts())
    assert len(found) > 50, "the search finds too little"
    bare = {where(act): act for act in found if not act.guarded}
    unexplained = [act for name, act in bare.items() if name not in EXPLAINED]
    assert [f"{act.file}:{act.line}: {act.what} has no `with Point(...)`" for act in unexplained] == []
    assert sorted(EXPLAINED.keys() - bare.keys()) == [], "explained, and there no more"


@pytest.mark.parametrize(
    "line",
    [
        "requests.get(url)",
        "session.request('GET', url)",
        "channel.exec_command('true')",
        "transport.open_session()",
        "engine.begin()",
        "self.engine.begin()",
        "engine.connect().execution_options(writes=True)",
        "path.write_text('a')",
        "open(path, 'w')",
        "path.open('ab')",
        "os.open(path, flags)",
        "draft.replace(path)",
        "path.rename(other)",
    ],
)
def test_the_search_finds_an_act_and_its_point(line: str) -> None:
    bare = f"def act():\n    {line}\n"
    within = f"def act():\n    with Point('file', 'x'):\n        {line}\n"
    assert [act.guarded for act in acts_of(bare, file="x.py")] == [False]
    assert [act.guarded for act in acts_of(within, file="x.py")] == [True]


@pytest.mark.parametrize("line", ["open(path)", "path.open('rb')", "text.replace('a', 'b')", "now.replace(tzinfo=UTC)"])
def test_the_search_takes_reading_for_no_act(line: str) -> None:
    assert list(acts_of(line, file="x.py")) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_run_passes_the_places_that_are_written_down(backend: str, tmp_path: Path) -> None:
    with world_of(backend, tmp_path) as world:
        life, outcome = live(world)
    assert outcome is not None
    assert (outcome.state, outcome.error) == ("succeeded", "")
    found = sorted({place(name) for name in life.passed})
    known = (PLACES / f"{backend}.txt").read_text(encoding="utf-8").splitlines()
    assert found == known, f"where this is meant, write it into {PLACES.name}/{backend}.txt"


def test_a_point_is_passed_before_and_after_whatever_comes_of_the_act() -> None:
    passed: list[str] = []

    def act() -> None:
        with Point("http", "cloud", "create"):
            passed.append("act")
            raise ValueError("no reply")

    with armed(passed.append), pytest.raises(ValueError, match="no reply"):
        act()
    assert passed == ["before http cloud create", "act", "after http cloud create"]


def test_a_point_does_nothing_once_it_is_no_longer_armed() -> None:
    passed: list[str] = []
    with armed(passed.append), armed(lambda _: None), Point("file", "inner"):
        pass
    with Point("file", "outer"):
        pass
    assert passed == []
