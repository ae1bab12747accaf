"""A machine that lies, once our work is on it: no success is believed, no escape is shown, and the machine goes."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from gpujobs.errors import TransferFailed
from gpujobs.host import Host
from gpujobs.lifecycle import Outcome
from tests.cli.command import Cli
from tests.cloud import GPUS, Control, Memory, recipe_for
from tests.lifecycle.test_run import run

ESCAPES = "\x1b]52;c;ZXZpbA==\x07\x1b]0;owned\x07\x1b[2J\x1bP+q\x1b\\\x9b31m\u202e"
SAID = b"hello\n"
TRUE = {
    "code": 0, "signal": None, "reason": "exit", "started_at": 1, "ended_at": 2, "log_size": len(SAID),
    "sha256": sha256(SAID).hexdigest(),
}  # fmt: skip
# What the work puts in the place of the runner, which then answers for it.
TAKE_OVER = """
cat >../lies <<'ANSWER'
{answer}
ANSWER
cat >../runner.sh.new <<'RUNNER'
here=$(dirname -- "$0")
case $1 in
  status) {status} ;;
  tail) {tail} ;;
esac
RUNNER
mv ../runner.sh.new ../runner.sh
touch saved
exit 1
"""


def lying(
    *, tail: str = "printf 'hello\\n' | tail -c +$(($2 + 1))", status: str = 'cat "$here/lies"', **record: Any
) -> str:
    """A script whose machine says from then on that it went well, with this record."""
    exit_line = json.dumps({**TRUE, **record})
    answer = f"phase ended\nlog_size {len(SAID)}\nnow 1\nexit {exit_line}"
    return TAKE_OVER.format(answer=answer, status=status, tail=tail)


def outcome_of(host: Host, script: str, **parts: Any) -> Outcome:
    return run(host, recipe_for("autodl", run=script, max_duration="10m", **parts))


def test_a_machine_may_claim_success_and_is_held_to_its_own_record(host: Host) -> None:
    outcome = outcome_of(host, lying())
    assert (outcome.state, outcome.log.read_bytes()) == ("succeeded", SAID)


LIES: Mapping[str, tuple[str, str]] = {
    "a hash of another log": (lying(sha256="0" * 64), "does not have the hash"),
    "a log longer than what came": (lying(log_size=10**15), "and only 6 came"),
    "a log shorter than what came": (lying(log_size=2), "fewer than the 6"),
    "a code that is not a number": (lying(code=float("nan")), "cannot be believed"),
    "a code out of range": (lying(code=2**64), "cannot be believed"),
    "a record of another shape": (lying(signal=[{}]), "cannot be believed"),
    "a status of megabytes": (lying(status="yes exit | head -c 3000000"), "said more than"),
    "a status of escapes": (lying(status=f"printf '{ESCAPES}'"), "status is not one of ours"),
    "an error of escapes": (lying(status=f"printf '{ESCAPES}' >&2; exit 3"), "exit code 70"),
    "deep JSON": (lying(status="echo phase ended; printf 'exit %s' $(yes [ | head -n 2000 | tr -d '\\n')"), "believed"),
    "nothing": (lying(status=":"), "status is not one of ours"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_never_a_success_and_the_machine_goes(lie: str, host: Host, control: Control) -> None:
    host.timing = replace(host.timing, lost_s=3.0, stop_pull_s=3.0)
    script, why = LIES[lie]
    reporter = Memory()
    outcome = run(host, recipe_for("autodl", run=script, max_duration="10m"), reporter=reporter)
    assert (outcome.state, outcome.exit_code != 0, control.left()) == ("failed", True, [])
    assert any(part in outcome.error for part in why.split("|")), outcome.error
    told = outcome.error + "".join(reporter.notes)
    assert not any(char in told for char in "\x1b\x07\x9b\u202e")


STREAMS: Mapping[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
SMALL_DISK = 'mkdir -p "$GPUJOBS_HOME/runs" && mount -t tmpfs -o size=300m none "$GPUJOBS_HOME/runs" && exec "$@"'


def test_output_of_a_machine_does_not_take_the_last_of_our_disk(cli: Cli, control: Control) -> None:
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", cli.folder], check=False).returncode:
        pytest.skip("no file system can be mounted here, so no small disk can be made")
    resources = f"{{infra: autodl, accelerators: {GPUS['autodl']}}}"
    recipe = cli.recipe(f"name: t\nresources: {resources}\nrun: head -c 80000000 /dev/zero; sleep 600\n")
    command = ["unshare", "-m", "sh", "-c", SMALL_DISK, "sh", sys.executable, "-m", "gpujobs", "submit", recipe]
    done = subprocess.run(
        [*command, "--here", "--yes"], cwd=cli.folder, env=cli.env, check=False, timeout=240, **STREAMS
    )
    assert (done.returncode, b"the disk is nearly full" in done.stderr) == (TransferFailed.exit_code, True), done.stderr
    assert control.left() == []
