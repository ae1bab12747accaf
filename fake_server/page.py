"""The page at /: both clouds to look at, and a few buttons. Works without JavaScript; loads nothing from elsewhere.

Who may see it: anybody on this machine while the control token is the published one, else who has typed the token.
Who may press a button: a form of this very page, told by its hidden token and by what the browser says of its origin.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, render_template, request
from pydantic import ValidationError

from fake_server.control import ClockOrder
from fake_server.fault_rules import KINDS, FaultRule
from fake_server.page_view import view
from fake_server.wire import Wire, json_reply, same_secret

PUBLISHED_CONTROL_TOKEN = "fake-control"  # noqa: S105 -- the default that the documentation names
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
COMMON_FAULTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lost-create-autodl": (
        "AutoDL: the next create works, its reply is lost",
        {"endpoint": "autodl.create_deployment", "kind": "lost_reply"},
    ),
    "lost-create-matrixdc": (
        "MatrixDC: the next create works, its reply is lost",
        {"endpoint": "matrixdc.create_instance", "kind": "lost_reply"},
    ),
    "too-many": ("The next 5 calls: 429, come back in 2 s", {"kind": "rate_limit_429", "count": 5, "retry_after": 2}),
    "broken": ("The next 3 calls: HTTP 500", {"kind": "error_500", "count": 3}),
    "half": ("The next call: half of its JSON", {"kind": "broken_json"}),
    "reset": ("The next 3 calls: connection reset", {"kind": "reset", "count": 3}),
    "release": ("The next 3 releases fail", {"kind": "release_fails", "count": 3}),
    "queue": ("The next machine is never scheduled", {"kind": "never_scheduled"}),
    "death": ("A machine dies, 5 s into its run", {"kind": "dies_mid_run", "seconds": 5}),
    "cut": ("The next SSH connection is cut after 10 kB", {"kind": "ssh_cut", "bytes": 10_000}),
}
"""What the page offers as one button each: a label, and the rule."""


@dataclass(frozen=True, slots=True)
class _Page:
    wire: Wire
    reset: Callable[[], None]
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def token(self, purpose: str) -> str:
        return hmac.new(self.secret, purpose.encode(), hashlib.sha256).hexdigest()

    @property
    def cookie(self) -> str:
        """The cookie's name: cookies of one host are shared by all its ports."""
        return f"fake_page_{urlsplit(request.host_url).port or 80}"

    def may_look(self) -> bool:
        if same_secret(self.wire.control_token, PUBLISHED_CONTROL_TOKEN):
            return True
        return same_secret(request.cookies.get(self.cookie, ""), self.token("cookie"))

    def may_press(self) -> bool:
        """Say whether a form of this page was sent, and not another site's."""
        origin = request.headers.get("Origin", request.host_url.rstrip("/"))
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        own = origin == request.host_url.rstrip("/") and site in {"same-origin", "none"}
        return own and same_secret(request.form.get("token", ""), self.token("form"))


def blueprint(wire: Wire, reset: Callable[[], None]) -> Blueprint:
    """Return the page, its files, and the published OpenAPI document, to be mounted at the root."""
    room = _Page(wire, reset)
    page = Blueprint(
        "page", __name__, template_folder="templates", static_folder="page_files", static_url_path="/page-files"
    )
    page.add_url_rule("/", endpoint="show", view_func=lambda: _show(room), methods=["GET"])
    page.add_url_rule("/page/enter", endpoint="enter", view_func=lambda: _enter(room), methods=["POST"])
    for name, press in _BUTTONS.items():
        page.add_url_rule(f"/page/{name}", endpoint=name, view_func=_pressed(room, press), methods=["POST"])
    page.add_url_rule("/_fake/openapi.json", endpoint="openapi", view_func=lambda: _openapi(room), methods=["GET"])
    page.after_request(_guarded)
    return page


def _guarded(response: Response) -> Response:
    response.headers.update(_HEADERS)
    return response


def _openapi(room: _Page) -> Response:
    from fake_server.openapi import document  # noqa: PLC0415 -- its models take longer to build than the fake to start

    return json_reply(document(room.wire.world().ground.guesses))


def _show(room: _Page, *, said: str = "", status: int = 200) -> Response:
    if not room.may_look():
        return _html("enter.html", 403 if said else 200, token=room.token("form"), said=said)
    faults = room.wire.faults.as_json()
    return _html(
        "page.html",
        status,
        view=view(room.wire.world()),
        url=request.host_url.rstrip("/"),
        token=room.token("form"),
        said=said,
        rules=faults["rules"],
        kinds=faults["kinds"],
        endpoints=faults["endpoints"],
        common={name: label for name, (label, _) in COMMON_FAULTS.items()},
    )


def _html(template: str, status: int, **values: Any) -> Response:
    return Response(render_template(template, **values), status, content_type="text/html; charset=utf-8")


def _enter(room: _Page) -> Response:
    if not room.may_press() or not same_secret(request.form.get("control_token", ""), room.wire.control_token):
        return _show(room, said="That is not the control token.", status=403)
    response = _home()
    response.set_cookie(room.cookie, room.token("cookie"), httponly=True, samesite="Strict")
    return response


def _pressed(room: _Page, press: Callable[[_Page], None]) -> Callable[[], Response]:
    def answer() -> Response:
        if not room.may_look() or not room.may_press():
            return _show(room, said="This button was not pressed on this page. Load it anew.", status=403)
        try:
            press(room)
        except ValidationError as wrong:
            return _show(room, said=f"Not done: {wrong.errors(include_url=False)[0]['msg']}", status=400)
        except ValueError as wrong:
            return _show(room, said=f"Not done: {wrong}", status=400)
        return _home()

    return answer


def _home() -> Response:
    return Response(status=303, headers={"Location": "/"})


def _reset(room: _Page) -> None:
    room.reset()


def _clock(room: _Page) -> None:
    given = {key: float(request.form[key]) for key in ("advance", "speed") if request.form.get(key)}
    order = ClockOrder(**given)
    timeline = room.wire.world().ground.timeline
    if order.speed is not None:
        timeline.set_speed(order.speed)
    if order.advance is not None:
        timeline.advance(order.advance)


def _common_fault(room: _Page) -> None:
    name = request.form.get("name", "")
    if name not in COMMON_FAULTS:
        raise ValueError(f"there is no common fault named {name}")
    rule = COMMON_FAULTS[name][1]
    room.wire.faults.add(FaultRule.model_validate({**_anywhere(rule["kind"]), **rule}))


def _fault(room: _Page) -> None:
    form = request.form
    rule: dict[str, Any] = {"kind": form.get("kind", ""), **_anywhere(form.get("kind", ""))}
    places = ("endpoint",) if "endpoint" in rule else ("machine",)
    rule.update({name: form[name] for name in places if form.get(name)})
    rule.update({name: int(form[name]) for name in ("count", "bytes_per_s") if form.get(name)})
    rule.update({name: float(form[name]) for name in ("seconds",) if form.get(name)})
    room.wire.faults.add(FaultRule.model_validate(rule))


def _anywhere(kind: str) -> dict[str, str]:
    """Return where a kind of fault strikes if nothing else is said: faults of calls that have no calls of their own."""
    known = KINDS.get(kind)
    return {"endpoint": known.endpoint or "*"} if known is not None and known.layer == "call" else {}


def _unfault(room: _Page) -> None:
    rule = request.form.get("id", "")
    room.wire.faults.remove(int(rule) if rule else None)


_BUTTONS: Mapping[str, Callable[[_Page], None]] = {
    "reset": _reset,
    "clock": _clock,
    "common-fault": _common_fault,
    "fault": _fault,
    "unfault": _unfault,
}
