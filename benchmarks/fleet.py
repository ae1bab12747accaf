"""What a task of a fleet costs beside its own work: 500 no-ops over 8 machines, against a process pool.

    python benchmarks/fleet.py

Seconds by the wall clock, on the fake cloud, all in one run and in turns; believe the ratio.
"""

import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

MACHINES, TASKS, ROUNDS = 8, 500, 3


def nothing(number: int) -> int:
    """Do nothing."""
    return number


def meet(folder: str, number: int) -> str:
    """Wait for a second, so that another machine takes the next."""
    time.sleep(1.0)
    return f"{os.environ.get('GPUJOBS_MACHINE', os.getpid())} {folder} {number}"


def per_task_s(pool: Executor) -> float:
    """Measure one round."""
    began_s = time.perf_counter()
    futures = [pool.submit(nothing, number) for number in range(TASKS)]
    assert [future.result() for future in futures] == list(range(TASKS))
    return (time.perf_counter() - began_s) / TASKS


def warm(pool: Executor) -> None:
    """Have all workers up."""
    seen: set[str] = set()
    while len(seen) < MACHINES:
        seen |= {told.split()[0] for told in pool.map(meet, [""] * 2 * MACHINES, range(2 * MACHINES))}


def main() -> None:
    """Measure and print."""
    from fake_server import FakeCloud  # noqa: PLC0415 - the machine imports this file too, and has no fake
    from gpujobs import Fleet  # noqa: PLC0415 - as above

    with ProcessPoolExecutor(MACHINES) as processes, tempfile.TemporaryDirectory() as home:
        warm(processes)  # before there are threads, which a fork does not bear well
        os.environ.update({"GPUJOBS_HOME": home, "XDG_CONFIG_HOME": home})
        keys = {"accelerators": "RTX 4090", "infra": "autodl", "workdir": str(Path(__file__).parent)}
        with FakeCloud(environment=True), Fleet(keys, machines=MACHINES) as fleet:
            warm(fleet)
            rounds = [(per_task_s(fleet), per_task_s(processes)) for _ in range(ROUNDS)]
    fleet_s, processes_s = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"fleet {fleet_s * 1000:.2f} ms a task, ProcessPoolExecutor {processes_s * 1000:.2f} ms a task")
    print(f"ratio {fleet_s / processes_s:.1f}")


if __name__ == "__main__":
    sys.exit(main())
