"""One watcher for all machines of a backend: one thread asks the provider for everyone and hands the news out."""

import logging
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from gpujobs.clock import Clock, StopToken
from gpujobs.errors import BootTimeout, GpujobsError, Unavailable
from gpujobs.models import Event, Machine, MachineStatus

_log = logging.getLogger(__name__)
_GROWTH, _JITTER = 1.5, 0.3
_GLANCE_S = 0.25  # how often a waiting run looks at its stop token and moves its progress bar
_KEYS_KEPT = 512


class Source(Protocol):
    """What is watched: a backend, as far as the watcher is concerned."""

    name: str

    def events(self, machines: Sequence[Machine]) -> Sequence[Event]:
        """Give what has happened to `machines`; the last event of each says where it stands now."""
        ...


class Watch:
    """One machine as somebody watches it; `machine` is always the newest that is known."""

    def __init__(self, machine: Machine, *, clock: Clock) -> None:
        """Begin with what is known of `machine`."""
        self.machine = machine
        self._clock = clock
        self._news = threading.Event()
        self._error: GpujobsError | None = None
        self._trouble = ""

    def wait_for(
        self,
        wanted: Collection[MachineStatus],
        *,
        timeout_s: float,
        stop: StopToken,
        tick: Callable[[float], None] | None = None,
    ) -> Machine:
        """Wait until the machine has a status of `wanted`, or one from which it will not get there; give it.

        Args:
            wanted: the statuses to wait for.
            timeout_s: how long this phase may take, in seconds.
            stop: ends the wait with its own error.
            tick: told the seconds waited so far, a few times a second.

        Raises:
            BootTimeout: the phase took longer than `timeout_s`.
            GpujobsError: the provider does not answer in a way that asking again would mend, as BadCredentials.
        """
        ends = {MachineStatus.GONE} | ({MachineStatus.FAILED, MachineStatus.ENDED} - _on_the_way_to(wanted))
        began = self._clock.monotonic()
        while True:
            self._news.clear()
            stop.raise_if_stopped()
            machine, error = self.machine, self._error
            if machine.status in wanted or machine.status in ends:
                return machine
            if error is not None:
                self._error = None
                raise error.with_traceback(None)
            waited_s = self._clock.monotonic() - began
            if waited_s >= timeout_s:
                raise BootTimeout(self._late(wanted, timeout_s))
            if tick is not None:
                tick(waited_s)
            self._clock.wait(self._news, min(_GLANCE_S, timeout_s - waited_s))

    def hear(self, event: Event) -> None:
        """Take over what the newest event says."""
        self.machine = replace(
            self.machine, status=event.status, raw_status=event.raw_status, unit=event.unit or self.machine.unit
        )
        self._news.set()

    def fail(self, error: GpujobsError) -> None:
        """Have whoever waits raise `error`."""
        self._error = error
        self._news.set()

    def answered(self) -> None:
        """Forget earlier trouble: the provider answers."""
        self._error, self._trouble = None, ""

    def note_trouble(self, trouble: str) -> None:
        """Remember why there is no news, for the message of a time-out."""
        self._trouble = trouble

    def _late(self, wanted: Collection[MachineStatus], timeout_s: float) -> str:
        machine = self.machine
        raw = f" ({machine.raw_status!r} in its provider's words)" if machine.raw_status else ""
        trouble = f"; the last trouble was: {self._trouble}" if self._trouble else ""
        return (
            f"{machine.name} ({machine.backend} {machine.id}) is {machine.status}{raw} after {timeout_s:.0f} s, "
            f"not {' or '.join(sorted(wanted))}{trouble}"
        )


class Watcher:
    """Asks `source` for all watched machines at once, often when there is news and seldom when there is none.

    The thread lives only while somebody watches. Safe for many threads.
    """

    def __init__(
        self,
        source: Source,
        *,
        clock: Clock,
        dice: random.Random,
        on_event: Callable[[Event], None] | None = None,
        first_s: float = 0.5,
        cap_s: float = 10.0,
    ) -> None:
        """Start nothing yet; the interval grows from `first_s` to `cap_s` seconds while all is quiet.

        `on_event` is told each event once for as long as its machine is watched, on the watcher's thread.
        """
        self._source, self._clock, self._dice, self._on_event = source, clock, dice, on_event
        self._first_s, self._cap_s = first_s, cap_s
        self._lock = threading.Lock()
        self._watches: list[Watch] = []
        self._heard: dict[str, OrderedDict[tuple[str, str, str, str], None]] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._closed = False
        self._deserted = threading.Event()  # nobody watches, or it is closed

    @contextmanager
    def watch(self, machine: Machine) -> Iterator[Watch]:
        """Watch `machine` for as long as the block runs."""
        watch = Watch(machine, clock=self._clock)
        with self._lock:
            if self._closed:
                raise Unavailable(f"the watcher of {self._source.name} is closed")
            self._watches.append(watch)
            self._deserted.clear()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"watch-{self._source.name}", daemon=True)
                self._thread.start()
        self._wake.set()
        try:
            yield watch
        finally:
            with self._lock:
                self._watches.remove(watch)
                if not self._watches:
                    self._deserted.set()
                    self._wake.set()

    def close(self) -> None:
        """End the thread; whoever still waits gets Unavailable."""
        with self._lock:
            watches, thread = list(self._watches), self._thread
            self._closed = True
            self._deserted.set()
        for watch in watches:
            watch.fail(Unavailable(f"the watcher of {self._source.name} was closed"))
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)  # it may be in the middle of a request; it is a daemon

    def _run(self) -> None:
        interval_s = self._first_s
        while watches := self._watched():
            asked_at = self._clock.monotonic()
            news, floor_s = self._ask(watches)
            interval_s = self._first_s if news else min(self._cap_s, interval_s * _GROWTH)
            if self._clock.wait(self._wake, max(self._shaken(interval_s), floor_s)):
                interval_s = self._first_s
                # However many come to watch, it asks no oftener than at its shortest interval.
                gap_s = asked_at + max(self._shaken(self._first_s), floor_s) - self._clock.monotonic()
                self._clock.wait(self._deserted, gap_s)

    def _watched(self) -> Sequence[Watch]:
        with self._lock:
            self._wake.clear()
            watches = [] if self._closed else list(self._watches)
            watched = {watch.machine.id for watch in watches}
            self._heard = {machine: keys for machine, keys in self._heard.items() if machine in watched}
            if not watches:
                self._thread = None
            return watches

    def _shaken(self, seconds: float) -> float:
        return seconds * self._dice.uniform(1 - _JITTER, 1 + _JITTER)

    def _ask(self, watches: Sequence[Watch]) -> tuple[bool, float]:
        """Ask once for all; say whether there was news, and how long to leave the provider alone in any case."""
        machines = {watch.machine.id: watch.machine for watch in watches}
        try:
            events = self._source.events(list(machines.values()))
        except Unavailable as error:
            for watch in watches:
                watch.note_trouble(str(error))
            return False, error.retry_after_s or 0.0
        except GpujobsError as error:
            for watch in watches:
                watch.fail(error)
            return False, self._cap_s
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it: a dead thread would leave them waiting
            _log.exception("asking %s failed", self._source.name)
            for watch in watches:
                watch.fail(GpujobsError(f"asking {self._source.name} failed: {type(error).__name__}; see the log"))
            return False, self._cap_s
        return self._hand_out(watches, events), 0.0

    def _hand_out(self, watches: Sequence[Watch], events: Sequence[Event]) -> bool:
        fresh = [event for event in events if self._is_new(event)]
        for event in fresh:
            self._tell(event)
        newest = {event.machine_id: event for event in events}
        for watch in watches:
            watch.answered()
            last = newest.get(watch.machine.id)
            if last is not None:
                watch.hear(last)
        return bool(fresh)

    def _is_new(self, event: Event) -> bool:
        keys = self._heard.setdefault(event.machine_id, OrderedDict())
        new = event.key not in keys
        keys[event.key] = None
        keys.move_to_end(event.key)
        while len(keys) > _KEYS_KEPT:
            keys.popitem(last=False)
        return new

    def _tell(self, event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001 - what hears of events must not stop the watching
            _log.exception("an event of %s could not be passed on", event.machine_id)


def _on_the_way_to(wanted: Collection[MachineStatus]) -> set[MachineStatus]:
    """Give the ends that are none for who waits for GONE: a machine that is over may still leave the list."""
    return {MachineStatus.FAILED, MachineStatus.ENDED} if MachineStatus.GONE in wanted else set()
