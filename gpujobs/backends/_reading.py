"""How a provider's words are read: times, SSH addresses, statuses, names that are nearly right. For every backend."""

import difflib
import ipaddress
import logging
import re
import shlex
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict

from gpujobs.clock import Clock
from gpujobs.errors import BadInput, Refused
from gpujobs.models import MachineStatus

_CHINA = timezone(timedelta(hours=8))
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_PORT = re.compile(r"[0-9]{1,5}")
_SSH_CAP = 400
_GPU_BRANDS = re.compile(r"^(?:nvidia|geforce|tesla|rtx|gtx)+")


class Reply(BaseModel):
    """What a provider answers: unknown fields are kept, and only the fields named in `shown` stand in a repr."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, hide_input_in_errors=True)
    shown: ClassVar[frozenset[str]] = frozenset()

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Keep passwords, links with tokens, and fields that we do not know, out of logs."""
        return [(name, value) for name, value in super().__repr_args__() if name in self.shown]


def _moment(value: Any) -> Any:
    if value in (None, "", 0):
        return None
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime) or moment.year <= 1:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=_CHINA)).astimezone(UTC)


def _none_as(empty: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: empty if value is None else value)


Moment = Annotated[datetime | None, BeforeValidator(_moment)]
"""A time with its zone; null, "" and the year 1 mean none, and a time without a zone is China's."""
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else str(value))]
Count = Annotated[int, _none_as(0)]
Number = Annotated[float, _none_as(0.0)]


class StatusTable:
    """A provider's words for a machine's status, in ours."""

    def __init__(self, backend: str, words: Mapping[str, MachineStatus]) -> None:
        """Take the provider's words, whose case, spaces and underscores do not matter."""
        self._log = logging.getLogger(f"gpujobs.backends.{backend}")
        self._words = {_word(word): status for word, status in words.items()}
        self._logged: set[str] = set()

    def read(self, word: str) -> MachineStatus:
        """Give our word; one that we do not know is UNKNOWN, and logged once."""
        status = self._words.get(_word(word))
        if status is None and word not in self._logged:
            self._logged.add(word)
            self._log.warning("a machine has a status that is not known here: %.60r; polling goes on", word)
        return status or MachineStatus.UNKNOWN


class Recent:
    """Ids that something happened to not long ago. Safe for many threads."""

    def __init__(self, clock: Clock, *, kept_s: float) -> None:
        """Remember each id for `kept_s` seconds of `clock`."""
        self._clock = clock
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._ends: dict[str, float] = {}

    def add(self, name: str) -> None:
        """Remember `name` from now on."""
        with self._lock:
            now = self._clock.monotonic()
            self._ends = {one: ends for one, ends in self._ends.items() if ends > now}
            self._ends[name] = now + self._kept_s

    def __contains__(self, name: object) -> bool:
        """Say whether `name` is remembered still."""
        with self._lock:
            ends = self._ends.get(name) if isinstance(name, str) else None
        return ends is not None and ends > self._clock.monotonic()


def _word(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text).casefold()


def ssh_address(command: str, *, of: str) -> tuple[str, str, int]:
    """Read `ssh -p PORT [USER@]HOST` into user, host and port, by a strict grammar; nothing of it is ever run.

    Raises Refused, which names `of` and echoes nothing of a `command` that may hold anything.
    """
    try:
        words = shlex.split(command) if len(command) <= _SSH_CAP else []
    except ValueError:
        words = []
    if len(words) == 3 and words[1].startswith("-p"):  # noqa: PLR2004 - ssh -pPORT HOST
        words = [words[0], "-p", words[1].removeprefix("-p"), words[2]]
    if len(words) == 4 and words[:2] == ["ssh", "-p"]:  # noqa: PLR2004 - ssh -p PORT HOST
        user, at, host = words[3].rpartition("@")
        user = user if at else "root"
        if _is_port(words[2]) and _USER.fullmatch(user) and _is_host(host):
            return user, host, int(words[2])
    raise Refused(
        f"the SSH address of {of} is not of the form `ssh -p PORT USER@HOST`; it is not used, look at it by hand"
    )


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and 1 <= int(text) <= 65535  # noqa: PLR2004


def _is_host(text: str) -> bool:
    if ":" in text or text.replace(".", "").isdigit():
        try:
            ipaddress.ip_address(text)
        except ValueError:
            return False
        return "%" not in text
    return _HOST.fullmatch(text) is not None


def link(text: str, *, scheme: str = "https") -> str | None:
    """Read a service's address, with or without a scheme; None where it is no plain http(s) URL."""
    url = text if "://" in text else f"{scheme}://{text}"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    plain = url.isascii() and url.isprintable() and " " not in url
    return url if plain and parts.scheme in ("http", "https") and _is_host(parts.hostname or "") else None


def gpu_key(name: str) -> str:
    """Make GPU names comparable: "NVIDIA GeForce RTX 4090", "rtx4090" and "4090" have the same key."""
    key = re.sub(r"[^a-z0-9]", "", name.casefold())
    return _GPU_BRANDS.sub("", key) or key


def nearest(wanted: str, known: Iterable[str], *, at_most: int = 5) -> Sequence[str]:
    """Give the known names that are most like `wanted`, or else the first few of them."""
    keys = {gpu_key(name): name for name in sorted(known)}
    close = difflib.get_close_matches(gpu_key(wanted), keys, n=3, cutoff=0.5)
    return [keys[key] for key in close] or sorted(keys.values())[:at_most]


def unknown(what: str, wanted: str, known: Iterable[str], *, provider: str, where: str) -> BadInput:
    """Make the error for a name that the provider does not have; `where` is the recipe's key to mend."""
    names = ", ".join(nearest(wanted, known)) or "none at all"
    return BadInput(f"{provider} has no {what} {wanted!r}; nearest: {names}; mend {where}")
