"""What both wire dialects and the control room share: guarded views, faults, request bodies, timestamps."""

import hmac
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from http import HTTPStatus
from typing import Any, Literal

from flask import Blueprint, Response, copy_current_request_context, current_app, g, request

from fake_server.call_log import without_secrets
from fake_server.call_machines import machines_of_call
from fake_server.faults import Faults
from fake_server.rows import CallRow
from fake_server.timings import Guesses
from fake_server.world import World

CHINA = timezone(timedelta(hours=8))
CUT = "fake_server.cut"
"""Key in the WSGI environment that tells the HTTP handler to drop the connection instead of replying."""

API_PATHS = ("/api/v1/dev", "/mdc/api/v1")
_CODE = re.compile(rb'\{"code": "(\w+)"')

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


def extra_fields(guesses: Guesses) -> Literal["ignore", "forbid"]:
    """Return what pydantic is to do with fields that the documents do not name."""
    return "forbid" if guesses.unknown_fields == "refuse" else "ignore"


def wrong_path(guesses: Guesses, status: int) -> Response:
    """Return the reply to a call that an API does not have; its text is that of the web server both seem to use (G)."""
    if status == HTTPStatus.NOT_FOUND:
        return Response("404 page not found", guesses.unknown_path_status, content_type="text/plain")
    return Response("405 method not allowed", guesses.wrong_method_status, content_type="text/plain")


def same_secret(given: str, wanted: str) -> bool:
    """Compare without telling by the time taken how much was right."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def with_wrong_token(view: View, values: dict[str, str]) -> Response:
    """Return what the view replies to a token that it does not know."""
    with current_app.test_request_context(headers={"Authorization": "expired"}):
        return view(**values)


def log_call(wire: Wire, reply: Response) -> Response:
    """Enter an answered call of either API in the world's log."""
    if not request.path.startswith(API_PATHS):
        return reply
    known = (wire.token, wire.control_token)
    body = without_secrets(request.get_data(), known)
    path = without_secrets(request.full_path.removesuffix("?").encode(), known)
    ground = wire.world().ground
    with ground.lock:
        ground.call_log.add(
            CallRow(
                number=ground.call_log.total + 1,
                at=ground.timeline.now(),
                endpoint=g.get("fake_endpoint", ""),
                method=request.method,
                path=path,
                request=body,
                status=reply.status_code,
                code=_business_code(reply),
                fault=g.get("fake_fault", ""),
                cut=CUT in request.environ,
            )
        )
    return reply


def _business_code(reply: Response) -> str:
    found = _CODE.match(reply.get_data()[:100])
    return found[1].decode() if found else ""


def add(blueprint: Blueprint, wire: Wire, name: str, call: str, view: View, *, envelope: Any) -> None:
    """Serve a view at a call ("POST /path"), counted and open to faults by its published name.

    `envelope` is the dialect's body for an error that comes with HTTP 200.
    """
    method, path = call.split()

    def guarded(**values: str) -> Response:
        world = wire.world()
        if request.method != method:  # HEAD, which comes with every GET
            return wrong_path(world.ground.guesses, HTTPStatus.METHOD_NOT_ALLOWED)
        with world.ground.lock:
            world.ground.calls[name] += 1
        request.get_data(cache=True)
        g.fake_endpoint = name
        question = (name, request.full_path, request.get_data())
        fault = wire.faults.next_for(name, about=lambda: machines_of_call(world, values), question=question)
        g.fake_fault = "" if fault is None else fault.rule.kind
        if fault is None:
            reply = view(**values)
            if "list_" in name:
                wire.faults.remember(question, reply)
            return reply
        act = copy_current_request_context(lambda: view(**values))
        outcome = fault.apply(
            act,
            later=lambda seconds: world.later(seconds, act),
            envelope=envelope,
            unauthorized=partial(with_wrong_token, view, values),
        )
        if outcome.cut is not None:
            request.environ[CUT] = outcome.cut
        return outcome.response

    wire.faults.register(name)
    rule: dict[str, Any] = {"view_func": guarded, "methods": [method], "provide_automatic_options": False}
    blueprint.add_url_rule(path, endpoint=name.replace(".", "_"), **rule)
