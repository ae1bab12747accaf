"""The way of all log lines of one process to its Prefect server: in order, and kept while the server is away.

Prefect's own sender drops a batch after a minute of trying.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import LogCreate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.handlers import set_api_log_sink

EVERY_S = 2.0
HASTE_S = 0.5  # runs that end together are in a hurry together: their lines go in one call
BATCH_BYTES = 2 * 1024 * 1024
HELD_BYTES = 64 * 1024 * 1024  # of all runs together
TRIES = 10  # of a batch at a server that is there, and fails each time
DRAIN_S = 3.0
_SLOWEST_S = 10.0  # between two tries
_LATER = {408, 429}
_RECORD_BYTES = 600  # of each, beside its message

_LOOK_S = 0.1
_installed: "list[Outbox]" = []  # as Prefect's sink is the process's, so is this

_log = logging.getLogger(__name__)


async def drained(within_s: float) -> bool:
    """Have Prefect get every line that this process wrote so far; False where it has not in time."""
    ends_s = time.monotonic() + within_s
    wanted = [(outbox, outbox.hurry()) for outbox in _installed]
    while any(outbox.passed < line for outbox, line in wanted):
        if time.monotonic() >= ends_s:
            return False
        await asyncio.sleep(_LOOK_S)
    return True


class Outbox:
    """Holds log records, from any thread, until Prefect has them."""

    def __init__(self, client: PrefectClient) -> None:
        """Hold nothing yet."""
        self._client = client
        self._lock = threading.Lock()
        self._held: deque[dict[str, Any]] = deque()
        self._held_bytes = self._dropped = self._failures = 0
        self._over, self._hurry = asyncio.Event(), asyncio.Event()
        self.passed = 0
        """How many lines are held no longer."""

    def hurry(self) -> int:
        """Send what is held now rather than in a while; give the value of `passed` that says that it is through."""
        self._hurry.set()
        with self._lock:
            return self.passed + len(self._held)

    @asynccontextmanager
    async def installed(self) -> AsyncIterator[None]:
        """Take every log line of this process that is meant for Prefect, and send what is held before it ends."""
        _installed.append(self)
        set_api_log_sink(self.put)
        sending = asyncio.ensure_future(self._send_until_over())
        try:
            yield
        finally:
            set_api_log_sink(None)
            _installed.remove(self)
            self._over.set()
            self._hurry.set()
            await asyncio.wait([sending], timeout=DRAIN_S)
            sending.cancel()

    def put(self, record: dict[str, Any]) -> None:
        """Hold a record; where too much is held it is dropped, and that is told. Never waits."""
        told = {name: value for name, value in record.items() if name != "__payload_size__"}
        told["message"] = told["message"].encode(errors="replace").decode()
        with self._lock:
            if self._held_bytes + _size(told) > HELD_BYTES:
                self._dropped += 1
                return
            self._held.append(told)
            self._held_bytes += _size(told)

    async def send(self) -> bool:
        """Send one batch; False where nothing is held. Raises what its client raises, and keeps the batch."""
        with self._lock:
            batch = self._batch()
        if not batch:
            return False
        try:
            await self._client.create_logs(batch)
        except PrefectHTTPStatusError as error:
            self._failures += 1
            passes = error.response.status_code >= 500 or error.response.status_code in _LATER  # noqa: PLR2004 - HTTP
            if passes and self._failures < TRIES:
                raise
            _log.warning("Prefect does not take %d log lines: %s", len(batch), error)
        self._forget(batch)
        return True

    def _batch(self) -> list[LogCreate | dict[str, Any]]:
        batch: list[LogCreate | dict[str, Any]] = []
        size = 0
        for told in self._held:
            size += _size(told)
            if batch and size > BATCH_BYTES:
                break
            batch.append(told)
        return batch

    def _forget(self, batch: Sequence[Any]) -> None:
        with self._lock:
            self._held_bytes -= sum(_size(self._held.popleft()) for _ in batch)
            self.passed += len(batch)
            dropped, self._dropped, self._failures = self._dropped, 0, 0
        if dropped:
            _log.warning("%d log lines were dropped while Prefect was away", dropped)

    async def _send_until_over(self) -> None:
        wait_s = EVERY_S
        while True:
            over = self._over.is_set()
            self._hurry.clear()
            try:
                while await self.send():
                    wait_s = EVERY_S
            except Exception as error:  # noqa: BLE001 - the server is away: what is held waits for it
                _log.info("%d log lines wait for Prefect: %s", len(self._held), error)
                wait_s = min(2 * wait_s, _SLOWEST_S)
            if over:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), HASTE_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), wait_s)


def _size(told: Mapping[str, Any]) -> int:
    return len(told["message"].encode()) + _RECORD_BYTES
