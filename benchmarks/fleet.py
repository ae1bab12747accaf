"""What a task of a fleet costs beside its own work, and a large argument and result, against others who do the same.

    python benchmarks/fleet.py [ROUNDS]

500 no-op tasks over 8 machines that are up, against ProcessPoolExecutor, Dask distributed, Parsl's
HighThroughputExecutor and submitit's LocalExecutor with 8 local workers (submitit: 24 tasks, 8 at a time); one task's
round trip against `ssh machine python3 -c pass`; a 200 MB array there and back against `scp` there and back, both to
the same machine. The peers come into an environment of their own, which is thrown away. On the fake cloud, all in one
run; each peer takes turns with the fleet. Seconds by the wall clock, medians; believe the ratios.
"""

import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpujobs import Fleet

MACHINES, TASKS, ROUNDS, MEGABYTES = 8, 500, 3, 200
PEERS = ("ProcessPoolExecutor", "Dask distributed", "Parsl HTEX", "submitit")
HERE = Path(__file__).parent


def nothing(number: int) -> int:
    """Do nothing."""
    return number


def back(array: Any) -> Any:
    """Give the argument back."""
    return array


def meet(_number: int) -> str:
    """Wait for a second, so that another machine takes the next."""
    time.sleep(1.0)
    return os.environ["GPUJOBS_MACHINE"]


def timed_s(act: Callable[[], object]) -> float:
    """Give the seconds that `act` takes."""
    began_s = time.perf_counter()
    act()
    return time.perf_counter() - began_s


def per_task_s(pool: "Fleet") -> float:
    """Measure one round of no-ops."""

    def all_of_them() -> None:
        futures = [pool.submit(nothing, number) for number in range(TASKS)]
        assert [future.result() for future in futures] == list(range(TASKS))

    return timed_s(all_of_them) / TASKS


def warm(pool: "Fleet", machines: int) -> None:
    """Have all machines up."""
    seen: set[str] = set()
    while len(seen) < machines:
        seen |= set(pool.map(meet, range(2 * machines)))


@contextmanager
def peer(python: Path, name: str, folder: str) -> Iterator[Callable[[], float]]:
    """Give what measures one round of a peer's."""
    command = [str(python), str(HERE / "fleet_peers.py"), name]
    env = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, cwd=folder, env=env, **pipes) as process:

        def ask() -> float:
            print("go", file=process.stdin, flush=True)
            for line in process.stdout or []:
                if line.startswith("took "):
                    return float(line.split()[1])
                print(f"{name}: {line}", end="", file=sys.stderr)
            raise ChildProcessError(name)

        try:
            yield ask
        finally:
            if process.stdin is not None:
                process.stdin.close()
            process.wait()


def ssh_to(pool: "Fleet", folder: str) -> tuple[list[str], str]:
    """Give the options of ssh and scp for the fleet's one machine, with our own key, and its user and host."""
    from gpujobs import settings  # noqa: PLC0415 - as in main
    from gpujobs.host import Host  # noqa: PLC0415 - as in main

    (machine,) = pool.machines
    with Host.open(settings.load()) as host:
        access = host.backend(machine.backend).access(machine)
    assert access is not None
    options = ["StrictHostKeyChecking=no", f"UserKnownHostsFile={folder}/known", "IdentitiesOnly=yes", "LogLevel=ERROR"]
    words = [
        "-F",
        "none",
        "-i",
        f"{folder}/ssh/id_ed25519",
        "-c",
        "aes128-gcm@openssh.com",
        "-o",
        f"Port={access.port}",
    ]
    return [*words, *(word for one in options for word in ("-o", one))], f"{access.user}@{access.host}"


def round_trips(pool: "Fleet", folder: str, rounds: int) -> Iterator[tuple[str, str, list[tuple[float, float]]]]:
    """Measure one task, and a large array, beside OpenSSH's programs on the same machine."""
    import numpy as np  # noqa: PLC0415 - not needed for the tasks

    words, at = ssh_to(pool, folder)
    ssh = ["ssh", *words, at, "python3", "-c", "pass"]
    pairs = [
        (timed_s(lambda: pool.submit(nothing, 1).result()), timed_s(lambda: subprocess.run(ssh, check=True)))
        for _ in range(5 * rounds)
    ]
    yield "one task's round trip", "ssh … python3 -c pass", pairs
    array, path = np.random.default_rng(1).random(MEGABYTES * 125_000), f"{folder}/array.npy"
    np.save(path, array)
    scp, away = shlex.join(["scp", "-q", *words]), shlex.quote(f"{at}:/root/array.npy")
    script = f"{scp} {path} {away} && {scp} {away} {path}.back"
    pairs = [
        (
            timed_s(lambda: pool.submit(back, array).result()),
            timed_s(lambda: subprocess.run(["sh", "-c", script], check=True)),
        )
        for _ in range(rounds)
    ]
    yield f"{MEGABYTES} MB there and back", "scp there and back", pairs


def report(what: str, other: str, pairs: list[tuple[float, float]]) -> None:
    """Print a row of the table."""
    ours_s, theirs_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    print(f"| {what} | {ours_s * 1000:.2f} | {other} | {theirs_s * 1000:.2f} | {ratio:.2f} |", flush=True)


def main(rounds: int) -> None:
    """Measure and print."""
    from fake_load import served  # noqa: PLC0415 - the machine imports this file too, and has neither

    from gpujobs import Fleet  # noqa: PLC0415 - as above

    with tempfile.TemporaryDirectory() as home:
        os.environ.update({"GPUJOBS_HOME": home, "XDG_CONFIG_HOME": home})
        python = Path(home) / "peers/bin/python"
        subprocess.run(["uv", "venv", "-q", "-p", sys.executable, f"{home}/peers"], check=True)
        libraries = ["submitit", "parsl", "distributed"]
        subprocess.run(["uv", "pip", "install", "-q", "-p", str(python), *libraries], check=True)
        keys = {"accelerators": "RTX 4090", "infra": "autodl", "workdir": str(HERE)}
        print(f"load before: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {rounds} rounds")
        print("| what | ours, ms | against | theirs, ms | ratio |\n|---|---|---|---|---|")
        with served("-m", "fake_server", "--port", "0") as (url, _):  # as a cloud is: none of this process's work
            os.environ.update({"AUTODL_TOKEN": "fake-token", "AUTODL_API_URL": url, "MATRIXDC_TOKEN": ""})
            with Fleet(keys, machines=MACHINES) as fleet:
                warm(fleet, MACHINES)
                for name in PEERS:
                    try:
                        with peer(python, name, home) as theirs_s:
                            theirs_s()  # the first round pays for imports
                            report("a no-op task", name, [(per_task_s(fleet), theirs_s()) for _ in range(rounds)])
                    except ChildProcessError:  # on a loaded machine some do not come up in their own time
                        print(f"| a no-op task | | {name} | failed | |", flush=True)
            with Fleet(keys, machines=1) as fleet:
                warm(fleet, 1)
                for row in round_trips(fleet, home, rounds):
                    report(*row)
        print(f"load after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
