"""What commands cost before they do anything, in multiples of an empty Python; with Prefect's own command beside them.

    python benchmarks/cli_start.py [--rounds 15]

The bytecode is compiled once before, as in an installed package. Medians of the wall clock and of the processor time.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gpujobs.ledger import open_ledger
from gpujobs.ledger_rows import Run

RUNS = 1000
GPUJOBS = [sys.executable, "-m", "gpujobs"]
COMMANDS: dict[str, tuple[Sequence[str], float | None]] = {  # the command, and the most that it may cost
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "gpujobs --help": ([*GPUJOBS, "--help"], 8.0),
    f"gpujobs ls ({RUNS} runs)": ([*GPUJOBS, "ls"], 25.0),
    "gpujobs status": ([*GPUJOBS, "status"], None),
    "gpujobs schema": ([*GPUJOBS, "schema"], None),
    "prefect --help": ([sys.executable, "-m", "prefect", "--help"], None),
}


def fill(home: Path) -> None:
    """Write a ledger of a thousand runs."""
    began = datetime.now(UTC) - timedelta(days=1)
    with open_ledger(f"sqlite:///{home}/ledger.db") as ledger:
        for number in range(RUNS):
            at = began + timedelta(seconds=number)
            ledger.add_run(
                Run(id=f"{number:010x}", name="t", owner="o", recipe_json="{}", state="succeeded", created_at=at)
            )


def children_s() -> float:
    """Give the processor time of all processes that ended, to the microsecond."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(command: Sequence[str], env: dict[str, str], rounds: int) -> tuple[float, float]:
    """Give the median wall clock and processor time of a process, in seconds."""
    walls, works = [], []
    for _ in range(rounds + 1):  # the first compiles
        before_s, began_s = children_s(), time.perf_counter()
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        walls.append(time.perf_counter() - began_s)
        works.append(children_s() - before_s)
    return statistics.median(walls[1:]), statistics.median(works[1:])


def main() -> int:
    """Measure and print; 1 where a command costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        fill(home)
        root = str(Path(__file__).parent.parent)
        env = {**os.environ, "GPUJOBS_HOME": str(home), "PYTHONPYCACHEPREFIX": f"{folder}/pyc", "PYTHONPATH": root}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        over = False
        base = (0.0, 0.0)
        print(f"{'':24}  {'wall':>8}  {'x':>6}  {'cpu':>8}  {'x':>6}")
        for name, (command, most) in COMMANDS.items():
            wall_s, work_s = measure(command, env, rounds)
            base = base if base[0] else (wall_s, work_s)
            times = (wall_s / base[0], work_s / base[1])
            over |= most is not None and times[1] > most
            limit = f"  at most {most:.0f}" if most else ""
            print(f"{name:24}  {wall_s * 1e3:6.0f}ms  {times[0]:6.1f}  {work_s * 1e3:6.0f}ms  {times[1]:6.1f}{limit}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
