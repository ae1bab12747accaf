"""Whatever the user's umask, nobody else can read what we write here."""

import stat
from pathlib import Path

import pytest

from tests.cli.command import Cli
from tests.cloud import BACKENDS, GPUS

RECIPE = """
name: t
resources: {{infra: {backend}, accelerators: "{gpu}"}}
workdir: up
run: mkdir -p out/inner; echo 1 > out/inner/a; echo 2 > out/tool; chmod 777 out/tool out/inner; {end}
outputs: {{out: out, tool: out/tool}}
max_duration: 10m
"""


def open_to_others(home: Path) -> list[str]:
    """Files and folders that others may read, write or pass through, with their modes."""
    found = [home, *home.rglob("*")]
    modes = [(path, stat.S_IMODE(path.lstat().st_mode)) for path in found if not path.is_symlink()]
    return [f"{mode:o} {path}" for path, mode in modes if mode & 0o077]


def submit(cli: Cli, backend: str, end: str, *, umask: int, more: tuple[str, ...]) -> None:
    path = cli.recipe(RECIPE.format(backend=backend, gpu=GPUS[backend], end=end))
    done = cli("submit", path, "--yes", *more, umask=umask, timeout=240)
    assert done.returncode == (0 if end == "true" else 1), done.stderr


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=["open", "closed"])
def test_runs_of_one_process_leave_nothing_that_others_can_read(cli: Cli, umask: int) -> None:
    (cli.folder / "up").mkdir()
    for backend, end in zip(BACKENDS, ["true", "exit 3"], strict=True):
        submit(cli, backend, end, umask=umask, more=("--here",))
    assert len(list(cli.home.rglob("*"))) > 10
    assert open_to_others(cli.home) == []
