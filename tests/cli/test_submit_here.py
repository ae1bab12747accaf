"""submit --here: the whole way in one process, as a user sees it; and every way to stop it."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import Cli, Terminal, read_until
from tests.cloud import BACKENDS, GPUS, Control

QUESTION = r"Rent RTX 4090 x1 on autodl/\w+ \(\d\.\d\d CNY/h, \d+ free\)\? \[y/N\] "
LONG = "echo begun; trap 'echo told; exit 3' TERM; while :; do sleep 0.1; done"


def recipe(cli: Cli, backend: str = "autodl", *, run: str, more: str = "") -> str:
    text = f"""
name: t
resources: {{infra: {backend}, accelerators: "{GPUS[backend]}"}}
run: |
  {run}
max_duration: 10m
{more}
"""
    return cli.recipe(text)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_prints_its_output_and_ends_with_the_machine_gone(cli: Cli, control: Control, backend: str) -> None:
    path = recipe(cli, backend, run="mkdir out; echo 42 > out/answer; printf 'no line end'", more="outputs: {res: out}")
    done = cli("submit", path, "--here", "--yes")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    folder = next(line.partition(": ")[2] for line in lines if line.startswith("  res: "))
    assert (Path(folder) / "answer").read_text() == "42\n"
    assert "no line end" in done.stdout
    assert re.search(r"^cost: \d+\.\d+ CNY$", done.stdout, re.MULTILINE)
    assert lines[-1] == "0 machines alive"
    assert re.search(r"\] provision\n.*\] boot.*\] push.*\] run.*\] pull.*\] release", done.stderr, re.DOTALL)
    assert control.left() == []


def test_json_is_alone_on_standard_output(cli: Cli) -> None:
    done = cli("submit", recipe(cli, run="echo job output"), "--here", "--yes", "--json")
    value = json.loads(done.stdout)
    assert (value["state"], value["exit_code"], value["machines_alive"]) == ("succeeded", 0, 0)
    assert Path(value["log"]).read_text() == "job output\n"
    assert "job output\n" in done.stderr


def test_output_that_is_piped_is_what_the_job_wrote_byte_for_byte(cli: Cli) -> None:
    done = cli("submit", recipe(cli, run=r"printf '\033[31mred\377\000end\n'"), "--here", "--yes", text=False)
    assert b"\033[31mred\377\000end\n" in done.stdout


@pytest.mark.parametrize(
    ("run", "code", "message"),
    [
        ("exit 7", 1, r"the command ended with exit code 7; its output is in .*/output.log"),
        ("kill -KILL $$", 1, r"the command was killed by signal 9"),
    ],
)
def test_a_job_that_fails_ends_with_1_and_says_how(
    cli: Cli, control: Control, run: str, code: int, message: str
) -> None:
    done = cli("submit", recipe(cli, run=run), "--here", "--yes")
    assert done.returncode == code
    assert re.search(f"^gpujobs: {message}", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert control.left() == []


def test_an_output_that_was_not_written_ends_with_1(cli: Cli, control: Control) -> None:
    done = cli("submit", recipe(cli, run="true", more="outputs: {res: nowhere}"), "--here", "--yes")
    assert done.returncode == 1
    assert "gpujobs: outputs that the command did not write: res (nowhere)" in done.stderr
    assert control.left() == []


@pytest.mark.parametrize("phase", ["provision", "boot", "push", "run", "pull"])
def test_ctrl_c_in_any_phase_releases_the_machine_and_ends_with_4(cli: Cli, control: Control, phase: str) -> None:
    run = LONG if phase == "run" else "mkdir out; head -c 30000000 /dev/urandom > out/big"
    (cli.folder / "up").mkdir()
    (cli.folder / "up" / "big").write_bytes(b"x" * 30_000_000)
    process = cli.start("submit", recipe(cli, run=run, more="workdir: up\noutputs: {res: out}"), "--here", "--yes")
    read_until(process, rf"\] {phase}\b") if phase != "run" else read_until(process, "begun", of="stdout")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "Traceback" not in err
    assert re.search(r"cancelling run \w+: its work is stopped, its machine is released", err)
    assert re.search(r"cancelled", out)
    assert "0 machines alive" in out
    assert control.left() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_term_and_a_closed_terminal_cancel_too_and_the_job_is_told(
    cli: Cli, control: Control, number: signal.Signals
) -> None:
    process = cli.start("submit", recipe(cli, "matrixdc", run=LONG), "--here", "--yes")
    read_until(process, "begun", of="stdout")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "told\n" in out
    assert control.left() == []


def test_a_third_ctrl_c_leaves_the_machine_to_the_reaper_and_says_how(cli: Cli, control: Control) -> None:
    process = cli.start("submit", recipe(cli, run=LONG), "--here", "--yes")
    read_until(process, "begun", of="stdout")
    control.fault("autodl.delete_deployment", "error_500", count=None)
    for wanted in ("cancelling run", "still being released; once more leaves it to the reaper"):
        process.send_signal(signal.SIGINT)
        read_until(process, wanted)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)  # twice is not enough
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    run_id = re.search(r"To end it: gpujobs cancel (\w+), or: gpujobs reap", err)
    assert run_id, err
    assert len(control.alive()) == 1


def test_a_reader_that_goes_away_does_not_end_the_run(cli: Cli, control: Control) -> None:
    path = recipe(cli, run="echo begun; sleep 1; echo more; sleep 0.5; exit 9")
    process = cli.start("submit", path, "--here", "--yes")
    read_until(process, "begun", of="stdout")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(60) == 1, err
    assert json.loads(cli("status", "--json").stdout)["error"].startswith("the command ended with exit code 9")
    assert control.left() == []


def test_on_a_terminal_it_asks_and_no_rents_nothing(
    terminal: Callable[..., Terminal], cli: Cli, control: Control
) -> None:
    screen = terminal("submit", recipe(cli, run="true"), "--here")
    screen.expect(QUESTION)
    screen.type("\n")
    assert screen.end() == 4
    assert "gpujobs: cancelled; nothing was rented" in screen.screen
    assert control.machines() == []


def test_it_asks_with_json_too(terminal: Callable[..., Terminal], cli: Cli, control: Control) -> None:
    screen = terminal("submit", recipe(cli, run="true"), "--here", "--json")
    screen.expect(QUESTION)
    screen.type("n\n")
    assert screen.end() == 4
    assert '{"error": "cancelled; nothing was rented", "exit_code": 4}' in screen.screen
    assert control.machines() == []


def test_ctrl_c_at_the_question_rents_nothing(terminal: Callable[..., Terminal], cli: Cli, control: Control) -> None:
    screen = terminal("submit", recipe(cli, run="true"), "--here")
    screen.expect(QUESTION)
    screen.type("\x03")
    assert screen.end() == 4
    assert control.machines() == []


def test_yes_rents_and_the_terminal_shows_bars_and_no_escapes_of_the_job(
    terminal: Callable[..., Terminal], cli: Cli, control: Control
) -> None:
    (cli.folder / "up").mkdir()
    (cli.folder / "up" / "data").write_bytes(b"x" * 3_000_000)
    run = r"printf '\033]0;stolen title\007\033[5mplain\033[0m text\n'"
    screen = terminal("submit", recipe(cli, run=run, more="workdir: up"), "--here")
    screen.expect(QUESTION)
    screen.type("y\n")
    assert screen.end() == 0
    assert "plain text" in screen.screen
    assert "stolen title" not in screen.screen
    assert "\x1b[5m" not in screen.screen
    assert re.search(r"uploading workdir.*━.*3\.0/3\.0 MB", screen.screen)
    assert control.left() == []


def test_a_kill_of_the_process_is_mended_by_cancel(cli: Cli, control: Control) -> None:
    process = cli.start("submit", recipe(cli, run=LONG), "--here", "--yes")
    read_until(process, "begun", of="stdout")
    process.kill()
    process.communicate()
    began = time.monotonic()
    done = cli("cancel", "-", timeout=110)
    assert done.returncode == 0, done.stderr
    assert "0 machines alive" in done.stdout
    assert control.left() == []
    assert time.monotonic() - began < 90
