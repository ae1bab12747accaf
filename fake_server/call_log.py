"""Which API calls came in and how they were answered, without their secrets and bounded in memory."""

import json
import re
from collections import deque
from typing import Any

from fake_server.rows import CallRow

KEPT_CALLS = 10_000
_BODY_CHARS = 2_000
_HIDDEN = "[secret]"
_SECRET_KEY = re.compile(r"token|password|passwd|secret|authorization|api_?key|credential", re.IGNORECASE)
_ASSIGNED = re.compile(r"((?:token|password|passwd|secret|api_?key)\w{0,40}\s{0,8}[=:]\s{0,8})(\S+)", re.IGNORECASE)
"""Bounded, lest a long body take for ever."""


class CallLog:
    """The latest 10,000 calls; the world's lock guards it."""

    def __init__(self) -> None:
        self.calls: deque[CallRow] = deque(maxlen=KEPT_CALLS)
        self.total = 0

    def add(self, call: CallRow) -> None:
        """Append a call."""
        self.calls.append(call)
        self.total = call["number"]

    def latest(self, limit: int = KEPT_CALLS) -> list[CallRow]:
        """Return copies of the latest so many calls, oldest first."""
        return [call.copy() for call in list(self.calls)[-limit:]] if limit else []


def without_secrets(body: bytes, known: tuple[str, ...]) -> str:
    """Return a request body as text in which no secret is left: not by its key, nor by being a known one."""
    text = body.decode(errors="replace")
    try:
        text = json.dumps(_redacted(json.loads(text)), ensure_ascii=False)
    except (ValueError, RecursionError):
        text = _ASSIGNED.sub(rf"\1{_HIDDEN}", text)
    for secret in known:
        text = text.replace(secret, _HIDDEN) if secret else text
    return text[:_BODY_CHARS]


def _redacted(value: Any) -> Any:
    match value:
        case dict():
            return {key: _HIDDEN if _SECRET_KEY.search(key) else _redacted(each) for key, each in value.items()}
        case list():
            return [_redacted(each) for each in value]
        case str():
            return _ASSIGNED.sub(rf"\1{_HIDDEN}", value)
    return value
