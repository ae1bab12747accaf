"""That states which differ are told apart, and that `tools/pairs.py` finds what breaks."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.crash.durable import durable, repeatable
from tests.crash.lives import RUN, live
from tests.crash.world import World, world_of

PROJECT = Path(__file__).parents[2]
FEW = ("--backend", "matrixdc", "--every", "60", "--parts", "40")
BROKEN = """
import runpy, sys
from tests.crash import lives, pairs

def check(world, **_):
    raise AssertionError("nothing holds")

pairs.check = lives.check = check
sys.argv[0] = "tools/pairs.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CHANGES: Sequence[Callable[[World], object]] = (
    lambda world: world.clock.move(0.001),
    lambda world: world.ledger.update_run(RUN, detail="another"),
    lambda world: (world.home / "runs" / RUN / "output.log").write_bytes(b"more"),
    lambda world: (world.home / "runs" / RUN / "output.log").chmod(0o640),
    lambda world: (world.home / "runs" / RUN / "outputs" / "new").mkdir(),
    lambda world: world.fake.world.ground.timeline.after(90.0, print),
    lambda world: world.fake.world.ground.random.random(),
    lambda world: world.fake.world.matrixdc.idle.clear(),
    lambda world: world.fake.world.ground.truth.machines.clear(),
    lambda world: world.fault("list_instances", "stale_list"),
    lambda world: next(iter(world.machines.values())).keys.add(b"another"),
    lambda world: next(iter(world.machines.values())).disks.content.clear(),
    lambda world: world.starts.clear(),
    lambda world: world.network.strike({1: "slow"}),
)


def test_whatever_outlives_a_process_tells_one_state_from_another(tmp_path: Path) -> None:
    with world_of("matrixdc", tmp_path) as world, repeatable(world) as again:
        found = []
        for change in (lambda _: None, lambda _: None, *CHANGES):
            again()
            live(world)
            change(world)
            found.append(durable(world))
    assert found[0] == found[1], "the same life leaves another state"
    assert len(set(found)) == 1 + len(CHANGES)


def run(program: Sequence[str], options: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run the tool, as it is or broken, to its end."""
    command, env = [sys.executable, *program, *options], {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False, timeout=500)


@pytest.mark.parametrize(("program", "code"), [(("tools/pairs.py",), 0), (("-c", BROKEN), 1)])
def test_few_of_all_pairs_hold_and_what_breaks_one_is_found(program: Sequence[str], code: int) -> None:
    done = run(program, FEW)
    assert done.returncode == code, done.stderr
    met, judged, broke = map(int, re.findall(r"(\d+) (?:different states\n|of these|broke)", done.stdout)[1:])
    assert judged == math.ceil(met / 40) > 1
    assert broke == (judged if code else 0), done.stdout


@pytest.mark.parametrize(("program", "code"), [(("tools/pairs.py",), 0), (("-c", BROKEN), 1)])
def test_few_kills_under_a_fault_hold_and_what_breaks_one_is_found(program: Sequence[str], code: int) -> None:
    done = run(program, ("--once", "--backend", "matrixdc", "--fault", "delete-late_act-30", "--every", "50"))
    assert done.returncode == code, done.stderr
    figures, *broke = done.stdout.splitlines()
    assert re.fullmatch(rf"matrixdc, delete-late_act-30: \d+ places, \d+ states, {len(broke)} broke a promise", figures)
    assert bool(broke) == bool(code)
