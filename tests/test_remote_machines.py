"""The runner keeps its word on odd machines, and on those whose disk is full."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpujobs import remote
from gpujobs.models import Access
from gpujobs.runner import Runner, parse_exit
from gpujobs.shell import Shell, connect
from tests.sshd.machines import skip_without_sshd
from tests.sshd.openssh import OpenSsh
from tests.sshd.runs import LINES, begin, end_of, log_of, pids_of, says, until

pytest_plugins = ("tests.sshd.fixtures",)


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
