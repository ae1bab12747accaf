"""resume and adopt as a user types them: a run whose process was killed, or whose ledger is lost, comes to its end."""

import json
import signal

from tests.cli.command import Cli, read_until
from tests.cloud import GPUS, Control
from tests.lifecycle.test_run import assert_nothing_left

RECIPE = """
name: t
resources: {{infra: {backend}, accelerators: "{gpu}"}}
run: |
  echo begun
  until [ -e ~/go ]; do sleep 0.1; done
  echo over | tee kept
outputs: {{kept: kept}}
max_duration: 10m
"""


def killed(cli: Cli, backend: str) -> str:
    """Start a run in a process that is then killed; give the run's id."""
    recipe = cli.recipe(RECIPE.format(backend=backend, gpu=GPUS[backend]))
    process = cli.start("submit", recipe, "--here", "--yes")
    read_until(process, "begun", of="stdout")
    refused = cli("resume", "-")
    assert (refused.returncode, "logs -f" in refused.stderr, "its lease ends in" in refused.stderr) == (70, True, True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return str(json.loads(cli("ls", "--json").stdout)[0]["id"])


def let_it_end(cli: Cli) -> None:
    done = cli("ssh", "-", "--", "touch go; until ls /root/*/gpujobs/*/exit.json; do sleep 0.1; done 2>/dev/null")
    assert done.returncode == 0, done.stderr


def test_resume_brings_a_killed_run_to_its_end_and_is_refused_after_it(cli: Cli, control: Control) -> None:
    run_id = killed(cli, "matrixdc")
    let_it_end(cli)
    done = cli("resume", run_id)
    assert done.returncode == 0, done.stderr
    assert f"going on with run {run_id} (t), which stood at run gj-tester-{run_id}-1" in done.stderr
    assert (cli.home / "runs" / run_id / "output.log").read_text() == "begun\nover\n"
    assert (cli.home / "runs" / run_id / "outputs" / "kept").read_text() == "over\n"
    assert_nothing_left(control)
    again = cli("resume", run_id, "--json")
    assert again.returncode == 2
    assert f"run {run_id} is over (succeeded, exit code 0)" in json.loads(again.stdout)["error"]


def test_ctrl_c_cancels_a_run_that_is_resumed(cli: Cli, control: Control) -> None:
    killed(cli, "autodl")
    process = cli.start("resume", "-")
    read_until(process, "going on with gj-")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=90)
    assert (process.returncode, "Traceback" in err) == (4, False)
    assert control.left() == []


def test_adopt_shows_first_and_then_finishes_what_ended(cli: Cli, control: Control) -> None:
    run_id = killed(cli, "autodl")
    lost = Cli(cli.folder, {**cli.env, "GPUJOBS_HOME": str(cli.folder / "anew")})
    shown = json.loads(lost("adopt", "--json").stdout)
    assert [(one["run_id"], one["name"], one["phase"]) for one in shown["found"]] == [(run_id, "t", "running")]
    assert (shown["adopted"], json.loads(lost("ls", "--json").stdout)) == ([], [])
    let_it_end(cli)
    done = lost("adopt", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"run {run_id} is known again, and succeeded" in done.stdout
    assert (lost.home / "runs" / run_id / "output.log").read_text() == "begun\nover\n"
    assert (lost.home / "runs" / run_id / "outputs" / "kept").read_text() == "over\n"
    assert_nothing_left(control)
    assert "nothing is rented that the ledger does not know" in lost("adopt").stdout
