"""The fake as one HTTP server, startable in a test's own process."""

import io
import logging
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from fake_server import autodl, control, matrixdc, page
from fake_server.containers import Containers
from fake_server.faults import Faults
from fake_server.recorder import Recorder
from fake_server.store import FolderLock, Store
from fake_server.timings import Guesses, Timings
from fake_server.wire import API_PATHS, CUT, Wire, json_reply, log_call, wrong_path
from fake_server.world import World

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MAX_BODY_BYTES = 2**20
_POLL_S = 0.01
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_log = logging.getLogger(__name__)


class FakeServer:
    """Both clouds and the control room on one loopback port.

    A context manager: entering starts it, leaving kills every container and closes the port.

    Args:
        host: a loopback address or name.
        port: 0 for any free one.
        speed: simulated seconds a real second.
        seed: makes ids repeatable.
        state: the folder that keeps the world: a fake started on it again goes on where the last one ended, however
            that was. By default a temporary folder, removed at the end.
        token: what both clouds take as API token.
        namespace: MatrixDC's user id.
        control_token: what the control room wants in X-Fake-Control.
        record: a file for all API calls, which `python -m fake_server.replay` plays again.
        timings: how long transitions take.
        guesses: what the providers leave open.
        disk_gb: what a machine may keep on all its disks together.
        containers: makes the machines; real sandboxes with real SSH by default.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        speed: float = 1.0,
        seed: int | None = None,
        state: Path | None = None,
        token: str = "fake-token",  # noqa: S107 -- the fake's published token opens nothing but the fake
        namespace: str = "fake-user",
        control_token: str = "fake-control",  # noqa: S107 -- as above
        record: Path | None = None,
        timings: Timings | None = None,
        guesses: Guesses | None = None,
        disk_gb: float = 30.0,
        containers: Callable[..., Containers] = Containers,
    ) -> None:
        if host not in _LOOPBACK:
            raise ValueError(f"the fake listens on loopback only ({', '.join(_LOOPBACK)}), not on {host}")
        self.token = token
        self.namespace = namespace
        self.control_token = control_token
        self._address = (host, port)
        self._state = state
        self._store: Store | None = None
        self._make_world: Callable[[Path], World] = lambda folder: World(
            folder,
            speed=speed,
            seed=seed,
            timings=timings,
            guesses=guesses,
            namespace=namespace,
            containers=containers,
            rules=self.faults,
            disk_gb=disk_gb,
            store=self._store,
        )
        self.faults = Faults(now=self._now, seed=seed)
        self.recorder = Recorder(record, secrets=(token, control_token))
        self._resetting = threading.Lock()

    def start(self) -> Self:
        """Listen; ready when this returns. OSError if the port is taken."""
        listener = socket.create_server(self._address, family=_family(self._address[0]), backlog=128)
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._folder = self._state or Path(tempfile.mkdtemp(prefix="fake-server-"))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with listener:
            self.world = self._open_world()
            self._http = _Server(self._app(), listener)
        self._thread = threading.Thread(target=self._serve, name="fake-http", daemon=True)
        self._thread.start()
        return self

    def _open_world(self) -> World:
        if self._state is None:
            return self._make_world(self._folder)
        self._folder_lock = FolderLock(self._folder)
        try:
            self._store = Store(self._folder)
            return self._make_world(self._folder)
        except BaseException:
            self._folder_lock.release()
            raise

    def stop(self) -> None:
        """Kill every container, end every connection, close the port."""
        self.faults.end()
        self._http.shutdown()
        self._thread.join()
        self._http.drop_connections()
        self.world.close()
        self.recorder.close()
        if self._state is None:
            shutil.rmtree(self._folder, ignore_errors=True)
        else:
            self._folder_lock.release()

    def reset(self) -> None:
        """End the world and begin a new, empty one; faults are forgotten too."""
        with self._resetting:
            self.faults.forget()
            self.world.close()
            for name in ("autodl", "matrixdc", "containers"):
                shutil.rmtree(self._folder / name, ignore_errors=True)
            if self._state is not None:
                self._store = Store.anew(self._folder)
            self.world = self._make_world(self._folder)

    def _save_before_reply(self, reply: Response) -> Response:
        self.world.save()
        return reply

    def _now(self) -> float:
        return self.world.ground.timeline.now()

    @property
    def autodl_url(self) -> str:
        """What AUTODL_API_URL is for this fake."""
        return self.url

    @property
    def matrixdc_url(self) -> str:
        """What MATRIXDC_API_URL is for this fake."""
        return f"{self.url}/mdc/api/v1"

    def env(self) -> dict[str, str]:
        """Return the settings that point a client at this fake."""
        return {
            "AUTODL_TOKEN": self.token,
            "AUTODL_API_URL": self.autodl_url,
            "MATRIXDC_TOKEN": self.token,
            "MATRIXDC_NAMESPACE": self.namespace,
            "MATRIXDC_API_URL": self.matrixdc_url,
        }

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _serve(self) -> None:
        self._http.serve_forever(poll_interval=_POLL_S)

    def _app(self) -> Flask:
        wire = Wire(
            world=lambda: self.world,
            faults=self.faults,
            token=self.token,
            namespace=self.namespace,
            control_token=self.control_token,
        )
        app = Flask(__name__, static_folder=None)
        app.before_request(_refuse_foreign_hosts)
        app.after_request(self._save_before_reply)
        app.after_request(lambda reply: log_call(wire, reply))
        app.register_blueprint(autodl.blueprint(wire), url_prefix="/api/v1/dev")
        app.register_blueprint(matrixdc.blueprint(wire), url_prefix="/mdc/api/v1")
        app.register_blueprint(control.blueprint(wire, self.reset, self.recorder), url_prefix="/_fake")
        app.register_blueprint(page.blueprint(wire, self.reset))
        for status in (404, 405):
            app.register_error_handler(status, self._no_such_call)
        self.recorder.watch(app)
        return app

    def _no_such_call(self, error: HTTPException) -> Response | HTTPException:
        if not request.path.startswith(API_PATHS):
            return error
        return wrong_path(self.world.ground.guesses, error.code or 404)


def _refuse_foreign_hosts() -> Response | None:
    """Keep web pages of other names, rebound to loopback, away from the fake's machines."""
    try:
        name = urlsplit(f"//{request.headers.get('Host', '')}").hostname
    except ValueError:
        name = None
    if name in _LOOPBACK:
        return None
    return json_reply({"message": "this fake answers to loopback names only"}, 403)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Handler(WSGIRequestHandler):
    """HTTP/1.1 with connections that stay open, which werkzeug's own handler does not offer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Server"

    def run_wsgi(self) -> None:
        """Answer one request whose body has a known length."""
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isascii() or not length.isdigit():
            self.send_error(411)
            self.close_connection = True
            return
        if int(length) > _MAX_BODY_BYTES:
            self.send_error(413)
            self.close_connection = True
            return
        environ = self.make_environ()
        environ["wsgi.input"] = io.BytesIO(self.rfile.read(int(length)))
        self._reply(environ)

    def _reply(self, environ: dict[str, Any]) -> None:
        head: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _error: Any = None) -> Callable[[bytes], None]:
            head[:] = [status, headers]
            return lambda _data: None

        chunks = self.server.app(environ, start_response)
        body = b"".join(chunks)
        if hasattr(chunks, "close"):
            chunks.close()
        cut = environ.get(CUT)
        if cut in ("reset_in_body", "close_in_body"):
            self._send(head[0], head[1], body[: len(body) // 2])  # the head still promises the whole
        if cut is not None:
            self._cut(cut.removesuffix("_in_body"))
            return
        self._send(head[0], head[1], body)

    def _send(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        code, _, reason = status.partition(" ")
        self.send_response(int(code), reason)
        for key, value in headers:
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _cut(self, how: str) -> None:
        self.close_connection = True
        if how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.server.reset_on_close(self.connection)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing: what is called is counted in the control room."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the inherited name
        """Log what the HTTP parser complains of, without the request's text."""
        _log.debug(format, *args)


class _Server(ThreadedWSGIServer):
    """Knows its open connections, so that the end of the server is their end too."""

    daemon_threads = True

    def __init__(self, app: Flask, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        self._open: set[socket.socket] = set()
        self._to_reset: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(host, port, app, _Handler, fd=listener.fileno())

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on its own thread."""
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def reset_on_close(self, connection: socket.socket) -> None:
        """Let the connection end in a reset: no orderly end is sent before it is closed."""
        with self._guard:
            self._to_reset.add(connection)

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        with self._guard:
            self._open.discard(request)
            reset = request in self._to_reset
            self._to_reset.discard(request)
        if reset:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def drop_connections(self) -> None:
        """End the connections that clients keep open, and with them their threads."""
        with self._guard:
            left = list(self._open)
        for connection in left:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                _log.debug("a connection had ended by itself")
