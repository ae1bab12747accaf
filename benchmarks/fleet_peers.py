"""No-op tasks over eight warm workers of one library: `python fleet_peers.py NAME`, asked by fleet.py line by line.

Runs in an environment of the peers' own. For each line that it reads, it prints the seconds that a task took.
"""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

WORKERS, TASKS = 8, 500
SUBMITIT_TASKS = 24  # each is a process of its own, and so many at a time are begun as there are workers
Submit = Callable[[Callable[[int], int], int], Any]


def nothing(number: int) -> int:
    """Do nothing."""
    return number


def meet(number: int) -> int:
    """Take a worker for half a second, so that another takes the next."""
    import os  # noqa: PLC0415 - Parsl sends the function without its module
    import time  # noqa: PLC0415 - as above

    time.sleep(0.5)
    return os.getpid() + 0 * number


@contextmanager
def processes() -> Iterator[Submit]:
    """Give the standard library's process pool."""
    with ProcessPoolExecutor(WORKERS) as pool:
        yield pool.submit


@contextmanager
def dask() -> Iterator[Submit]:
    """Give a local cluster of Dask distributed."""
    from distributed import Client, LocalCluster  # noqa: PLC0415 - no other peer has it

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as ask,
    ):
        yield lambda function, number: ask.submit(function, number, pure=False)


@contextmanager
def parsl() -> Iterator[Submit]:
    """Give Parsl's HighThroughputExecutor with a local provider."""
    import parsl as library  # noqa: PLC0415 - no other peer has it
    from parsl.config import Config  # noqa: PLC0415 - no other peer has it
    from parsl.executors import HighThroughputExecutor  # noqa: PLC0415 - no other peer has it
    from parsl.providers import LocalProvider  # noqa: PLC0415 - no other peer has it

    workers = HighThroughputExecutor(
        address="127.0.0.1",
        cores_per_worker=0.1,
        max_workers_per_node=WORKERS,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    with library.load(Config(executors=[workers], usage_tracking=0)):
        apps: dict[Any, Any] = {}
        yield lambda function, number: apps.setdefault(function, library.python_app(function))(number)


@contextmanager
def submitit() -> Iterator[Submit]:
    """Give submitit's LocalExecutor, which has no workers: a process begins with each task."""
    from submitit import LocalExecutor  # noqa: PLC0415 - no other peer has it

    executor = LocalExecutor(folder="submitit")
    executor.update_parameters(timeout_min=5)
    yield executor.submit


PEERS = {"ProcessPoolExecutor": processes, "Dask distributed": dask, "Parsl HTEX": parsl, "submitit": submitit}


def per_task_s(submit: Submit, *, at_once: int, tasks: int) -> float:
    """Measure one round."""
    began_s = time.perf_counter()
    for first in range(0, tasks, at_once):
        numbers = range(first, min(tasks, first + at_once))
        futures = [submit(nothing, number) for number in numbers]
        assert [future.result() for future in futures] == list(numbers)
    return (time.perf_counter() - began_s) / tasks


def warm(submit: Submit) -> None:
    """Have all workers up."""
    seen: set[int] = set()
    while len(seen) < WORKERS:
        futures = [submit(meet, number) for number in range(2 * WORKERS)]
        seen |= {future.result() for future in futures}


def main(name: str) -> None:
    """Answer until nobody asks any more."""
    sizes = {"at_once": WORKERS, "tasks": SUBMITIT_TASKS} if name == "submitit" else {"at_once": TASKS, "tasks": TASKS}
    with PEERS[name]() as submit:
        if name != "submitit":
            warm(submit)
        for _ in sys.stdin:
            print(f"took {per_task_s(submit, **sizes)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
