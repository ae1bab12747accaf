"""The runner starts work at most once, outlives every connection, and tells truthfully how it ended."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from gpujobs.errors import BadInput, RemoteFailure
from gpujobs.runner import Runner, RunStatus
from gpujobs.shell import Shell, quote_path
from tests.sshd.machines import Server
from tests.sshd.runs import begin, end_of, log_of, pids_of, says, spec, until

pytest_plugins = ("tests.sshd.fixtures",)

# The way of all work


def test_work_goes_through_its_phases_to_a_record(runner: Runner) -> None:
    assert runner.status() == RunStatus(phase="absent", log_size=0, exit=None)
    runner.install(spec("echo out; echo err >&2; pwd; cat ../go", setup="echo setting up"))
    assert runner.status() == RunStatus(phase="installed", log_size=0, exit=None)
    assert runner.start()
    log = log_of(runner).decode().splitlines()
    assert (log[:3], log[3].endswith("/gj-me-abcd-1/work")) == (["setting up", "out", "err"], True)
    status = runner.status()
    assert (status.phase, status.exit and status.exit.code, status.exit and status.exit.reason) == ("ended", 1, "exit")
    assert not runner.start()


def test_a_record_says_when_how_long_and_how(runner: Runner) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    begin(runner, "sleep 1; exit 3")
    record = end_of(runner)
    assert (record.code, record.signal, record.reason) == (3, None, "exit")
    assert record.started_at is not None
    assert before <= record.started_at < record.ended_at <= datetime.now(UTC)


def test_setup_comes_first_in_its_own_phase(shell: Shell, runner: Runner) -> None:
    begin(
        runner,
        "until [ -e ../go ]; do sleep 0.05; done; cat made",
        setup="until [ -e ../on ]; do sleep 0.05; done; echo 1 >made",
    )
    until(lambda: runner.status().phase == "setup")
    shell.check(f"touch {quote_path(runner.folder + '/on')}", what="going on")
    until(lambda: runner.status().phase == "running")
    shell.check(f"touch {quote_path(runner.folder + '/go')}", what="going on")
    assert log_of(runner) == b"1\n"


def test_failed_setup_ends_the_attempt_without_the_work(runner: Runner) -> None:
    begin(runner, "echo never", setup="false; echo not reached")
    assert (log_of(runner), end_of(runner).code, end_of(runner).reason) == (b"", 1, "setup")


def test_a_secret_does_not_outlive_failed_setup(shell: Shell, runner: Runner) -> None:
    begin(runner, "true", setup="exit 3", secrets={"A": "b"})
    assert end_of(runner).reason == "setup"
    assert b"env" not in shell.run(f"ls {quote_path(runner.folder)}").stdout.split()


def test_a_signal_is_recorded(runner: Runner) -> None:
    begin(runner, "kill -SEGV $$")
    record = end_of(runner)
    assert (record.code, record.signal, record.reason) == (139, 11, "exit")


def test_of_many_starts_at_once_one_starts_the_work(server: Server, runner: Runner, place: str) -> None:
    runner.install(spec("echo run >>../count; cat ../count"))

    def start(_: int) -> bool:
        with server.connect() as shell:
            return Runner(shell, base=place, name=runner.name).start()

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(start, range(6))) == [False] * 5 + [True]
    assert log_of(runner) == b"run\n"


def test_installing_again_after_the_start_changes_nothing(runner: Runner) -> None:
    begin(runner, "until [ -e ../go ]; do sleep 0.05; done; echo first")
    runner.install(spec("echo second"))
    runner._shell.check(
        f"cat {quote_path(runner.folder)}/run.sh | grep first; touch {quote_path(runner.folder)}/go", what="look"
    )
    assert log_of(runner) == b"first\n"


def test_nothing_starts_that_is_not_installed(runner: Runner) -> None:
    with pytest.raises(RemoteFailure):
        runner.start()


# Variables


VALUES = {
    "QUOTES": 'it\'s "so"',
    "LINES": "a\nb\n",
    "DOLLAR": "$HOME `id` \\",
    "EMPTY": "",
    "shell": "ü",
    "part": "x",
}


def test_values_arrive_as_they_are_and_secrets_leave_no_trace(shell: Shell, runner: Runner) -> None:
    names = [*VALUES, "TOKEN"]
    begin(runner, f"{NAMES_DUMP} {' '.join(names)}; sleep 1", envs=VALUES, secrets={"TOKEN": "s3cr3t\n'"})
    assert "s3cr3t" not in repr(spec("true", secrets={"TOKEN": "s3cr3t"}))
    until(says(runner, b"}"))
    folder = quote_path(runner.folder)
    assert shell.run(f"grep -rl s3cr[3]t {folder}/[!o]* /proc/[0-9]*/cmdline 2>/dev/null").stdout == b""
    assert json.loads(log_of(runner)) == {**VALUES, "TOKEN": "s3cr3t\n'"}
    assert b"env" not in shell.check(f"ls {folder}", what="listing").split()


NAMES_DUMP = "python3 -c 'import json, os, sys; print(json.dumps({n: os.environ[n] for n in sys.argv[1:]}))'"


def test_files_on_the_machine_are_private(shell: Shell, runner: Runner) -> None:
    begin(runner, "umask; touch made", secrets={"A": "b"})
    assert log_of(runner) == b"0022\n"
    command = f"cd {quote_path(runner.folder)} && stat -c '%a %n' . run.sh output.log exit.json work/made"
    modes = shell.run(command).stdout
    assert modes.decode().split() == [
        "700",
        ".",
        "600",
        "run.sh",
        "600",
        "output.log",
        "600",
        "exit.json",
        "644",
        "work/made",
    ]


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A\n", "UID", "a;id", "ü"])
def test_a_bad_name_of_a_variable_is_refused_here(shell: Shell, place: str, name: str) -> None:
    with pytest.raises(BadInput, match=r"environment variable|cannot be set"):
        Runner(shell, base=place, name="x").install(spec("true", envs={name: "x"}))


@pytest.mark.parametrize("value", ["a\0b", "x" * 130_000])
def test_a_value_that_no_variable_can_hold_is_refused_here(shell: Shell, place: str, value: str) -> None:
    with pytest.raises(BadInput, match="the value of A"):
        Runner(shell, base=place, name="x").install(spec("true", envs={"A": value}))


PRINTS_AND_WAITS = (
    'import os, time; print(1); [time.sleep(0.05) for _ in iter(lambda: os.path.exists("/root/read"), True)]'
)


def test_python_output_is_not_held_back_and_conda_comes_first(fake_machine: Server) -> None:
    with fake_machine.connect() as shell:
        runner = Runner(shell, base="~/conda-first", name="gj-1")
        begin(runner, f"command -v python3; python3 -c '{PRINTS_AND_WAITS}'")
        until(says(runner, b"1\n"))
        shell.check("touch ~/read", what="letting it end")
        assert log_of(runner) == b"/root/miniconda3/bin/python3\n1\n"


# Ends that others bring


def test_cancelled_work_may_clean_up(runner: Runner) -> None:
    begin(runner, "trap 'echo saved; exit 4' TERM; echo up; while :; do sleep 0.1; done")
    until(says(runner, b"up"))
    runner.cancel(10)
    record = end_of(runner)
    assert (record.code, record.signal, record.reason) == (4, None, "cancelled")
    assert log_of(runner).endswith(b"saved\n")
    runner.cancel(10)


def test_work_that_ignores_term_is_killed_after_its_grace(runner: Runner) -> None:
    begin(runner, "trap '' TERM; echo up; while :; do sleep 0.1; done")
    until(says(runner, b"up"))
    started = time.monotonic()
    runner.cancel(2)
    assert 2 <= time.monotonic() - started < 8
    record = end_of(runner)
    assert (record.code, record.signal, record.reason) == (137, 9, "cancelled")


def test_a_child_gets_the_whole_grace_though_its_parent_died_at_once(runner: Runner) -> None:
    begin(runner, SAVES_FOR_3_S + "\nwait; echo unreached", grace_s=0)
    until(says(runner, b"up"))
    runner.cancel(20)
    assert log_of(runner) == b"up\nsaved\n"
    assert end_of(runner).reason == "cancelled"


SAVES_FOR_3_S = """python3 - <<'END' &
import signal, time
def save(*_):
    time.sleep(3)
    print("saved")
    raise SystemExit
signal.signal(signal.SIGTERM, save)
print("up")
time.sleep(60)
END"""


def test_work_cancelled_before_its_start_never_starts(runner: Runner) -> None:
    runner.install(spec("echo never"))
    runner.cancel(5)
    assert not runner.start()
    record = end_of(runner)
    assert (record.reason, record.started_at, record.log_size) == ("cancelled", None, 0)
    assert record.code != 0


def test_time_is_up_for_the_work_and_all_that_it_started(shell: Shell, runner: Runner) -> None:
    begin(
        runner, "sleep 601 & setsid sleep 602 & (trap '' TERM; exec sleep 603) & sleep 604", max_duration_s=2, grace_s=1
    )
    record = end_of(runner)
    assert (record.code, record.reason) == (143, "max_duration")
    until(lambda: shell.run("grep -zl '^60[1-4]$' /proc/[0-9]*/cmdline").stdout == b"")


def test_time_counts_setup_too_and_then_no_work_begins(runner: Runner) -> None:
    begin(runner, "echo never", setup="trap '' TERM; sleep 1.5; sleep 1.5; exit 0", max_duration_s=1, grace_s=20)
    record = end_of(runner)
    assert (log_of(runner), record.code, record.reason) == (b"", 143, "max_duration")


@pytest.mark.parametrize(
    "how", ["(while :; do echo a; sleep 0.01; done)", "setsid sh -c 'while :; do echo a; sleep 0.01; done'"]
)
def test_what_the_work_leaves_behind_ends_with_it_and_the_log_is_final(runner: Runner, how: str) -> None:
    begin(runner, f"{how} & sleep 0.5")
    record = end_of(runner)
    time.sleep(0.3)
    assert (record.code, record.reason, runner.status().log_size) == (0, "exit", record.log_size)


def test_a_lease_ends_the_work_that_nobody_asks_for(runner: Runner) -> None:
    begin(runner, "echo up; sleep 600", lease_s=5)
    ends_at = time.monotonic() + 8
    while time.monotonic() < ends_at:
        runner.heartbeat()
        time.sleep(0.5)
    assert runner.status().phase == "running"
    record = end_of(runner)
    assert (record.code, record.reason) == (143, "lease")


@pytest.fixture
def gpu_runner(fake_machine: Server, request: pytest.FixtureRequest) -> Iterator[Runner]:
    with fake_machine.connect() as shell:
        yield Runner(shell, base=f"~/{abs(hash(request.node.name))}", name="gj-me-abcd-1")
        shell.check("rm -f /run/gpu-utilization", what="letting the GPU rest")


def test_work_that_leaves_the_gpu_idle_is_stopped_and_says_so(gpu_runner: Runner) -> None:
    begin(gpu_runner, "echo up; sleep 600", idle_s=2)
    record = end_of(gpu_runner)
    assert (record.code, record.reason) == (143, "idle")


def test_work_on_the_gpu_is_not_idle_until_it_stops_using_it(gpu_runner: Runner) -> None:
    ask = gpu_runner._shell.check
    ask("echo 5 >/run/gpu-utilization", what="using the GPU")
    begin(gpu_runner, "sleep 600", idle_s=2)
    looked = f"cut -d ' ' -f 1 {quote_path(gpu_runner.folder)}/gpu 2>/dev/null || echo 0"
    until(lambda: int(ask(looked, what="looking") or 0))
    first = int(ask(looked, what="looking"))
    until(lambda: int(ask(looked, what="looking") or 0) >= first + 4)
    assert gpu_runner.status().phase == "running"
    ask("echo 4 >/run/gpu-utilization", what="letting the GPU rest")
    assert end_of(gpu_runner).reason == "idle"


def test_set_up_is_not_idle_work(gpu_runner: Runner) -> None:
    begin(gpu_runner, "echo done", setup="until [ -s ../gpu ]; do sleep 0.1; done; sleep 6", idle_s=4)
    record = end_of(gpu_runner)
    assert (record.code, record.reason) == (0, "exit")


def test_a_gpu_that_does_not_tell_its_use_is_not_idle(gpu_runner: Runner) -> None:
    gpu_runner._shell.check("echo '[N/A]' >/run/gpu-utilization", what="hiding the GPU's use")
    begin(gpu_runner, "until [ -s ../gpu ]; do sleep 0.1; done; sleep 4", idle_s=1)
    assert end_of(gpu_runner).reason == "exit"


def test_a_killed_supervisor_takes_the_work_with_it_and_is_told(shell: Shell, runner: Runner) -> None:
    begin(runner, "echo up; exec sleep 611")
    until(says(runner, b"up"))
    shell.check(f"kill -KILL {pids_of(shell, runner)['pid']}", what="killing")
    assert log_of(runner) == b"up\n"
    status = runner.status()
    assert status.phase == "lost"
    until(lambda: shell.run("grep -zl '^611$' /proc/[0-9]*/cmdline").stdout == b"")
    until(lambda: runner.status().exit is not None)
    record = end_of(runner)
    assert (record.code, record.reason, runner.status().phase) == (137, "lost", "lost")
    assert not runner.start()


def test_when_all_of_ours_is_killed_the_attempt_is_lost(shell: Shell, runner: Runner) -> None:
    begin(runner, "echo up; sleep 60")
    until(says(runner, b"up"))
    pids = pids_of(shell, runner)
    shell.run(f"kill -KILL -{pids['pid']}; kill -KILL -{pids['job']}")
    assert log_of(runner) == b"up\n"
    assert runner.status() == RunStatus(phase="lost", log_size=3, exit=None)
    runner.cancel(1)
    assert (end_of(runner).reason, runner.status().phase) == ("lost", "lost")


def test_a_reused_pid_is_not_taken_for_the_supervisor(shell: Shell, runner: Runner) -> None:
    runner.install(spec("true"))
    shell.check(
        f"cd {quote_path(runner.folder)} && mkdir started && echo '1 123456789123' >pid", what="faking a restart"
    )
    assert runner.status().phase == "lost"


def test_a_start_that_died_before_its_supervisor_lived_is_lost(shell: Shell, runner: Runner) -> None:
    runner.install(spec("true"))
    shell.check(f"mkdir {quote_path(runner.folder)}/started", what="dying early")
    assert runner.status().phase == "lost"


def test_work_that_removes_our_folder_leaves_no_process(shell: Shell, runner: Runner) -> None:
    begin(runner, 'echo $PPID >~/supervisor; sleep 0.5; rm -rf "$(dirname "$PWD")"')
    until(lambda: runner.status().phase == "absent")
    until(lambda: shell.run("[ -d /proc/$(cat ~/supervisor) ]").code == 1)
