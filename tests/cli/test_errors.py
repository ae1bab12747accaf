"""Whatever goes wrong is told in a line or two, with the right exit code, and never with a traceback."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Cli

CANARY = "s3cr3t-canary-0451"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sumbit", "x.yaml"], r"there is no command sumbit; did you mean submit\?; see: gpujobs --help"),
        (["zzz"], r"there is no command zzz; see: gpujobs --help"),
        ([], r"the following arguments are required: COMMAND; see: gpujobs --help"),
        (["submit"], r"name a recipe, or with --retry-failed a run"),
        (["submit", "x.yaml", "--retry-failed", "y"], r"name a recipe, or with --retry-failed a run"),
        (["submit", "--retry-failed", "y", "--set", "a=b"], r"--retry-failed does the same tasks again"),
        (["ls", "--lmit", "3"], r"unrecognized arguments: --lmit 3; see: gpujobs --help"),
        (["ls", "--limit", "0"], r"argument --limit/-n: 0 is not a number from 1 up"),
        (["up", "--wait", "soon"], r"argument --wait: soon is not a number of seconds"),
        (["submit", "x.yaml", "--here", "--detach"], r"--here runs in this process, which --detach leaves"),
        (["status"], r"there are no runs yet; start one with: gpujobs submit recipe.yaml"),
        (["logs", "nope"], r"nope"),
        (["machines"], r"no backend has a token; set AUTODL_TOKEN or MATRIXDC_TOKEN, or use the fake cloud: --fake"),
    ],
)
def test_a_wrong_command_line_is_bad_input(bare: Cli, args: list[str], message: str) -> None:
    done = bare(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(f"^gpujobs: .*{message}", done.stderr), done.stderr
    assert done.stderr.count("\n") <= 2


@pytest.mark.parametrize("args", [["sumbit", "--json"], ["status", "--json"], ["submit", "none.yaml", "--json"]])
def test_with_json_an_error_is_json_alone(bare: Cli, args: list[str]) -> None:
    done = bare(*args)
    assert json.loads(done.stdout).keys() == {"error", "exit_code"}
    assert (json.loads(done.stdout)["exit_code"], done.returncode) == (2, 2)
    assert done.stderr == ""


def test_an_unknown_run_beside_a_server_that_does_not_answer_is_an_error_that_says_both(bare: Cli) -> None:
    done = bare("status", "0123456789", env={**bare.env, "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert (done.returncode, done.stdout) == (70, "")
    assert re.search("^gpujobs: .*0123456789.*; whether it waits for a host is not known: .*127.0.0.1:9", done.stderr)


def test_runs_are_listed_though_a_server_does_not_answer_and_that_is_said(bare: Cli) -> None:
    done = bare("ls", env={**bare.env, "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert (done.returncode, done.stdout) == (0, "no runs yet\n")
    assert re.search(r"^whether more runs wait for a host is not known: .*127\.0\.0\.1:9", done.stderr)


def crash(cli: Cli, *args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run `ls` with a bug in it, whose message holds a token."""
    code = (
        "import sys, gpujobs.cli.runs as runs\n"
        f"def boom(args, out): raise RuntimeError('cannot use {CANARY} at http://user:hunter2@host')\n"
        "runs.ls = boom\n"
        "from gpujobs.cli.entry import main\n"
        f"sys.exit(main({['ls', *args]!r}))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={**cli.env, **env},
        timeout=60,
    )


def test_a_bug_is_one_line_and_a_private_file_without_secrets(bare: Cli) -> None:
    done = crash(bare, AUTODL_TOKEN=CANARY)
    assert (done.returncode, done.stdout) == (70, "")
    told = re.fullmatch(
        r"gpujobs: RuntimeError: cannot use \*\*\* at http://user:\*\*\*@host\nthis is a bug; details in (.+)\n",
        done.stderr,
    )
    assert told, done.stderr
    path = Path(told[1])
    assert path.is_relative_to(bare.home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert "Traceback" in text
    assert "boom" in text
    assert CANARY not in text
    assert "hunter2" not in text


def test_secrets_of_the_settings_file_are_kept_out_of_it_too(bare: Cli) -> None:
    config = Path(bare.env["XDG_CONFIG_HOME"]) / "gpujobs" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[autodl]\ntoken = "{CANARY}"\n[secrets]\nwandb = "hunter2"\n')
    config.chmod(0o600)
    done = crash(bare)
    assert done.stderr.startswith("gpujobs: RuntimeError: cannot use *** at http://user:***@host\n")
    bugs = list((bare.home / "bugs").iterdir())
    assert len(bugs) == 1
    assert CANARY not in bugs[0].read_text()


def test_a_bug_with_json_is_json(bare: Cli) -> None:
    done = crash(bare, "--json")
    assert json.loads(done.stdout)["exit_code"] == done.returncode == 70
    assert done.stderr == ""


def test_a_home_that_cannot_be_made_is_bad_input(bare: Cli) -> None:
    (bare.folder / "file").write_text("")
    done = bare("ls", env={**bare.env, "GPUJOBS_HOME": str(bare.folder / "file" / "home")})
    assert done.returncode == 2
    assert re.fullmatch(r"gpujobs: .*/file/home: Not a directory; set GPUJOBS_HOME to a folder of yours\n", done.stderr)


def test_a_reader_that_goes_away_is_no_error(bare: Cli) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        done = bare("schema", capture_output=False, stdout=nobody, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")


def test_text_from_elsewhere_moves_no_cursor(bare: Cli) -> None:
    done = bare("\x1b[2Jx\x1b]0;title\x07")
    assert (done.returncode, done.stderr) == (2, "gpujobs: there is no command x; see: gpujobs --help\n")
