"""--fake and the controller: submit, leave, follow, wait, cancel, from one terminal and from another."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from gpujobs import process
from tests.cli.command import Cli, Terminal, read_until

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.xdist_group("controller")  # one controller for all of them
LONG = "echo begun; trap 'echo told; exit 3' TERM; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """One home, one fake cloud and one controller for all tests here; ended, by `down`, with them."""
    folder = tmp_path_factory.mktemp("fake")
    (folder / "work").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "AUTODL", "MATRIXDC"))}
    env = {
        **kept,
        "GPUJOBS_HOME": str(folder / "home"),
        "GPUJOBS_OWNER": "tester",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "PREFECT_API_URL": "http://127.0.0.1:9/api",  # the team's server, which fake runs never go to
        "PYTHONPATH": str(ROOT),
    }
    cli = Cli(folder / "work", env)
    done = cli("up", "--fake", timeout=110)
    assert done.returncode == 0, done.stderr
    yield cli
    cli.close()
    recorded = pids(cli)
    done = cli("down", "--fake")
    assert done.returncode == 0, done.stderr
    assert not any(process.alive(pid, since) for pid, since in recorded), "down left a process"


def pids(cli: Cli) -> list[tuple[int, str]]:
    controller = json.loads((cli.home / "fake" / "controller.json").read_text())
    fake = record(cli)
    return [
        (controller["server_pid"], controller["server_started"]),
        (controller["worker_pid"], controller["worker_started"]),
        (fake["pid"], fake["started"]),
    ]


def record(cli: Cli) -> Mapping[str, Any]:
    value: Mapping[str, Any] = json.loads((cli.home / "fake" / "fake.json").read_text())
    return value


def rented(cli: Cli) -> list[str]:
    """Name the machines that the fake's own ledger holds as alive."""
    reply = requests.get(record(cli)["url"] + "/_fake/ledger", headers={"X-Fake-Control": "fake-control"}, timeout=60)
    return [machine["name"] for machine in reply.json()["machines"] if machine["gone_at"] is None]


def recipe(cli: Cli, run: str, name: str = "t") -> str:
    text = f'name: {name}\nresources: {{infra: autodl, accelerators: "RTX 4090"}}\nrun: |\n  {run}\nmax_duration: 10m\n'
    return cli.recipe(text + "outputs: {res: out}\n", f"{name}.yaml")


def detached(cli: Cli, run: str) -> str:
    done = cli("submit", recipe(cli, run), "--fake", "--detach", "--json")
    assert done.returncode == 0, done.stderr
    run_id: str = json.loads(done.stdout)["run_id"]
    return run_id


def test_submit_follows_to_the_end_and_says_first_that_it_is_fake(cli: Cli) -> None:
    done = cli("submit", recipe(cli, "mkdir out; echo hello; echo 42 > out/answer"), "--fake", "--yes")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "fake cloud on this machine: nothing is rented, nothing is paid"
    assert "hello" in lines
    assert lines[-1] == "0 machines alive"
    assert re.search(r"\] run .* is with the controller at http://127.0.0.1:\d+/api", done.stderr)
    assert rented(cli) == []


def test_a_failed_job_ends_submit_and_wait_with_1(cli: Cli) -> None:
    done = cli("submit", recipe(cli, "mkdir out; exit 5"), "--fake", "--yes", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"].partition(";")[0]) == (
        1,
        "the command ended with exit code 5",
    )
    assert cli("wait", "-", "--fake").returncode == 1


def test_a_detached_run_is_followed_waited_for_and_pulled_from_another_terminal(cli: Cli) -> None:
    run_id = detached(cli, "echo one; sleep 2; mkdir out; echo two > out/f; echo end")
    following = cli.start("logs", "-f", run_id[:6], "--fake")
    waited = cli("wait", run_id, "--fake", "--json")
    out, err = following.communicate(timeout=60)
    assert (following.returncode, out) == (0, "one\nend\n"), err
    assert json.loads(waited.stdout)["state"] == "succeeded"
    assert cli("logs", run_id, "--fake").stdout == "one\nend\n"
    pulled = cli("pull", run_id, "--fake", "--to", "here", "--json")
    assert json.loads(pulled.stdout)["outputs"] == {"res": str(cli.folder / "here" / "res")}
    assert (cli.folder / "here" / "res" / "f").read_text() == "two\n"
    again = cli("pull", run_id, "--fake", "--to", "here")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_cancel_from_another_terminal_ends_submit_with_4(cli: Cli) -> None:
    process = cli.start("submit", recipe(cli, LONG), "--fake", "--yes")
    read_until(process, "begun", of="stdout")
    run_id = json.loads(cli("ls", "--fake", "--json").stdout)[0]["id"]
    done = cli("cancel", run_id, "--fake")
    out, err = process.communicate(timeout=60)
    assert (done.returncode, process.returncode) == (0, 4), done.stderr + err
    assert "told\n" in out
    assert "0 machines alive" in done.stdout
    assert rented(cli) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_a_terminal_a_signal_cancels(cli: Cli, number: signal.Signals) -> None:
    process = cli.start("submit", recipe(cli, LONG), "--fake", "--yes")
    read_until(process, "begun", of="stdout")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "told\n" in out
    assert rented(cli) == []


@pytest.fixture
def submitted(cli: Cli) -> Iterator[Callable[[], Terminal]]:
    """Submit a long job on a terminal, and wait until it works."""
    opened: list[Terminal] = []

    def start() -> Terminal:
        opened.append(Terminal(cli, "submit", recipe(cli, LONG), "--fake", "--yes"))
        opened[-1].expect("begun")
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_ctrl_c_on_a_terminal_asks_and_c_cancels(cli: Cli, submitted: Callable[[], Terminal]) -> None:
    screen = submitted()
    screen.type("\x03")
    screen.expect(r"Cancel the run, or detach and leave it running\? \[c/d\] ")
    screen.type("c\n")
    assert screen.end() == 4
    assert "0 machines alive" in screen.screen
    assert rented(cli) == []


def test_a_second_ctrl_c_cancels(cli: Cli, submitted: Callable[[], Terminal]) -> None:
    screen = submitted()
    screen.type("\x03")
    screen.expect(r"\[c/d\] ")
    screen.type("\x03")
    assert screen.end() == 4
    assert "told" in screen.screen
    assert rented(cli) == []


def test_detaching_leaves_the_run_and_ssh_reaches_its_machine(cli: Cli, submitted: Callable[[], Terminal]) -> None:
    screen = submitted()
    screen.type("\x03")
    screen.expect(r"\[c/d\] ")
    screen.type("d\n")
    assert screen.end() == 0
    run_id = re.search(r"run (\w+) goes on by itself; follow it: gpujobs logs -f \1", screen.screen)
    assert run_id, screen.screen
    assert json.loads(cli("status", run_id[1], "--fake", "--json").stdout)["state"] == "running"
    shown = cli("ssh", run_id[1], "--fake", "--print")
    assert re.search(
        r"^ssh -i \S+ -o IdentitiesOnly=yes .*-o StrictHostKeyChecking=yes .*-p \d+ -l root 127.0.0.1$",
        shown.stdout.strip(),
    )
    inside = cli("ssh", run_id[1], "--fake", "--", "nvidia-smi", "-L")
    assert (inside.returncode, "RTX 4090" in inside.stdout) == (0, True), inside.stderr
    machines = json.loads(cli("machines", "--fake", "--json").stdout)
    assert [machine["run_id"] for machine in machines] == [run_id[1]]
    assert cli("cancel", run_id[1], "--fake").returncode == 0
    assert rented(cli) == []


def test_a_pull_while_the_job_works_brings_what_there_is(cli: Cli) -> None:
    run_id = detached(cli, "mkdir out; echo part > out/f; echo begun; sleep 60")
    read_until(cli.start("logs", "-f", run_id, "--fake"), "begun", of="stdout")
    assert cli("pull", run_id, "--fake", "--to", "part").returncode == 0
    assert (cli.folder / "part" / "res" / "f").read_text() == "part\n"
    assert cli("cancel", run_id, "--fake").returncode == 0


def test_no_secret_is_in_any_file_of_the_home(cli: Cli) -> None:
    for path in (cli.home / "fake").rglob("*"):
        if path.is_file() and "state" not in path.relative_to(cli.home / "fake").parts:
            assert b"fake-token" not in path.read_bytes(), path
    assert stat.S_IMODE((cli.home / "fake" / "fake.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((cli.home / "fake" / "fake.log").stat().st_mode) == 0o600


def test_who_follows_outlives_the_controller(cli: Cli) -> None:
    run_id = detached(cli, "echo one; until [ -e ~/go ]; do sleep 0.1; done; mkdir out; echo two")
    following = cli.start("logs", "-f", run_id, "--fake")
    read_until(following, "one", of="stdout")
    own = {**cli.env, "GPUJOBS_HOME": str(cli.home / "fake"), "PREFECT_API_URL": ""}
    assert json.loads(cli("down", "--json", env=own).stdout) == {"controller_ended": True, "fake_ended": False}
    assert json.loads(cli("status", run_id, "--fake", "--json").stdout)["state"] == "running"
    assert cli("up", "--fake", timeout=110).returncode == 0
    assert cli("ssh", run_id, "--fake", "--", "touch", "go").returncode == 0
    out, err = following.communicate(timeout=90)
    assert (following.returncode, out) == (0, "two\n"), err
    assert json.loads(cli("status", run_id, "--fake", "--json").stdout)["state"] == "succeeded"
    assert rented(cli) == []


def elsewhere(cli: Cli) -> Cli:
    """A user on another machine: the same Prefect server and cloud, and a ledger of his own."""
    url = record(cli)["url"]
    api = json.loads((cli.home / "fake" / "controller.json").read_text())["url"]
    return Cli(
        cli.folder,
        {
            **cli.env,
            "GPUJOBS_HOME": str(cli.home.parent / "elsewhere"),
            "PREFECT_API_URL": api,
            "AUTODL_TOKEN": "fake-token",
            "AUTODL_API_URL": url,
        },
    )


@pytest.mark.parametrize(("run", "code"), [("mkdir out; echo far away", 0), ("mkdir out; echo far away; exit 3", 1)])
def test_a_run_on_a_worker_with_another_ledger_is_followed_by_its_log(cli: Cli, run: str, code: int) -> None:
    done = elsewhere(cli)("submit", recipe(cli, run + "; sleep 8" if code == 0 else "sleep 8; " + run), "--yes")
    assert done.returncode == code, done.stderr
    assert "far away" in done.stdout
    assert "its outputs are where its worker runs" in done.stdout


def pool_of(api: str) -> str:
    """Name the pool that the host makes, once it has: the API answers before the host is there."""
    wanted = {"work_pools": {"type": {"any_": ["gpujobs"]}}}
    deadline = time.monotonic() + 60
    while not (pools := requests.post(f"{api}/work_pools/filter", json=wanted, timeout=60).json()):
        assert time.monotonic() < deadline, "the host made no pool"
        time.sleep(0.1)
    return str(pools[0]["name"])


def test_a_run_that_no_worker_has_taken_can_be_cancelled(cli: Cli) -> None:
    api = json.loads((cli.home / "fake" / "controller.json").read_text())["url"]
    paused = pool_of(api)
    requests.patch(f"{api}/work_pools/{paused}", json={"is_paused": True}, timeout=60).raise_for_status()
    try:
        process = cli.start("submit", recipe(cli, "true"), "--fake", "--yes")
        read_until(process, "is with the controller")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 4
        assert "gpujobs: cancelled before it began; nothing was rented" in err
    finally:
        requests.patch(f"{api}/work_pools/{paused}", json={"is_paused": False}, timeout=60).raise_for_status()


def test_ls_says_where_runs_stand_and_cost_sums_them(cli: Cli) -> None:
    listed = cli("ls", "--fake")
    assert listed.stdout.splitlines()[0].split() == ["RUN", "NAME", "STATE", "PHASE", "WHERE", "AGE", "COST"]
    assert re.search(r"^\w{10}  t +(succeeded|cancelled) ", listed.stdout, re.MULTILINE)
    value = json.loads(cli("cost", "--fake", "--json").stdout)
    assert value["known_cost_cny"] > 0
    assert value["runs_of_unknown_cost"] == 0


def test_the_fake_runs_in_a_home_of_its_own(cli: Cli) -> None:
    assert sorted(path.name for path in cli.home.iterdir()) == [".gpujobsignore", "fake"]
    done = subprocess.run(
        [sys.executable, "-m", "gpujobs", "ls"],
        env={**cli.env, "GPUJOBS_HOME": str(cli.folder / "other")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "no runs yet\n"
