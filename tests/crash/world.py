"""A whole world in this thread: both clouds, their machines, a clock that only moves when somebody waits, our host.

The API is the fake's own Flask application, called without a socket; above it everything is as in a real process, but
for two threads (the watcher's and the guard's), whose work is done while the one thread of the simulation waits.
"""

import concurrent.futures
import functools
import io
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from sqlalchemy import text
from werkzeug.test import EnvironBuilder, run_wsgi_app

from fake_server import ground
from fake_server.clock import Timeline
from fake_server.faults import FaultRule
from fake_server.server import FakeServer
from fake_server.spec import ContainerSpec, Endpoint
from fake_server.wire import CUT
from fake_server.world import World as FakeWorld
from gpujobs import host as host_module
from gpujobs import lifecycle, line, shell, transfer_place
from gpujobs.backends import _autodl_stock, _http
from gpujobs.errors import HostKeyChanged
from gpujobs.host import Host, Timing
from gpujobs.ledger import Ledger, open_ledger
from gpujobs.models import Access
from gpujobs.news import NewsWriter
from gpujobs.settings import Settings
from gpujobs.shell_connection import Timeouts
from tests.crash.inline import InlineExecutor, InlineGuard, InlineWatcher, QueueLanes, act_later
from tests.crash.machines import Script, SimConnection, SimExchange, SimMachine, Start, keeper_times
from tests.crash.sim_network import SimNetwork
from tests.fake_server.doubles import QuietContainers

OWNER = "tester"
_TICK_S = 0.001  # the rest of a wait may be too little to change a sum of floats
_STEP_S = 15.0  # how far time moves at most before leases are looked after
_REAL_S = 60.0
_TABLES = ("events", "bills", "machines", "attempts", "snapshots", "runs")
_MUTATING = ("create", "delete", "stop", "operate", "set_", "power", "add_")


class SimContainers(QuietContainers):
    """The fake's machines, each with its side that we log in to."""

    world: "World"

    def start(self, spec: ContainerSpec, *, sshd_delay_s: float = 0.0) -> Endpoint:
        endpoint = super().start(spec, sshd_delay_s=sshd_delay_s)
        machine = SimMachine(
            id=spec.name,
            time=self.world.clock,
            on_start=self.world.work_began,
            network=self.world.network,
            keeper=keeper_times(spec.cmd) if spec.cmd else None,
            script=self.world.script,
        )
        self.world.machines[endpoint.port] = machine
        return endpoint

    def stop(self, name: str, *, grace_s: float = 0.0) -> None:
        super().stop(name, grace_s=grace_s)
        for machine in self.world.machines.values():
            if machine.id == name:
                machine.alive = False

    def end_unneeded(self) -> None:
        """Do as the keepers of rented containers do."""
        for machine in self.world.machines.values():
            if machine.alive and not machine.is_needed():
                self.end_cmd(machine.id)


class SimClock:
    """The fake's own clock, as a Clock: to wait is to move it, and with it all that falls due."""

    def __init__(self, world: "World") -> None:
        self._world, self._driver = world, threading.current_thread()
        self._passed_s = 0.0
        self.look_after: Callable[[], None] = lambda: None

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._world.fake.world.ground.timeline.now(), UTC)

    def monotonic(self) -> float:
        return self._passed_s

    def is_driver(self) -> bool:
        """Whether this is the thread of the simulation."""
        return threading.current_thread() is self._driver

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        if not self.is_driver():  # a bound on a piece of work, which ends before it strikes
            return event.wait(_REAL_S)
        if not event.is_set():
            self.move(max(_TICK_S, timeout_s))
        return event.is_set()

    def move(self, seconds: float) -> None:
        """Let time pass."""
        left_s = seconds
        while True:
            step_s = min(left_s, _STEP_S)
            self._passed_s += step_s
            self._world.pass_time(step_s)
            self.look_after()
            left_s -= step_s
            if left_s <= 0:
                return


class WsgiAdapter(BaseAdapter):
    """Takes requests straight to the fake's application."""

    world: "World"

    def __init__(self, **_: object) -> None:
        super().__init__()
        self._real = HTTPAdapter()

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]
        if not self.world.clock.is_driver():
            raise requests.ConnectionError("a thread that another test has left behind")
        body = request.body.encode() if isinstance(request.body, str) else request.body or b""
        builder = EnvironBuilder(
            path=str(request.url).removeprefix(self.world.fake.url),
            method=request.method,
            headers=dict(request.headers),
            data=body,
            base_url=self.world.fake.url,
        )
        environ = builder.get_environ()
        chunks, status, headers = run_wsgi_app(self.world.app, environ, buffered=True)
        self.world.settle()
        if environ.get(CUT) is not None:
            raise requests.ConnectionError(urllib3.exceptions.ProtocolError("cut", ConnectionResetError()))
        reply = urllib3.HTTPResponse(
            body=io.BytesIO(b"".join(chunks)),
            headers=list(headers.items()),
            status=int(status.split()[0]),
            preload_content=False,
        )
        return self._real.build_response(request, reply)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class World:
    """Both clouds, one ledger, one home."""

    folder: Path
    backend: str
    machines: dict[int, SimMachine] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    acts_late: bool = False
    network: SimNetwork = field(default_factory=SimNetwork)
    script: Script = field(default_factory=Script)  # what the work of the next machines does
    parts: Mapping[str, Any] = field(default_factory=dict)  # of the recipe, beside a folder up and a file down
    timing: Timing = field(default_factory=Timing)
    on_work: Callable[[], object] = bool  # called when work has begun

    def open(self) -> None:
        """Begin; `new` gives each test a world of its own."""
        containers = type("Containers", (SimContainers,), {"world": self})
        self.fake = FakeServer(seed=1, speed=0.0, containers=containers)
        self.fake.url = "http://127.0.0.1:9"
        self.fake._folder = self.folder / "fake"
        self.fake._folder.mkdir()
        self.fake.world = self.fake._make_world(self.fake._folder)
        self.app = self.fake._app()
        self.clock = SimClock(self)
        self.home = self.folder / "home"
        self.settings = Settings(
            home=self.home, database_url=f"sqlite:///{self.home}/ledger.db", owner=OWNER, config=self._config()
        )
        self.ledger = open_ledger(self.settings.database_url, clock=self.clock)

    def close(self) -> None:
        """End."""
        self.ledger.close()
        self.fake.world.close()
        self.fake.recorder.close()

    def new(self) -> None:
        """Make everything as if nothing had ever been."""
        self.fake.reset()
        self.machines.clear()
        self.starts.clear()
        self.acts_late = False
        self.network.mend()
        with self.ledger._database.engine.begin() as connection:
            for table in _TABLES:
                connection.execute(text(f"DELETE FROM {table}"))
        for name in ("runs", "ssh", "unreleased"):
            shutil.rmtree(self.home / name, ignore_errors=True)

    def host(self) -> Host:
        """Be a new process: nothing is left of an earlier one but the ledger, the home, and what the clouds know."""
        self.clock.look_after = lambda: None
        ledger = Ledger(self.ledger._database)
        host = Host(self.settings, ledger, clock=self.clock, dice=random.Random(1), timing=self.timing)
        guard = InlineGuard(ledger, clock=self.clock, timing=host.timing)
        host._guard = guard
        self.clock.look_after = guard.look_after
        return host

    def fault(self, endpoint: str, kind: str, **more: Any) -> None:
        """Make a call go wrong."""
        self.acts_late |= kind == "late_act"
        self.fake.faults.add(FaultRule.model_validate({"endpoint": f"{self.backend}.{endpoint}", "kind": kind, **more}))

    def pass_time(self, seconds: float) -> None:
        """Move the clouds' clock, and let everything happen that falls due."""
        timeline = self.fake.world.ground.timeline
        timeline.advance(seconds)
        self.fake.world.ground.containers.end_unneeded()
        self.settle()

    def settle(self) -> None:
        """Let everything happen that is due now."""
        under = self.fake.world.ground
        while True:
            before = under.stirrings
            under.settle(_REAL_S)
            under.timeline.advance(0.0)
            if under.stirrings == before:
                return

    def work_began(self, machine_id: str, name: str) -> None:
        """Hear of a start."""
        ours = name.rpartition("-")[0]
        beside = [one.name for one in self.fake.world.ground.truth.alive() if one.name.startswith(ours)]
        beside.remove(name)
        if self.acts_late:  # an earlier attempt's machine may come when nobody can expect it any more, and does no work
            beside = [start.name for start in self.starts if start.name in beside]
        self.starts.append(Start(machine_id, name, tuple(beside)))
        self.on_work()

    def alive(self) -> Sequence[str]:
        """Name the machines that are not gone, by the truth."""
        return sorted(machine.name for machine in self.fake.world.ground.truth.alive())

    def acts(self) -> Mapping[str, int]:
        """Count the calls that change something at a provider."""
        calls = self.fake.world.ground.calls
        return {name: n for name, n in calls.items() if name.partition(".")[2].startswith(_MUTATING)}

    def rows(self) -> Mapping[str, Sequence[Any]]:
        """Give everything that the ledger holds."""
        with self.ledger._database.engine.connect() as connection:
            return {
                table: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2"))]
                for table in _TABLES
            }

    def connect(self, access: Access, *, host_key: str | None, pkey_path: Path | None, timeouts: Timeouts) -> Any:
        """Log in to a machine, in the place of `open_connection`."""
        del timeouts
        machine = self.machines[access.port]
        key = shell.make_key(pkey_path).encode() if pkey_path else b""
        own_key = f"ssh-ed25519 AAAA{access.port}"
        if host_key not in {None, own_key}:
            raise HostKeyChanged(f"another machine answers at port {access.port}")
        by_password = key not in machine.keys
        assert access.password or not by_password
        return SimConnection(machine, host_key=own_key, by_password=by_password)

    def reachable(self, host: str, port: int, timeout_s: float) -> bool:
        """Say whether somebody answers, in the place of the TCP probe."""
        del host, timeout_s
        open_to_us = not self.network.refuses(self.clock)
        return open_to_us and port in self.machines and self.machines[port].alive

    def _config(self) -> Mapping[str, Any]:
        own = f"{self.backend}_"
        env = {name.lower(): value for name, value in self.fake.env().items()}
        return {self.backend: {name.removeprefix(own): env[name] for name in env if name.startswith(own)}}


@contextmanager
def world_of(backend: str, folder: Path) -> Iterator[World]:
    """Open a world, with all that stands in the place of sockets and threads, for as long as the block runs."""
    world = World(folder=folder, backend=backend)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AUTODL_TOKEN", "AUTODL_API_URL", "MATRIXDC_TOKEN", "MATRIXDC_NAMESPACE", "MATRIXDC_API_URL"):
            patch.delenv(name, raising=False)
        patch.setattr(_http, "PromptAdapter", type("Adapter", (WsgiAdapter,), {"world": world}))
        patch.setattr(shell, "Exchange", SimExchange)
        patch.setattr(shell, "open_connection", world.connect)
        patch.setattr(line, "reachable", world.reachable)
        patch.setattr(host_module, "Watcher", InlineWatcher)
        for module in (concurrent.futures, _autodl_stock):
            patch.setattr(module, "ThreadPoolExecutor", InlineExecutor)
        patch.setattr(transfer_place, "_lives", lambda _: False)  # a dead process has our own number here
        patch.setattr(ground, "Lanes", QueueLanes)
        patch.setattr(Timeline, "start", lambda _: None)
        patch.setattr(FakeWorld, "later", act_later)
        world.open()
        news = functools.partial(NewsWriter, now=world.clock.monotonic)
        patch.setattr(lifecycle, "NewsWriter", news)
        try:
            yield world
        finally:
            world.close()
