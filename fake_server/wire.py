"""What both wire dialects and the control room share: guarded views, faults, request bodies, timestamps."""

import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from flask import Blueprint, Response, copy_current_request_context, request

from fake_server.faults import Faults
from fake_server.world import World

CHINA = timezone(timedelta(hours=8))
CUT = "fake_server.cut"
"""Key in the WSGI environment that tells the HTTP handler to drop the connection instead of replying."""

View = Callable[..., Response]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """What a dialect needs of the server: the present world (a reset makes a new one), the faults, the credentials."""

    world: Callable[[], World]
    faults: Faults
    token: str
    namespace: str
    control_token: str


def json_reply(body: Any, status: int = 200) -> Response:
    """Return a JSON reply; keys keep their order, as in the documents."""
    text = json.dumps(body, ensure_ascii=False)
    return Response(text, status=status, content_type="application/json; charset=utf-8")


def timestamp(at: float) -> str:
    """Return a time as both clouds write it: to the second, in China's time zone."""
    return datetime.fromtimestamp(at, tz=CHINA).isoformat(timespec="seconds")


def same_secret(given: str, wanted: str) -> bool:
    """Compare without telling by the time taken how much was right."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def add(blueprint: Blueprint, wire: Wire, name: str, call: str, view: View, *, envelope: Any) -> None:
    """Serve a view at a call ("POST /path"), counted and open to faults by its published name.

    `envelope` is the dialect's body for an error that comes with HTTP 200.
    """

    def guarded(**values: str) -> Response:
        world = wire.world()
        with world.ground.lock:
            world.ground.calls[name] += 1
        request.get_data(cache=True)
        fault = wire.faults.next_for(name)
        if fault is None:
            return view(**values)
        act = copy_current_request_context(lambda: view(**values))
        outcome = fault.apply(act, later=lambda seconds: world.later(seconds, act), envelope=envelope)
        if outcome.cut is not None:
            request.environ[CUT] = outcome.cut
        return outcome.response

    wire.faults.register(name)
    method, path = call.split()
    blueprint.add_url_rule(path, endpoint=name.replace(".", "_"), view_func=guarded, methods=[method])
