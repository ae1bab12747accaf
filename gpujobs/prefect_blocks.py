"""What a Prefect server keeps for us in its blocks, read over its REST API; imports no Prefect.

The blocks' own classes, which Prefect shows and checks, are in `blocks.py`.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from gpujobs.errors import NotFound, Unavailable
from gpujobs.settings import Settings, block_name

_FRESH_S = 30.0  # so long, accounts are believed without asking again
_Values = Mapping[str, Mapping[str, Any]]


class PrefectBlocks:
    """The blocks of the server that the settings mean. Safe for many threads; asks nothing before it is asked.

    What was read is remembered for as long as the server does not answer: no run at work fails because of that.
    """

    def __init__(self, settings: Settings, *, now: Callable[[], float] = time.monotonic) -> None:
        """Find the server by `settings`; `now` is a clock in seconds."""
        self._settings, self._now = settings, now
        self._lock = threading.Lock()
        self._read: dict[str, tuple[float, _Values]] = {}
        self._single: dict[tuple[str, str], Mapping[str, Any]] = {}

    @property
    def place(self) -> str:
        """The server's address, "" where there is none."""
        from gpujobs import prefect_api  # noqa: PLC0415 - brings requests, which few commands need

        return prefect_api.api_url(self._settings) or ""

    def accounts(self, backend: str, *, having: str = "") -> _Values:
        """Give the values of every credential block for `backend`, by name; `having` may be a moment old."""
        return self._kept(f"{backend}-credentials", having)

    def secret(self, name: str) -> str:
        """Give the value of the Secret block for the variable `name`, "" where there is none."""
        return self._value("secret", block_name(name), "value")

    def notice_url(self, name: str) -> str:
        """Give the Apprise URL of the notification block `name`, "" where there is none."""
        return self._value("gpujobs-notification", name, "url")

    def _kept(self, kind: str, having: str) -> _Values:
        from gpujobs import prefect_api  # noqa: PLC0415 - as above

        with self._lock:
            read_at, known = self._read.get(kind, (None, {}))
            fresh = read_at is not None and self._now() - read_at < _FRESH_S
            if fresh and (not having or having in known):
                return known
            if not (api := self.place):
                return known
            try:
                known = prefect_api.blocks(api, kind)
            except Unavailable:
                if read_at is None:
                    raise
            self._read[kind] = (self._now(), known)
            return known

    def _value(self, kind: str, name: str, key: str) -> str:
        from gpujobs import prefect_api  # noqa: PLC0415 - as above

        if not (api := self.place):
            return ""
        try:
            self._single[kind, name] = prefect_api.block(api, kind, name)
        except NotFound:
            return ""
        except Unavailable:
            if (kind, name) not in self._single:
                raise
        return str(self._single[kind, name].get(key) or "")
