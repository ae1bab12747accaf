"""The runner starts work at most once, outlives every connection, and tells truthfully how it ended."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpujobs import remote
from gpujobs.clock import StopToken
from gpujobs.errors import BadInput, Cancelled, RemoteFailure, Unreachable
from gpujobs.models import Access
from gpujobs.runner import ExitRecord, Runner, RunSpec, RunStatus, parse_exit, parse_status
from gpujobs.shell import Shell, connect, quote_path
from tests.sshd.machines import QUICK, Server, skip_without_sshd
from tests.sshd.openssh import OpenSsh
from tests.sshd.proxy import Proxy

pytest_plugins = ("tests.sshd.fixtures",)

NO_STOP = StopToken()


@pytest.fixture
def runner(shell: Shell, place: str) -> Iterator[Runner]:
    runner = Runner(shell, base=place, name="gj-me-abcd-1")
    yield runner
    if runner.status().phase in {"setup", "running"}:
        runner.cancel(0)


def spec(run: str, **more: Any) -> RunSpec:
    return RunSpec(**{"run": run, "max_duration_s": 60, "grace_s": 2, **more})


def begin(runner: Runner, run: str, **more: Any) -> None:
    runner.install(spec(run, **more))
    assert runner.start()


def log_of(runner: Runner) -> bytes:
    came = bytearray()
    size = runner.follow(0, came.extend, stop=NO_STOP)
    assert size == len(came)
    return bytes(came)


def end_of(runner: Runner) -> ExitRecord:
    log = log_of(runner)
    record = runner.status().exit
    assert record is not None
    assert (record.log_size, record.sha256) == (len(log), hashlib.sha256(log).hexdigest())
    return record


def until(true: Callable[[], object], *, within_s: float = 60.0) -> None:
    ends_at = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < ends_at, "it did not come true in time"
        time.sleep(0.05)


def says(runner: Runner, text: bytes) -> Callable[[], bool]:
    command = f"cat {quote_path(runner.folder)}/output.log"
    return lambda: text in runner._shell.check(command, what="looking at the log")


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


def pids_of(shell: Shell, runner: Runner) -> dict[str, int]:
    folder = quote_path(runner.folder)
    names = ("pid", "job")
    said = shell.check(" && ".join(f"cut -d ' ' -f 1 {folder}/{name}" for name in names), what="reading pids").split()
    return dict(zip(names, map(int, said), strict=True))


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


# Following


LINES = 'i=0; while [ $i -lt 3000 ]; do echo "line $i ${PAD}"; i=$((i + 1)); [ $((i % 100)) != 0 ] || sleep 0.05; done'


def test_a_log_followed_over_cut_connections_is_the_log(
    server: Server, runner: Runner, proxy: Proxy, place: str
) -> None:
    begin(runner, LINES, envs={"PAD": "x" * 50})
    came = bytearray()
    cuts = 0
    while True:
        try:
            with server.connect(port=proxy.port, timeouts=QUICK) as shell:
                proxy.cut_after(30_000)
                assert Runner(shell, base=place, name=runner.name).follow(len(came), came.extend, stop=NO_STOP) == len(
                    came
                )
                break
        except Unreachable:
            cuts += 1
    assert cuts >= 3
    assert came == b"".join(b"line %d %s\n" % (i, b"x" * 50) for i in range(3000))
    record = end_of(runner)
    assert (record.code, record.log_size) == (0, len(came))


def test_work_outlives_the_connection_that_started_it(server: Server, place: str, proxy: Proxy) -> None:
    with server.connect(port=proxy.port, timeouts=QUICK) as shell:
        begin(Runner(shell, base=place, name="gj-1"), "sleep 1; echo alive")
        proxy.cut()
    with server.connect() as again:
        assert log_of(Runner(again, base=place, name="gj-1")) == b"alive\n"


def test_a_frozen_follower_does_not_hold_up_the_work(server: Server, runner: Runner, proxy: Proxy, place: str) -> None:
    begin(runner, "until [ -e ../go ]; do sleep 0.05; done; head -c 20000000 /dev/zero; echo x >../done")
    with server.connect(port=proxy.port, timeouts=QUICK) as shell:
        frozen = Runner(shell, base=place, name=runner.name)

        def follow() -> None:
            with contextlib.suppress(Unreachable):
                frozen.follow(0, len, stop=NO_STOP)

        thread = threading.Thread(target=follow)
        thread.start()
        until(lambda: b"tail" in runner._shell.run("cat /proc/[0-9]*/comm").stdout)
        proxy.freeze()
        runner._shell.check(f"touch {quote_path(runner.folder)}/go", what="going on")
        assert end_of(runner).log_size == 20_000_000
        thread.join()


def test_following_from_an_offset_gives_the_rest(runner: Runner) -> None:
    begin(runner, "printf 0123456789")
    assert log_of(runner) == b"0123456789"
    came = bytearray()
    assert runner.follow(7, came.extend, stop=NO_STOP) == 10
    assert came == b"789"
    assert runner.follow(10, came.extend, stop=NO_STOP) == 10
    with pytest.raises(RemoteFailure, match="fewer than the 11"):
        runner.follow(11, came.extend, stop=NO_STOP)


def test_a_line_is_seen_at_once(runner: Runner) -> None:
    begin(runner, "sleep 1; date +%s.%N; sleep 1")
    seen: list[float] = []
    said = bytearray()

    def note(data: bytes) -> None:
        seen.append(time.time())
        said.extend(data)

    runner.follow(0, note, stop=NO_STOP)
    assert seen[0] - float(said) < 0.8


def test_a_stopped_follower_lets_go(runner: Runner) -> None:
    begin(runner, "sleep 60")
    stop = StopToken()
    timer = threading.Timer(0.3, stop.stop, [Cancelled("enough")])
    timer.start()
    with pytest.raises(Cancelled):
        runner.follow(0, lambda _: None, stop=stop)
    timer.join()


def test_marks_are_files_in_the_folder(shell: Shell, runner: Runner) -> None:
    runner.install(spec("true"))
    runner.heartbeat()
    first = shell.run(f"cat {quote_path(runner.folder)}/heartbeat").stdout
    runner.heartbeat()
    runner.mark_pulled()
    runner.mark_pulled()
    assert shell.run(f"cat {quote_path(runner.folder)}/heartbeat").stdout != first
    assert shell.run(f"test -f {quote_path(runner.folder)}/pulled").code == 0


# Machines of other kinds


def tools(folder: Path, *, without: tuple[str, ...] = (), replaced: dict[str, str] | None = None) -> str:
    """Make a PATH of one folder with the host's programs, but for some."""
    folder.mkdir()
    for place in reversed([Path(p) for p in os.environ["PATH"].split(":") if Path(p).is_dir()]):
        for program in place.iterdir():
            if program.name not in without:
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program)
    for name, text in (replaced or {}).items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return str(folder)


def busybox_tools(folder: Path) -> str:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("there is no busybox here: install busybox-static to run this test")
    folder.mkdir()
    for name in subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True).stdout.split():
        (folder / name).symlink_to(busybox)
    return str(folder)


def odd_path(kind: str, folder: Path) -> str:
    if kind == "busybox":
        return busybox_tools(folder)
    if kind == "bash as sh":
        return tools(folder, replaced={"sh": '#!/bin/bash\nexec -a sh bash "$@"\n'})
    if kind == "wrong clock":
        return tools(folder, replaced={"date": "#!/bin/sh\necho 1000\n"})
    if kind == "no setsid":
        return tools(folder, without=("setsid",))
    return tools(folder, without=("setsid", "python3", "perl"))


@pytest.fixture(scope="module", params=["busybox", "bash as sh", "wrong clock", "no setsid", "only nohup"])
def odd_shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    skip_without_sshd()
    folder = tmp_path_factory.mktemp("odd")
    path = odd_path(request.param, folder / "bin")
    sshd = OpenSsh(folder / "sshd", path=path)
    access = Access(host="127.0.0.1", port=sshd.port, user=sshd.user, password="")
    with connect(access, host_key=sshd.host_key, pkey_path=sshd.key) as shell:
        yield shell
    sshd.close()


def test_work_runs_on_an_odd_machine(odd_shell: Shell) -> None:
    runner = Runner(odd_shell, base="~/odd", name="done")
    begin(runner, LINES, setup="echo first", envs={"PAD": "'"})
    assert log_of(runner) == b"first\n" + b"".join(b"line %d '\n" % i for i in range(3000))
    assert end_of(runner).code == 0


def test_work_is_cancelled_on_an_odd_machine(odd_shell: Shell) -> None:
    runner = Runner(odd_shell, base="~/odd", name="cancelled")
    mark = 70_000_000 + os.getpid()  # no other test, nor anything else on this machine, sleeps for so long
    begin(runner, f"(trap '' TERM; echo up; sleep {mark}; sleep {mark}) & sleep {mark}; sleep {mark}")
    until(says(runner, b"up"))
    runner.cancel(2)
    record = end_of(runner)
    assert (record.code, record.reason) == (143, "cancelled")
    left = f"grep -l '{str(mark)[:-1]}[{str(mark)[-1]}]' /proc/[0-9]*/cmdline"
    until(lambda: odd_shell.run(left).stdout == b"")


def test_time_is_up_on_an_odd_machine(odd_shell: Shell) -> None:
    runner = Runner(odd_shell, base="~/odd", name="over")
    begin(runner, "sleep 60; sleep 60", max_duration_s=2)
    assert end_of(runner).reason == "max_duration"


def test_a_killed_supervisor_is_told_on_an_odd_machine(odd_shell: Shell) -> None:
    runner = Runner(odd_shell, base="~/odd", name="lost")
    begin(runner, "echo up; sleep 60; sleep 60")
    until(says(runner, b"up"))
    odd_shell.check(f"kill -KILL {pids_of(odd_shell, runner)['pid']}", what="killing")
    assert log_of(runner) == b"up\n"
    assert runner.status().phase == "lost"


FULL_DISK = """
set -e
mount -t tmpfs -o size=300k tmpfs {disk}
mkdir -p {disk}/a/work
cd {disk}/a
cp {runner} runner.sh
printf 'max_duration_s=3\\ngrace_s=1\\nlease_s=0\\n' >limits
printf '%s\\n' '{run}' >run.sh
touch env installed output.log
{first}
sh runner.sh start
until [ -f exit.json ]; do sleep 0.1; done
cat exit.json
"""


def on_a_small_disk(disk: Path, *, run: str, first: str = "") -> subprocess.CompletedProcess[str]:
    runner = Path(remote.__file__).with_name("runner.sh")
    disk.mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", disk], check=False).returncode:
        pytest.skip("no file system can be mounted here, so no full disk can be made")
    script = FULL_DISK.format(disk=disk, runner=runner, run=run, first=first)
    return subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, check=False, text=True)


@pytest.mark.parametrize(
    ("run", "code", "reason"),
    [("cat /dev/zero >fill", 1, "exit"), ("cat /dev/zero >fill || sleep 60", 143, "max_duration")],
)
def test_a_disk_that_the_work_fills_still_takes_the_record(tmp_path: Path, run: str, code: int, reason: str) -> None:
    done = on_a_small_disk(tmp_path / "disk", run=run)
    record = parse_exit(done.stdout.splitlines()[-1])
    assert (record.code, record.reason) == (code, reason)


def test_a_disk_that_is_full_before_the_start_is_told(tmp_path: Path) -> None:
    done = on_a_small_disk(tmp_path / "disk", run="true", first="cat /dev/zero >../fill || :")
    assert (done.returncode, "is the disk full?" in done.stderr) == (70, True)


# What a machine may say


GOOD = {
    "code": 0, "signal": None, "reason": "exit", "started_at": 1, "ended_at": 2, "log_size": 3, "sha256": "0" * 64,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"code": "0"}, {"code": 0.0}, {"code": False}, {"code": -1}, {"code": 256}, {"signal": 0}, {"reason": "fine"},
        {"reason": []}, {"started_at": "now"}, {"ended_at": None}, {"ended_at": 10**15}, {"log_size": -1},
        {"log_size": 10**30}, {"sha256": "00"}, {"sha256": None},
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_is_not_believed(change: dict[str, Any]) -> None:
    assert parse_exit(json.dumps(GOOD)).code == 0
    with pytest.raises(RemoteFailure, match="cannot be believed"):
        parse_exit(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", "1" * 5000, "[" * 100_000, '"\x1b[31m"'])
def test_text_that_is_no_record_is_not_believed(text: str) -> None:
    with pytest.raises(RemoteFailure, match="cannot be believed") as caught:
        parse_exit(text)
    assert "\x1b" not in str(caught.value)


@given(st.binary(max_size=200))
def test_whatever_a_machine_says_is_a_status_or_a_clear_failure(answer: bytes) -> None:
    with contextlib.suppress(RemoteFailure):
        assert isinstance(parse_status(b"phase ended\nlog_size 1\n" + answer), RunStatus)


@pytest.mark.parametrize("text", ["not json", '{"code": 0}', "x" * 10_000_000])
def test_a_lying_exit_json_on_the_machine_is_a_clear_failure(shell: Shell, runner: Runner, text: str) -> None:
    begin(runner, "true")
    log_of(runner)
    shell.check(f"cat >{quote_path(runner.folder)}/exit.json", what="lying", stdin=text.encode())
    with pytest.raises(RemoteFailure, match="cannot be believed"):
        runner.status()
    shell.check(f"cat >{quote_path(runner.folder)}/exit.json", what="lying no more", stdin=json.dumps(GOOD).encode())


def test_the_secret_of_an_installed_attempt_is_private(shell: Shell, runner: Runner) -> None:
    runner.install(spec("true", secrets={"A": "b"}))
    said = shell.run(f"cd {quote_path(runner.folder)} && stat -c '%a %n' . env").stdout
    assert said == b"700 .\n600 env\n"
