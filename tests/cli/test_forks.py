"""The forks that spare these tests their imports show what a process of its own would show."""

import os
import subprocess

import pytest

from tests.cli.command import Cli
from tests.cli.forks import Forks


@pytest.mark.parametrize("words", [["--version"], ["status", "no-such-run"], ["plan", "nowhere.yaml", "--json"]])
def test_a_fork_says_and_ends_as_a_process_does(bare: Cli, words: list[str]) -> None:
    alone = Cli(bare.folder, bare.env)(*words)
    forked = bare(*words)
    assert (forked.returncode, forked.stdout, forked.stderr) == (alone.returncode, alone.stdout, alone.stderr)


def test_a_fork_that_takes_too_long_is_killed(bare: Cli, forks: Forks) -> None:
    os.mkfifo(bare.folder / "endless.yaml")
    with pytest.raises(subprocess.TimeoutExpired):
        forks.run(["plan", "endless.yaml"], folder=bare.folder, env=bare.env, timeout_s=0.1)
    assert bare("ls").returncode == 0
