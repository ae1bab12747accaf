"""A real `gpujobs submit --here` that kills itself with kill -9 at a place of its own."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gpujobs.clock import SystemClock
from tests.cloud import GPUS

KILLED = """
import os, re, signal, sys
from gpujobs import crash
from gpujobs.cli.entry import main

wanted = re.compile(sys.argv.pop(1))

def strike(name):
    if wanted.search(name):
        os.kill(os.getpid(), signal.SIGKILL)

with crash.armed(strike):
    sys.exit(main())
"""
PLACES = {
    "the intent is written, nothing is asked for": r"^before http \w+ POST create",
    "it is made, and the reply is lost": r"^after http \w+ POST create",
    "it is made, and that is written down": r"^after ledger machine update .*settled",
    "boot: logging in": r"^before dial log in",
    "push: the runner is on its way": r"^before ssh umask 077 && mkdir",
    "run: the work is to be started": r"^before ssh .*runner\.sh start$",
    "run: the work has been started": r"^after ssh .*runner\.sh start$",
    "run: output has come": r"^after file add to output\.log",
    "pull: an output is to be put in its place": r"^before file put in place kept",
    "release: it is asked for": r"^after http \w+ DELETE",
}
RECIPE = """
name: t
resources: {{infra: {backend}, accelerators: "{gpu}"}}
run: |
  echo begun
  echo started >> ~/starts
  cp ~/starts kept
  sleep 0.3
  echo done
outputs: {{kept: kept}}
max_duration: 10m
"""
LOG = b"begun\ndone\n"


class Later(SystemClock):
    """The machine's own clock, some time from now: the dead process's lease has run out."""

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(hours=1)


def submit_and_die(
    place: str, backend: str, folder: Path, *, recipe: str = RECIPE
) -> "subprocess.CompletedProcess[bytes]":
    """Submit a recipe in a process of its own, which kills itself at the first place that fits."""
    path = folder / "recipe.yaml"
    path.write_text(recipe.format(backend=backend, gpu=GPUS[backend]), encoding="utf-8")
    command = [sys.executable, "-c", KILLED, place, "submit", str(path), "--here", "--yes"]
    return subprocess.run(command, env=os.environ, cwd=folder, capture_output=True, check=False, timeout=120)
