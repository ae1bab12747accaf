"""Take each guard out of a copy of the project in turn, and show that a test notices.

    python tools/mutations.py [GUARD ...]     # all, or those whose name holds one of these words
    python tools/mutations.py --write         # and write docs/mutations.md

Exit code 1 where a guard can be taken out unnoticed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PAGE = PROJECT / "docs" / "mutations.md"
COPIED = ("gpujobs", "fake_server", "tests", "recipes", "examples", "flows", "deploy", "tools", "docs")
TESTS_FAILED, ALL_PASSED = 1, 0  # pytest's exit codes; any other is no verdict
WITHIN_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One guard, what is left when it is out, and the tests of which one must fail then."""

    guard: str
    file: str
    old: str
    new: str
    tests: Sequence[str]


MUTATIONS = (
    Mutation(
        guard="the intent is in the ledger before the create call",
        file="gpujobs/renting.py",
        old="        _write_intent(job, choice, name, number)\n"
        "    try:\n        machine = _create(job, backend, choice, name)\n",
        new="    try:\n        machine = _create(job, backend, choice, name)\n"
        "        _write_intent(job, choice, name, number)\n",
        tests=("tests/crash/test_kill.py",),
    ),
    Mutation(
        guard="what an unclear create made is adopted by its name",
        file="gpujobs/renting.py",
        old="        if found is None:\n",
        new="        if True:\n",
        tests=("tests/lifecycle/test_faults.py -k lost_reply",),
    ),
    Mutation(
        guard="an unclear create is looked for through the settling window",
        file="gpujobs/teardown.py",
        old="        past = host.clock.monotonic() - started >= window_s\n",
        new="        past = True\n",
        tests=("tests/lifecycle/test_faults.py -k within_the_settling",),
    ),
    Mutation(
        guard="of two machines of one name the surplus one is released",
        file="gpujobs/teardown.py",
        old="        backend.release(surplus)\n",
        new="        pass\n",
        tests=("tests/lifecycle/test_faults.py -k of_two_machines",),
    ),
    Mutation(
        guard="what shows up after the settling window is released at the run's end",
        file="gpujobs/ending.py",
        old="        if record.id is None:\n            backend",
        new="        if False:\n            backend",
        tests=("tests/lifecycle/test_faults.py -k acts_late",),
    ),
    Mutation(
        guard="gone is what the provider's list has no longer",
        file="gpujobs/teardown.py",
        old="            if not named(backend, machine.name):\n                mark_gone",
        new="            if True:\n                mark_gone",
        tests=("tests/lifecycle/test_faults.py -k of_two_machines",),
    ),
    Mutation(
        guard="a new attempt starts only after the old machine is confirmed gone",
        file="gpujobs/lifecycle_attempts.py",
        old="        return self._released\n",
        new="        return True\n",
        tests=("tests/lifecycle/test_faults.py -k not_confirmed_gone",),
    ),
    Mutation(
        guard="a driver's write with an older fencing token is refused",
        file="gpujobs/ledger_database.py",
        old="    if token != hold.token:\n",
        new="    if False:\n",
        tests=("tests/test_ledger.py -k another_has_claimed",),
    ),
    Mutation(
        guard="the fencing token is checked in the write's own transaction",
        file="gpujobs/ledger_database.py",
        old="                    _check(connection, self.hold, lock=True)\n",
        new="                    self.check_hold()\n",
        tests=("tests/test_ledger.py", "tests/test_ledger_postgresql.py"),
    ),
    Mutation(
        guard="one lease, one driver",
        file="gpujobs/ledger.py",
        old="where(runs.c.id == run_id, free).returning(",
        new="where(runs.c.id == run_id).returning(",
        tests=("tests/test_ledger.py -k one_driver_at_a_time",),
    ),
    Mutation(
        guard="at most once: the token folder is made by mkdir, which succeeds once",
        file="gpujobs/remote/runner.sh",
        old="  if ! mkdir started 2>/dev/null; then\n",
        new="  if ! mkdir -p started 2>/dev/null; then\n",
        tests=("tests/test_remote.py -k many_starts",),
    ),
    Mutation(
        guard="the reaper's grace for machines that are in nobody's ledger yet",
        file="gpujobs/reaper.py",
        old="GRACE = timedelta(minutes=2)",
        new="GRACE = timedelta(0)",
        tests=("tests/lifecycle/test_reaper.py -k young",),
    ),
    Mutation(
        guard="the reaper touches nothing that has not just such a name as ours",
        file="gpujobs/reaper.py",
        old='    return match is not None and match["owner"] == host.settings.owner\n',
        new="    return True\n",
        tests=("tests/lifecycle/test_reaper.py -k never_touched",),
    ),
    Mutation(
        guard="a local log with another hash than the machine's is never believed",
        file="gpujobs/attempt.py",
        old="        if folder.log_sha256() != exit_.sha256:\n",
        new="        if False:\n",
        tests=("tests/lifecycle/test_run.py -k never_believed",),
    ),
    Mutation(
        guard="a machine has the host key that it was first seen with",
        file="gpujobs/shell_connection.py",
        old="    if host_key is not None and found != host_key:\n",
        new="    if False:\n",
        tests=("tests/test_shell.py -k 'another_host_key or overtakes'",),
    ),
    Mutation(
        guard="nothing is sent on a channel that is closed",
        file="gpujobs/shell_pulse.py",
        old="        if not (isinstance(data, _OfChannel) and data.channel.closed):\n",
        new="        if True:\n",
        tests=("tests/test_shell.py -k 'another_host_key or overtakes'",),
    ),
    Mutation(
        guard="an attempt that had ended when its process died is not made again",
        file="gpujobs/lifecycle_attempts.py",
        old='        return rows[-1] if rows and rows[-1].outcome and self._job.run.state == "running" else None\n',
        new="        return None\n",
        tests=("tests/crash/test_kinds.py -k 'max_duration and matrixdc'",),
    ),
    Mutation(
        guard="what could not be saved is known to whoever goes on after the release",
        file="gpujobs/lifecycle_attempts.py",
        old="            attempt.settle(trouble)\n",
        new="            pass\n",
        tests=("tests/crash/test_kinds.py -k not_saved",),
    ),
    Mutation(
        guard="a task that is recorded as done is not done again",
        file="gpujobs/sweep.py",
        old="    begins = set(_OPEN)\n",
        new='    begins = {*_OPEN, "succeeded"}\n',
        tests=("tests/crash/test_kill_tasks.py -k released",),
    ),
    Mutation(
        guard="a task's end is recorded once what it left is in its place",
        file="gpujobs/sweep_clerk.py",
        old="            record = bring_home(left, place)\n",
        new='            self._end(number, at, state="succeeded", exit_code=0)\n'
        "            record = bring_home(left, place)\n",
        tests=("tests/crash/test_kill_tasks.py -k 'second_left or reaped'",),
    ),
    Mutation(
        guard="a log is followed from the byte that is here, over a network that fails",
        file="gpujobs/attempt.py",
        old="            runner.follow(folder.log_size(), keep, stop=self._line.stop)\n",
        new="            runner.follow(0, keep, stop=self._line.stop)\n",
        tests=("tests/crash/test_network.py -k every_phase",),
    ),
    Mutation(
        guard="what a cancelled run pulls is bounded, by hanging up",
        file="gpujobs/line.py",
        old='            grace.stop(MachineLost(f"not done within {limit_s:.0f} s"))\n            self.hang_up()\n',
        new='            grace.stop(MachineLost(f"not done within {limit_s:.0f} s"))\n',
        tests=("tests/crash/test_network.py -k cancel_whose_pull",),
    ),
    Mutation(
        guard="a key whose installing was cut off is installed by the next login",
        file="gpujobs/line.py",
        old="            if shell.by_password:  #",
        new="            if not pinned:  #",
        tests=("tests/crash/test_network.py -k key_whose",),
    ),
    Mutation(
        guard="a command over its time on a silent connection is a lost connection",
        file="gpujobs/shell_exchange.py",
        old="            self._connection.check_heard()  #",
        new="            pass  #",
        tests=("tests/test_shell_broken.py -k over_its_time_on_a_peer",),
    ),
    Mutation(
        guard="a connection whose peer says nothing is taken for lost",
        file="gpujobs/shell_connection.py",
        old="        if silent_s > self._timeouts.dead_after_s:\n",
        new="        if False:\n",
        tests=("tests/test_shell_broken.py -k 'frozen_peer and waiting and fake'",),
    ),
    Mutation(
        guard="an upload removes what a cut one has left",
        file="gpujobs/transfer.py",
        old="rm -f {target}{_DRAFTS} && ",
        new="",
        tests=("tests/test_transfer.py -k next_upload",),
    ),
    Mutation(
        guard="an end that a dead process may not have told is told by the reaper",
        file="gpujobs/reaper.py",
        old="        _tell_untold(host, reporter)\n",
        new="        pass\n",
        tests=("tests/test_notify.py -k told_by_the_reaper",),
    ),
    Mutation(
        guard="a flow run counts as deleted only at the second look",
        file="gpujobs/worker_deleted.py",
        old="        twice = found.intersection(self._found)\n",
        new="        twice = found\n",
        tests=("tests/prefect/test_cancel.py -k second_look",),
    ),
    Mutation(
        guard="a state is told until the server has heard it",
        file="gpujobs/prefect_client.py",
        old="                if not _passes(error):\n",
        new="                if True:\n",
        tests=("tests/prefect/test_restarts_phases.py -k lost_on_its_way",),
    ),
    Mutation(
        guard="a run whose state the server refuses holds up no other",
        file="gpujobs/worker_upkeep.py",
        old="            failed += 1\n",
        new="            raise _Failed(str(error)) from error\n",
        tests=("tests/prefect/test_upkeep.py -k holds_up_no_other",),
    ),
    Mutation(
        guard="a state is not told of a flow run that has moved on meanwhile",
        file="gpujobs/worker_upkeep.py",
        old=" or not await self._is_unmoved(flow_run):\n",
        new=":\n",
        tests=("tests/prefect/test_upkeep.py -k got_another_since",),
    ),
    Mutation(
        guard="what is retried is taken once its last life is over",
        file="gpujobs/worker.py",
        old="        return [one for one in due if run_id_of(str(one.flow_run.id)) not in self._floor.sitting]\n",
        new="        return due\n",
        tests=("tests/prefect/test_upkeep.py -k before_its_last_life",),
    ),
    Mutation(
        guard="a run that another host has ended meanwhile is not begun anew",
        file="gpujobs/flow.py",
        old=" and self._sent_at < known.ended_at):\n",
        new=" and False):\n",
        tests=("tests/prefect/test_retry.py -k another_host_has_done",),
    ),
    Mutation(
        guard="a run that was taken too late is not taken for one that is retried",
        file="gpujobs/flow.py",
        old="        return was_sent_again(await self._history())\n",
        new="        return True\n",
        tests=("tests/prefect/test_retry.py -k came_after_the_runs_end",),
    ),
    Mutation(
        guard="offers in doubt come behind all others",
        file="gpujobs/plan.py",
        old="            return (offer.in_doubt, place, price)\n",
        new="            return (False, place, price)\n",
        tests=("tests/lifecycle/test_plan.py -k comes_last",),
    ),
)


def main(arguments: Sequence[str]) -> int:
    """Try the mutations that the arguments name, and print a verdict on each."""
    words = [word for word in arguments if not word.startswith("--")]
    chosen = [one for one in MUTATIONS if not words or any(word in one.guard for word in words)]
    verdicts = [(one, *verdict(one)) for one in chosen]
    if "--write" in arguments:
        PAGE.write_text(page(verdicts))
    unnoticed = [one.guard for one, test, _ in verdicts if not test]
    for guard in unnoticed:
        print(f"NOT NOTICED: {guard}")
    return 1 if unnoticed else 0


def verdict(mutation: Mutation) -> tuple[str, float]:
    """Give the first test that fails without the guard, or "", and how long that took in seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        copied(copy)
        path = copy / mutation.file
        path.write_text(mutated(path.read_text(), mutation))
        test = next(failures(copy, mutation.tests), "")
    took_s = time.monotonic() - began
    print(f"{took_s:6.1f} s  {mutation.guard}: {test or 'NO TEST FAILS'}", flush=True)
    return test, took_s


def mutated(text: str, mutation: Mutation) -> str:
    """Take the guard out. Raises ValueError where it is not there just once."""
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file} has {text.count(mutation.old)} times, not once: {mutation.old!r}")
    return text.replace(mutation.old, mutation.new)


def copied(to: Path) -> None:
    """Copy what the tests need."""
    to.mkdir()
    for name in COPIED:
        shutil.copytree(PROJECT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (path for path in PROJECT.iterdir() if path.is_file()):
        shutil.copy(path, to)


def failures(project: Path, arguments: Sequence[str]) -> Iterator[str]:
    """Run tests of a copy of the project, as pytest's arguments name them, and give the first that fails of each."""
    environment = {**os.environ, "PYTHONPATH": str(project), "COLUMNS": "400"}
    for tests in arguments:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
        done = subprocess.run(
            command, cwd=project, env=environment, timeout=WITHIN_S, capture_output=True, text=True, check=False
        )
        if done.returncode not in (TESTS_FAILED, ALL_PASSED):
            raise RuntimeError(f"{tests} gives no verdict:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        if found := re.search(r"^(?:FAILED|ERROR) ([^\s\[]+)", done.stdout, re.MULTILINE):
            yield found[1]
        elif done.returncode == TESTS_FAILED:
            raise RuntimeError(f"{tests} fails without naming a test:\n{done.stdout[-2000:]}")


def page(verdicts: Sequence[tuple[Mutation, str, float]]) -> str:
    """Write the result as a page of the documents."""
    rows = [f"| {one.guard} | `{one.file}` | `{test or 'none'}` |" for one, test, _ in verdicts]
    return "\n".join(
        [
            "# Each guard taken out, and who notices",
            "",
            "Written by `python tools/mutations.py --write`: each guard is taken out of a copy of the project, and",
            "the tests of that place are run until one fails. A test holds the script's list of guards to the code.",
            "",
            "| The guard | Where | The first test that fails without it |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
