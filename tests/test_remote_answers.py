"""What a machine says of a run is believed only where it can be."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpujobs.errors import RemoteFailure
from gpujobs.runner import Runner, RunStatus, parse_exit, parse_status
from gpujobs.shell import Shell, quote_path
from tests.sshd.runs import begin, log_of, spec

pytest_plugins = ("tests.sshd.fixtures",)

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
