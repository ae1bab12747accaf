"""What a session asked of the fake and was answered, as JSON Lines that `python -m fake_server.replay` plays again.

No secret is kept: the tokens are left out, and passwords and tokens in replies are stars.
"""

import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from flask import Flask, Response, request

from fake_server.wire import CUT

STARS = "***"
_SECRET_KEY = re.compile(r"token|password|passwd|secret|api_?key", re.IGNORECASE)
_ASSIGNED = re.compile(rf"((?:{_SECRET_KEY.pattern})\w{{0,40}}\s{{0,8}}[=:]\s{{0,8}})([^\s&]+)", re.IGNORECASE)
_MOST_KEPT = 20_000
_API = ("/api/", "/mdc/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One call. `seconds` is real time since the recording began, `took_s` the time to the reply.

    `cut` says how a fault cut the connection in place of the reply. A body or reply that is no JSON is kept as text.
    """

    seconds: float
    method: str
    path: str
    query: str
    body: Any
    status: int
    reply: Any
    took_s: float
    cut: str | None = None


class Recorder:
    """Keeps calls while a recording runs, in a file (from the start) or in memory (from `begin`).

    Orders to the control room belong to a session too: without them a replay would lack its faults and its clock.
    """

    def __init__(self, file: Path | None = None, *, secrets: Sequence[str] = ()) -> None:
        self._secrets = [secret for secret in secrets if secret]
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._kept: deque[Recorded] | None = None
        self._file: TextIO | None = None
        if file is not None:
            self._file = open(file, "w", encoding="utf-8", opener=_private)  # noqa: SIM115 -- pathlib has no opener

    def watch(self, app: Flask) -> None:
        """See every call of the app."""
        app.wsgi_app = _Timed(app.wsgi_app)  # type: ignore[method-assign]
        app.after_request(self._after)

    def begin(self) -> None:
        """Begin a new recording in memory."""
        with self._lock:
            self._kept = deque(maxlen=_MOST_KEPT)
            self._began = time.monotonic()

    def calls(self) -> list[dict[str, Any]]:
        """Return the recording in memory, up to its last 20,000 calls."""
        with self._lock:
            return [asdict(each) for each in self._kept or ()]

    def close(self) -> None:
        """End the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _after(self, response: Response) -> Response:
        if (self._kept is not None or self._file is not None) and (_is_api() or _is_order()):
            self._keep(self._recorded(response))
        return response

    def _recorded(self, response: Response) -> Recorded:
        now = time.monotonic()
        begun = request.environ.get(_BEGUN, now)
        return Recorded(
            seconds=round(begun - self._began, 4),
            method=request.method,
            path=request.path,
            query=self._without_known(request.query_string.decode("latin-1")),
            body=self._clean(request.get_data(cache=True)),
            status=response.status_code,
            reply=self._clean(response.get_data()),
            took_s=round(now - begun, 4),
            cut=request.environ.get(CUT),
        )

    def _clean(self, data: bytes) -> Any:
        return redacted(_parsed(self._without_known(data.decode("utf-8", "replace"))))

    def _without_known(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, STARS)
        return text

    def _keep(self, call: Recorded) -> None:
        with self._lock:
            if self._kept is not None:
                self._kept.append(call)
            if self._file is not None:
                self._file.write(line(call))
                self._file.flush()


_BEGUN = "fake_server.begun"
"""Key in the WSGI environment: when the request came."""


class _Timed:
    """Notes in the environment when a request came."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        environ[_BEGUN] = time.monotonic()
        return self._app(environ, start_response)


def redacted(value: Any) -> Any:
    """Return the JSON value with stars in place of its secrets, by their keys or assigned in a text."""
    if isinstance(value, dict):
        return {key: STARS if _SECRET_KEY.search(key) and each else redacted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [redacted(each) for each in value]
    return _ASSIGNED.sub(rf"\1{STARS}", value) if isinstance(value, str) else value


def _is_api() -> bool:
    return request.path.startswith(_API)


def _is_order() -> bool:
    orders = request.path.startswith("/_fake/") and not request.path.startswith("/_fake/record")
    return orders and request.method != "GET"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return text


def line(call: Recorded) -> str:
    """Return a call as one line of a recording."""
    return json.dumps(asdict(call), ensure_ascii=False) + "\n"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
