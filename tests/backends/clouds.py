"""What tests of backends share: a fake cloud without SSH, accounts on it, and small servers that answer as told."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fake_server.faults import FaultRule
from fake_server.server import FakeServer
from fake_server.timings import Timings
from gpujobs.recipe import Recipe
from gpujobs.settings import Account
from tests.fake_server.doubles import QuietContainers

TOKEN = "canary-3f9a-5d1e"
SPEED = 10.0


def quiet_server(*, timings: Timings | None = None, speed: float = SPEED) -> FakeServer:
    """Make a fake cloud whose machines have no sandbox and no SSH: quick, and all that wire and rules need."""
    return FakeServer(seed=1, token=TOKEN, speed=speed, timings=timings, containers=QuietContainers)  # type: ignore[arg-type]


def account_on(server: FakeServer, name: str) -> Account:
    """Give the account of backend `name` on the fake."""
    env = server.env()
    key = name.upper()
    return Account(api_url=env[f"{key}_API_URL"], token=env[f"{key}_TOKEN"], namespace=env.get(f"{key}_NAMESPACE", ""))


def fault(server: FakeServer, endpoint: str, kind: str, **more: Any) -> None:
    """Make calls of `endpoint` go wrong."""
    server.faults.add(FaultRule.model_validate({"endpoint": endpoint, "kind": kind, **more}))


def calls(server: FakeServer, endpoint: str = "") -> int:
    """Count the calls of an endpoint, or all calls, since the fake began."""
    with server.world.ground.lock:
        counted = dict(server.world.ground.calls)
    return counted.get(endpoint, 0) if endpoint else sum(counted.values())


def alive(server: FakeServer) -> list[str]:
    """Name the machines that cost money, from the fake's own ledger."""
    return [machine["name"] for machine in server.world.ledger()["machines"] if machine["gone_at"] is None]


def recipe_of(gpu: str, **parts: Any) -> Recipe:
    """Make a recipe for one `gpu`."""
    resources = {"accelerators": gpu, **parts.pop("resources", {})}
    return Recipe.model_validate({"name": "t", "resources": resources, "run": "true", **parts})


@dataclass
class Request:
    """What a canned server was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    connection: int


@dataclass
class Answer:
    """What a canned server answers."""

    status: int = 200
    body: Any = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def raw(self) -> bytes:
        """Give the body's bytes; what is not bytes becomes JSON."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class Canned:
    """A server that answers by a function, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.answer = answer
        self.asked: list[Request] = []
        self.url = ""


@contextmanager
def canned(answer: Callable[[Request], Answer]) -> Iterator[Canned]:
    """Run a server on loopback that answers by `answer`."""
    state = Canned(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def respond(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(raw) if raw else None
            asked = Request(self.command, self.path, dict(self.headers), body, id(self.connection))
            state.asked.append(asked)
            reply = state.answer(asked)
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(reply.raw())), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.raw())

        do_GET = do_POST = do_PUT = do_DELETE = respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
