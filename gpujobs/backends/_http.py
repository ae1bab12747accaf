"""The one request door to a provider: every call goes through `Door.send`, and so by the same rules.

What is repeated: calls that are safe (reads, deletes, and acts that are the same done twice), with full jitter and the
provider's Retry-After, until `Patience.total_s` is used up. What never is: a create. A create that may have left us
without an answer ends as Ambiguous; one that surely did not act (no connection, 429) as Unavailable.
Redirects are not followed, since they would carry the token elsewhere. No secret is in any message.
"""

import json
import os
import random
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.utils import get_environ_proxies

from gpujobs.backends._http_head import PromptAdapter
from gpujobs.clock import Clock, backoff
from gpujobs.crash import Point
from gpujobs.errors import Ambiguous, BadCredentials, GpujobsError, NoCapacity, NotFound, Refused, Unavailable

T = TypeVar("T")

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_BODY_CAP = 16 * 2**20
_MESSAGE_CAP = 200
_RETRY_AFTER_CAP_S = 120.0
_TOO_MANY, _TIMED_OUT, _NOT_FOUND = 429, 408, 404
_NOT_SENT = (
    urllib3.exceptions.NewConnectionError,  # refused, unreachable, and its child: the name is not known
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.ProxyError,
    ssl.SSLCertVerificationError,
)
_SECRET_WORDS = re.compile(r"(?i)(pass(?:word|wd)?|token|secret|authorization|bearer)(\W{1,4})\S+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the door waits, in seconds."""

    connect_s: float = 5.0
    read_s: float = 10.0
    act_s: float = 30.0  # for the answer to a call that must not be repeated
    total_s: float = 25.0  # for a safe call with all its repeats
    first_wait_s: float = 0.25
    wait_cap_s: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Whom the door leads to."""

    name: str  # as messages say it
    setting: str  # what its settings' names begin with, "AUTODL"
    url: str
    headers: Mapping[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    no_stock: re.Pattern[str]  # how it words that nothing is free


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request; `what` and `about` (a name or an id) are for messages."""

    what: str
    method: str
    path: str
    about: str = ""
    params: Mapping[str, str] | None = None
    body: Any = field(default=None, repr=False)
    safe: bool = True  # may be repeated: a read, or an act that is the same done twice

    def __str__(self) -> str:
        """Say it in a message."""
        return f"{self.what} {self.about}".rstrip()


class Door:
    """The way to one provider; safe for many threads, which share its pooled connections."""

    def __init__(
        self, provider: Provider, *, clock: Clock, dice: random.Random | None = None, patience: Patience | None = None
    ) -> None:
        """Open nothing yet; `dice` shakes the waits between repeats."""
        self.provider = provider
        self.clock = clock
        self._dice = dice or random.Random()  # noqa: S311 - waits, no secrets
        self._patience = patience or Patience()
        self._session = _session(provider)
        self._never = threading.Event()

    def send(self, call: Call, decode: Callable[[bytes], T]) -> T:
        """Send `call` and give what `decode` makes of the reply's body.

        `decode` raises ValueError where the body is not what the documents say, or an error of ours.
        Raises BadCredentials, NotFound, NoCapacity, Refused, Unavailable; Ambiguous for a call that is not safe.
        """
        if not call.safe:
            return self._once(call, decode, answer_s=self._patience.act_s)
        ends = self.clock.monotonic() + self._patience.total_s
        waits = backoff(self._patience.first_wait_s, self._patience.wait_cap_s, dice=self._dice)
        while True:
            left_s = ends - self.clock.monotonic()
            try:
                return self._once(call, decode, answer_s=min(self._patience.read_s, max(left_s, 0.1)))
            except Unavailable as error:
                wait_s = max(next(waits), error.retry_after_s or 0.0)
                if self.clock.monotonic() + wait_s >= ends:
                    raise
            self.clock.wait(self._never, wait_s)

    def words(self, call: Call, reason: str) -> str:
        """Give a message for what went wrong with `call`: provider, call, id, reason."""
        return f"{self.provider.name}: {call}: {reason}"

    def refusal(self, call: Call, said: str, *, remedy: str = "") -> Refused:
        """Make the error for a clear no: NoCapacity where the provider's words say that nothing is free."""
        if self.provider.no_stock.search(said):
            return NoCapacity(self.words(call, f"nothing is free ({self.clean(said)})"))
        return Refused(self.words(call, f"refused ({self.clean(said)}){'; ' if remedy else ''}{remedy}"))

    def bad_token(self, call: Call, said: str) -> BadCredentials:
        """Make the error for a token that is not accepted."""
        setting = f"{self.provider.setting}_TOKEN"
        return BadCredentials(
            self.words(call, f"the token is not accepted ({self.clean(said)}); check {setting}, or get a new token")
        )

    def unsettled(self, call: Call, reason: str, *, retry_after_s: float | None = None) -> Unavailable | Ambiguous:
        """Make the error for no usable answer: ask again, or, where `call` must not be repeated, look first."""
        if call.safe:
            return Unavailable(self.words(call, f"{reason}; try again later"), retry_after_s=retry_after_s)
        return Ambiguous(self.words(call, f"{reason}, so it may or may not have acted; look before asking again"))

    def clean(self, said: str) -> str:
        """Make text of the provider's fit for a message: no secret, no control character, not long."""
        said = said[: 50 * _MESSAGE_CAP]  # the rest is not shown, and may be megabytes
        for secret in self.provider.secrets:
            said = said.replace(secret, "***")
        said = _SECRET_WORDS.sub(r"\1\2***", said)
        plain = "".join(char if char.isprintable() else " " for char in said).strip()
        return plain if len(plain) <= _MESSAGE_CAP else plain[:_MESSAGE_CAP] + "…"

    def _once(self, call: Call, decode: Callable[[bytes], T], *, answer_s: float) -> T:
        status, headers, body = self._exchange(call, answer_s)
        problem = self._status_problem(call, status, headers, body)
        if problem is not None:
            raise problem
        try:
            return decode(body)
        except (ValueError, RecursionError) as error:
            flaw = type(error).__name__  # alone: the error itself may hold a password
        raise self.unsettled(call, f"its reply is not what its document says ({flaw}, {len(body)} bytes)")

    def _exchange(self, call: Call, answer_s: float) -> tuple[int, Mapping[str, str], bytes]:
        problem: GpujobsError
        try:
            with (
                Point("http", self.provider.name, call.method, call.what),
                self._session.request(
                    call.method,
                    self.provider.url + call.path,
                    params=call.params,
                    json=call.body,
                    timeout=(min(self._patience.connect_s, answer_s), answer_s),
                    allow_redirects=False,
                    stream=True,
                ) as reply,
            ):
                return reply.status_code, reply.headers, self._body(reply, answer_s)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            problem = self._lost(call, error)
        raise problem  # out here, so that a library's error, which holds the request with its token, is not its context

    def _body(self, reply: requests.Response, answer_s: float) -> bytes:
        ends = self.clock.monotonic() + answer_s
        pieces, size = [], 0
        while piece := reply.raw.read1(2**16, decode_content=True):
            size += len(piece)
            if size > _BODY_CAP:
                raise urllib3.exceptions.ProtocolError(f"a reply of more than {_BODY_CAP} bytes")
            if self.clock.monotonic() > ends:
                raise urllib3.exceptions.ProtocolError("a reply that takes too long to arrive")
            pieces.append(piece)
        return b"".join(pieces)

    def _lost(self, call: Call, error: Exception) -> GpujobsError:
        causes = list(_causes(error))
        why = type(causes[-1]).__name__
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
            why = "its certificate is not trusted"
        if any(isinstance(cause, _NOT_SENT) for cause in causes):
            url, setting = self.provider.url, f"{self.provider.setting}_API_URL"
            return Unavailable(self.words(call, f"no connection to {url} ({why}); check the network and {setting}"))
        return self.unsettled(call, f"no answer ({why})")

    def _status_problem(self, call: Call, status: int, headers: Mapping[str, str], body: bytes) -> GpujobsError | None:
        if 200 <= status < 300:  # noqa: PLR2004 - HTTP
            return None
        if status < 400:  # noqa: PLR2004
            remedy = f"check {self.provider.setting}_API_URL; redirects are not followed with a token"
            return Refused(self.words(call, f"answered with a redirect (HTTP {status}); {remedy}"))
        said, retry_after_s = f"HTTP {status} {message_of(body)}".rstrip(), self._retry_after_s(headers)
        if status == _TOO_MANY:
            return Unavailable(self.words(call, "asked too often; try again later"), retry_after_s=retry_after_s)
        if status >= 500 or status == _TIMED_OUT:  # noqa: PLR2004
            return self.unsettled(call, f"failed ({self.clean(said)})", retry_after_s=retry_after_s)
        return self._no(call, status, said)

    def _no(self, call: Call, status: int, said: str) -> GpujobsError:
        if status in (401, 403):
            return self.bad_token(call, said)
        if status == _NOT_FOUND:
            return NotFound(self.words(call, f"not found ({self.clean(said)})"))
        return self.refusal(call, said)

    def _retry_after_s(self, headers: Mapping[str, str]) -> float | None:
        text = headers.get("Retry-After", "").strip()
        if text.isascii() and text.isdigit():
            wait_s = float(text[:9])
        else:
            try:
                wait_s = (parsedate_to_datetime(text) - self.clock.now()).total_seconds()
            except (ValueError, TypeError):  # TypeError: a date without a zone
                return None
        return min(max(wait_s, 0.0), _RETRY_AFTER_CAP_S)


def _session(provider: Provider) -> requests.Session:
    session = requests.Session()
    # Else requests would look into ~/.netrc and put what stands there in the place of our token.
    session.trust_env = False
    if urlsplit(provider.url).hostname not in _LOOPBACK:
        session.proxies.update(get_environ_proxies(provider.url))
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.update(provider.headers)
    for scheme in ("https://", "http://"):
        session.mount(scheme, PromptAdapter(pool_maxsize=64, max_retries=0))
    return session


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        inner = [getattr(error, "reason", None), *error.args, error.__cause__]
        error = next((one for one in inner if isinstance(one, BaseException)), None)


def message_of(body: bytes) -> str:
    """Give the text that an error's JSON carries, "" where it carries none."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(reply, dict):
        return ""
    return next((reply[key] for key in ("message", "msg", "error", "detail") if isinstance(reply.get(key), str)), "")
