"""Ctrl-C and TERM as news to react to, never as an exception that flies through work in progress."""

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Generic, Self, TypeVar

_Result = TypeVar("_Result")
_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WOKEN = 0  # a byte that no signal has: background work is over


class Interrupts:
    """While this block runs, SIGINT, SIGTERM and SIGHUP only queue up; `wait` hands them out, one by one."""

    def __enter__(self) -> Self:
        """Take the signals over; in the main thread alone. One that is ignored (nohup) stays ignored."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, lambda *_: None)
            for number in _WATCHED
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        self._pending: list[int] = []
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout_s: float | None) -> signal.Signals | None:
        """Wait for the next signal; None when `timeout_s` has passed, or background work is over."""
        if not self._pending:
            select.select([self._reader], [], [], timeout_s)
            self._take()
        return signal.Signals(self._pending.pop(0)) if self._pending else None

    def wake(self) -> None:
        """Let `wait` return; from any thread."""
        with suppress(OSError):
            self._writer.send(bytes([_WOKEN]))

    def ask(self, question: str, answers: Sequence[str]) -> str | None:
        """Ask on the terminal until one of `answers` is typed; "" where the input ends, None where a signal comes."""
        typed = sys.stdin.fileno()
        while True:
            sys.stderr.write(question)
            sys.stderr.flush()
            ready, _, _ = select.select([self._reader, typed], [], [])
            if self._reader in ready:
                self._take()
                self._pending.clear()
                sys.stderr.write("\n")
                return None
            line = os.read(typed, 1024)
            word = line.decode(errors="replace").strip().lower()
            if not line or word in answers:
                return word

    def _take(self) -> None:
        with suppress(BlockingIOError):
            self._pending += [number for number in self._reader.recv(4096) if number != _WOKEN]


class Background(Generic[_Result]):
    """A call on a thread of its own, so that the main thread stays free for signals."""

    def __init__(self, interrupts: Interrupts, call: Callable[[], _Result]) -> None:
        """Start the call; `interrupts` wakes when it is over."""
        self._interrupts, self._call = interrupts, call
        self._results: list[_Result] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._work, name="gpujobs-run", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether the call has returned or raised."""
        return bool(self._results or self._errors)

    def result(self) -> _Result:
        """Give what the call returned, or raise what it raised; once it is over."""
        self._thread.join()
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def _work(self) -> None:
        try:
            self._results.append(self._call())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the main thread
            self._errors.append(error)
        finally:
            self._interrupts.wake()


def in_background(
    interrupts: Interrupts, call: Callable[[], _Result], *, react: Callable[[signal.Signals], None]
) -> _Result:
    """Do `call` on a thread to its end, and react to the signals that come meanwhile."""
    work = Background(interrupts, call)
    while not work.over:
        if (came := interrupts.wait(None)) is not None:
            react(came)
    return work.result()
