"""What a run costs the controller: our host, side by side with Prefect's process worker and a flow that does nothing.

Each has a Prefect server of its own, started as `gpujobs up` starts it, that counts the calls that it gets; servers,
hosts and the fake cloud are on this one machine. Of each number of runs, all are due at once:

start    seconds from being due to Running, the median run and the last one
one more the same of a single run that is due while all of them wait
memory   MB of the host (of the worker and its processes) more than at rest, by run, while all of them wait
calls    HTTP calls to the Prefect API by run, from its creation to its end, those of an idle host left out
CPU      seconds by run: of the server, and of the host (the worker with its processes), less what they use at rest

Our runs wait for machines that are kept in creating; those of the process worker sleep. The CPU is measured over whole
runs: plan, rent, push, run, pull and release here, nothing there; `own work` is the CPU of the same recipes in one
process without Prefect.
python benchmarks/prefect_host.py [RUNS ...]   (1 10 50; CPU at 20)
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import requests
from prefect_place import Place, family, until

from gpujobs import lifecycle, prefect_api
from gpujobs import settings as gpujobs_settings
from gpujobs.clock import StopToken
from gpujobs.host import Host
from gpujobs.recipe import Recipe

ROOT = Path(__file__).parent.parent
FINAL = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
AT_ONCE = 20

FAKE = """
from fake_server import catalog
catalog.MATRIXDC_GPUS["4090"] = 100  # as many as there may be runs
from fake_server.__main__ import main
main()
"""

NOTHING = """
import asyncio
import os

from prefect import flow


@flow
async def nothing(seconds: float = 0.0) -> None:
    await asyncio.sleep(seconds)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of one way to run flows."""

    start_s: Sequence[float] = ()
    one_more_s: float = 0.0
    memory_mb: float = 0.0
    asked_per_s: float = 0.0
    calls: float = 0.0
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    paths: Mapping[str, float] = field(default_factory=dict)


class Fallen(Exception):
    """Not all runs that were to wait began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One way to run flows: how a run of it is made (to wait, or to be done at once), and how those that wait end."""

    place: Place
    submit: Callable[[bool], str]
    let_go: Callable[[], None]
    asked: Callable[[], int] = lambda: 0  # how often the provider was asked for its list so far
    rented: Callable[[], int] = lambda: sys.maxsize  # machines that are rented now
    run_mb: float = 0.0  # what a run takes of this machine's memory, where that is much

    def measure_start(self, number: int) -> Figures:
        """Have so many runs wait at once, and one more come while they do."""
        place, rest_mb = self.place, self.place.memory_mb()
        ids = [self.submit(True) for _ in range(number)]
        runs = self._await_begun(ids)
        until(lambda: self.rented() >= number, 300)  # those that came last are where they wait
        time.sleep(10)  # a watcher asks less and less often while nothing happens
        asked = self.asked()
        time.sleep(10)
        asked_per_s = (self.asked() - asked) / 10
        memory_mb = (place.memory_mb() - rest_mb) / number
        ids.append(self.submit(True))
        more = self._await_begun(ids[-1:])
        self.let_go()
        self._await_ended(ids)
        start_s = [_seconds(run["start_time"]) - _seconds(run["expected_start_time"]) for run in (*runs, *more)]
        return Figures(start_s=start_s[:-1], one_more_s=start_s[-1], memory_mb=memory_mb, asked_per_s=asked_per_s)

    def warm_up(self) -> None:
        """Have one run done: what is imported, opened and made once is no part of a run's cost."""
        until(lambda: self.place.ask("POST", "/work_pools/filter", {}), 120)
        self._await_ended([self.submit(False)])

    def measure_cpu(self, number: int) -> Figures:
        """Have so many runs done at once."""
        rate = self._rate()
        self.place.calls()
        began, before = time.monotonic(), self.place.cpu_s()
        ids = [self.submit(False) for _ in range(number)]
        self._await_ended(ids)
        time.sleep(7)  # what the server writes late
        after, took_s = self.place.cpu_s(), time.monotonic() - began
        calls = self.place.calls()
        return Figures(
            cpu_s={name: (after[name] - before[name] - rate[name] * took_s) / number for name in after},
            calls=sum(calls.values()) / number,
            paths={path: count / number for path, count in calls.items()},
        )

    def _rate(self) -> Mapping[str, float]:
        """Give the CPU seconds a second at rest."""
        time.sleep(8)
        before = self.place.cpu_s()
        time.sleep(10)
        return {name: (after - before[name]) / 10 for name, after in self.place.cpu_s().items()}

    def _await_begun(self, ids: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        """Wait until all are Running. Raises Fallen where they cannot be any more."""

        def has_fallen() -> str:
            ended = self._count(ids, FINAL)
            dead = "" if self.place.processes["worker"].poll() is None else "the worker has ended; "
            return f"{dead}{ended} of {len(ids)} runs ended" if dead or ended else ""

        def running_or_fallen() -> bool:
            if fallen := has_fallen():
                raise Fallen(fallen)
            return self._count(ids, ["RUNNING"]) == len(ids)

        until(running_or_fallen, 900, every_s=1.0)
        return self._found(ids, ["RUNNING"])

    def _await_ended(self, ids: Sequence[str]) -> None:
        until(lambda: self._count(ids, FINAL) == len(ids), 900, every_s=1.0)

    def _count(self, ids: Sequence[str], states: Sequence[str]) -> int:
        return int(self.place.ask("POST", "/flow_runs/count", _query(ids, states)))

    def _found(self, ids: Sequence[str], states: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = self.place.ask("POST", "/flow_runs/filter", _query(ids, states))
        return found


def _query(ids: Sequence[str], states: Sequence[str]) -> Mapping[str, Any]:
    return {"flow_runs": {"id": {"any_": list(ids)}, "state": {"type": {"any_": list(states)}}}}


def ours(place: Place, fake_url: str) -> Subject:
    """Start our host, for a fake cloud that keeps machines in creating where a run is to wait."""
    place.start_server()
    place.spawn("worker", "-P", "-m", "gpujobs", "serve", PREFECT_API_URL=place.api)
    settings = gpujobs_settings.load()

    def submit(waits: bool) -> str:
        if waits:
            ask_fake(fake_url, "POST", "faults", {"kind": "stuck_in_creating", "machine": "*", "count": None})
        return prefect_api.submit(settings, place.api, recipe())[1]

    def let_go() -> None:
        ask_fake(fake_url, "DELETE", "faults")

    def asked() -> int:
        return json.dumps(ask_fake(fake_url, "GET", "calls?limit=1000000")).count("matrixdc.list_instances")

    def rented() -> int:
        return sum(machine["gone_at"] is None for machine in ask_fake(fake_url, "GET", "ledger")["machines"])

    found = Subject(place=place, submit=submit, let_go=let_go, asked=asked, rented=rented)
    found.warm_up()
    return found


def theirs(place: Place) -> Subject:
    """Start Prefect's process worker, for a flow that does nothing."""
    place.start_server()
    (place.home / "nothing.py").write_text(NOTHING)
    prefect = [sys.executable, "-m", "prefect"]
    pool = [*prefect, "work-pool", "create", "processes", "--type", "process"]
    deploy = [*prefect, "--no-prompt", "deploy", "nothing.py:nothing", "--name", "nothing", "--pool", "processes"]
    for command in (pool, deploy):
        environment = {**place.environment, "PREFECT_API_URL": place.api}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=place.home)
    deployment = place.ask("GET", "/deployments/name/nothing/nothing")["id"]
    quick = {"PREFECT_WORKER_QUERY_SECONDS": "0.5", "PREFECT_WORKER_PREFETCH_SECONDS": "0"}
    place.spawn("worker", *prefect[1:], "worker", "start", "--pool", "processes", PREFECT_API_URL=place.api, **quick)

    def submit(waits: bool) -> str:
        body = {"parameters": {"seconds": 3600.0 if waits else 0.0}}
        return str(place.ask("POST", f"/deployments/{deployment}/create_flow_run", body)["id"])

    def let_go() -> None:
        for pid in family(place.processes["worker"].pid)[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    found = Subject(place=place, submit=submit, let_go=let_go, run_mb=110.0)
    found.warm_up()
    return found


def ask_fake(url: str, method: str, path: str, body: object = None) -> Any:
    """Call the fake cloud's control room."""
    headers = {"X-Fake-Control": "fake-control"}
    reply = requests.request(method, f"{url}/_fake/{path}", json=body, headers=headers, timeout=60)
    reply.raise_for_status()
    return reply.json()


def recipe() -> Recipe:
    """A recipe that does next to nothing."""
    resources = {"infra": "matrixdc", "accelerators": "4090"}
    return Recipe.model_validate({"name": "t", "resources": resources, "run": "echo hello", "max_duration": "1h"})


def own_work_s(number: int) -> float:
    """Give the CPU seconds of one run among so many that one process drives at once, without Prefect."""
    settings = gpujobs_settings.load()
    with Host.open(settings) as host:
        _drive(host, 1)
        before = time.process_time()
        _drive(host, number)
        return (time.process_time() - before) / number


def _drive(host: Host, number: int) -> None:
    def run() -> None:
        run_id = lifecycle.new_run_id()
        lifecycle.open_run(host, recipe(), run_id=run_id)
        lifecycle.execute(host, run_id, stop=StopToken(), reporter=Silent())

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Silent:
    """A reporter that nobody reads."""

    def phase(self, name: str, detail: str) -> None:
        """Drop it."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Drop it."""

    def note(self, text: str) -> None:
        """Drop it."""

    def output(self, data: bytes) -> None:
        """Drop it."""


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


@contextmanager
def opened(folder: Path) -> Iterator[tuple[str, Callable[[str], Place]]]:
    """Start a fake cloud, and point this process at it and at an empty home; give its URL, and what makes a place."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "GPUJOBS_"))}
    environment = {**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-P", "-c", FAKE, "--port", "0", "--seed", "1"]
    places: list[Place] = []

    def place(name: str) -> Place:
        home = folder / name
        (home / "prefect").mkdir(parents=True)
        places.append(Place(home=home, environment={**environment, "PREFECT_HOME": str(home / "prefect")}))
        return places[-1]

    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as fake:
        try:
            assert fake.stdout is not None
            url = fake.stdout.readline().split()[-1]
            environment |= {"AUTODL_TOKEN": "", "MATRIXDC_TOKEN": "fake-token", "MATRIXDC_NAMESPACE": "fake-user"}
            environment |= {"MATRIXDC_API_URL": f"{url}/mdc/api/v1", "XDG_CONFIG_HOME": str(folder)}
            environment |= {"GPUJOBS_HOME": str(folder / "gpujobs"), "GPUJOBS_OWNER": "bench"}
            os.environ.update(environment)
            yield url, place
        finally:
            for one in places:
                one.end()
            fake.terminate()


def show_start(name: str, subject: Subject, number: int) -> Figures | None:
    """Measure, and print a line; None where this machine has no room for so many, or they do not all begin."""
    room_mb = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    if number * subject.run_mb > room_mb:
        print(f"{name:16}{number:>6}   no room: some {number * subject.run_mb:.0f} MB of {room_mb:.0f}", flush=True)
        return None
    try:
        found = subject.measure_start(number)
    except (Fallen, requests.Timeout) as why:  # a server on SQLite takes 100 requests, each run's two websockets too
        print(f"{name:16}{number:>6}   {why}", flush=True)
        return None
    starts = f"{median(found.start_s):.1f} ({max(found.start_s):.1f})"
    print(
        f"{name:16}{number:>6}{starts:>16}{found.one_more_s:>10.1f}{found.memory_mb:>10.1f}{found.asked_per_s:>10.2f}"
        f"{os.getloadavg()[0]:>8.1f}",
        flush=True,
    )
    return found


def show_cpu(name: str, subject: Subject, own_s: float) -> float:
    """Measure, and print a line; give the CPU seconds of a run beyond its own work."""
    found = subject.measure_cpu(AT_ONCE)
    beyond_s = sum(found.cpu_s.values()) - own_s
    server_s, worker_s = found.cpu_s["server"], found.cpu_s["worker"]
    shown = "".join(f"{value:>10.2f}" for value in (server_s, worker_s, own_s, beyond_s))
    print(f"{name:16}{AT_ONCE:>6}{shown}{found.calls:>8.1f}{os.getloadavg()[0]:>8.1f}", flush=True)
    for path, count in sorted(found.paths.items(), key=lambda item: -item[1]):
        print(f"{'':24}{count:6.2f} {path}")
    return beyond_s


def main() -> None:
    """Print the tables and the ratios."""
    numbers = [int(word) for word in sys.argv[1:]] or [1, 10, 50]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what was started here too
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as (fake_url, place):
        us, them = ours(place("ours"), fake_url), theirs(place("theirs"))
        names = [f"{name:>10}" for name in ("server", "host", "own work", "beyond")] + [f"{'calls':>8}{'load':>8}"]
        print(f"{'CPU s a run':16}{'runs':>6}" + "".join(names))
        mine_s, peer_s = show_cpu("gpujobs", us, own_work_s(AT_ONCE)), show_cpu("process worker", them, 0.0)
        print(f"{'ratio':16}{'':36}{mine_s / peer_s:>10.2f}")
        print(f"{'':16}{'runs':>6}{'start s (last)':>16}{'one more':>10}{'MB a run':>10}{'lists/s':>10}{'load':>8}")
        for number in numbers:
            mine = show_start("gpujobs", us, number)
            peer = show_start("process worker", them, number)
            if mine is None or peer is None:
                continue
            print(f"{'ratio':16}{'':6}{median(mine.start_s) / median(peer.start_s):>16.2f}", end="")
            print(f"{mine.one_more_s / peer.one_more_s:>10.2f}{mine.memory_mb / peer.memory_mb:>10.3f}")


if __name__ == "__main__":
    main()
