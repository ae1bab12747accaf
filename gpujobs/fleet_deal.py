"""Deals tasks to the slots of a fleet's machines and takes what comes back: one thread, however many there are."""

import io
import json
import os
import selectors
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import BinaryIO, cast

from gpujobs.errors import GpujobsError, MachineLost, RemoteFailure, Unreachable
from gpujobs.fleet_link import FRAME, Link, known_told
from gpujobs.fleet_script import join_script
from gpujobs.fleet_task import Task, death, part_told
from gpujobs.fleet_tell import End, Teller
from gpujobs.remote.encode import MAX_BYTES
from gpujobs.shell import Shell

_LETTERS = {b"h", b"r", b"x", b"w"}
_SHORT_BYTES = 2**20
_TICK_S, _FULL_S = 1.0, 0.01
_TURNS = 64  # so often one machine is listened to before the others are
_PULSE_S = 60.0
_SMALL_BYTES = 2**16  # a result above that waits on the disk
_MOST_BREAKS = 5  # of a machine that is never heard in between: what ends its streams at once will not mend
_MEND_S = 5.0  # after a stream's end, for the work's own end to be seen


class Dealer:
    """The queue, and the one thread that deals from it. `news` is called, with no lock held, when something ended.

    Futures end on the threads of its teller.
    """

    def __init__(self, news: Callable[[], None]) -> None:
        """Start no thread yet."""
        self._news = news
        self._lock = threading.RLock()
        self._queue: deque[Task] = deque()
        self._links: list[Link] = []
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._thread: threading.Thread | None = None
        self._over = False
        self._teller = Teller("gpujobs-callbacks")

    # From any thread

    def start(self, name: str) -> None:
        """Begin to deal."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, once all futures that are to end have; not to be called from it or from a callback."""
        with self._lock:
            self._over = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        self._teller.close()
        self._selector.close()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def add(self, tasks: Sequence[Task], *, first: bool = False) -> None:
        """Queue tasks, behind the others or before them."""
        with self._lock:
            (self._queue.extendleft if first else self._queue.extend)(reversed(tasks) if first else tasks)
        self._wake()

    def fail(self, tasks: Sequence[Task], error: BaseException) -> None:
        """Have futures end with an error."""
        self._teller.tell(partial(task.fail, error) for task in tasks)

    def waiting(self) -> int:
        """Count the queued tasks; forgets those that were cancelled."""
        with self._lock:
            while self._queue and self._queue[0].future.cancelled():
                self._queue.popleft().give_up()
            return len(self._queue)

    def at_work(self) -> int:
        """Count the tasks that are at machines."""
        with self._lock:
            return sum(len(link.tasks) for link in self._links)

    def take_queue(self) -> Sequence[Task]:
        """Empty the queue, and give what was in it."""
        with self._lock:
            tasks, self._queue = list(self._queue), deque()
        return tasks

    def join(self, link: Link) -> None:
        """Have a machine take part."""
        with self._lock:
            self._links.append(link)

    def leave(self, link: Link) -> Sequence[Task]:
        """Have it take part no more; gives the tasks that were at it."""
        with self._lock:
            self._links = [one for one in self._links if one is not link]
            tasks = list(link.tasks.values())
            link.tasks.clear()
        return tasks

    def dismiss(self, link: Link) -> None:
        """Give a machine no more tasks, and let its foreman end when it has none."""
        with self._lock:
            link.leaving = True
        self._wake()

    @contextmanager
    def attached(self, link: Link, shell: Shell, work: str) -> Iterator[None]:
        """Deal over this connection for as long as the block runs; raises Unreachable."""
        stream = shell.open_stream(join_script(work))
        with self._lock:
            link.renew(shell, stream)
            link.put(b"c", content=json.dumps({"slots": link.slots}).encode())
            self._selector.register(stream, selectors.EVENT_READ, link)
        self._wake()
        try:
            yield
        finally:
            with self._lock:
                self._forget(link)

    @property
    def is_here(self) -> bool:
        """Whether this is a callback, which must not wait for the end of the fleet that it is part of."""
        return self._teller.is_here

    # The thread's own

    def _run(self) -> None:
        wait_s = _TICK_S
        while not self._over:
            ended: list[End] = []
            for key, _ in self._selector.select(wait_s):
                if key.data is None:
                    with suppress(BlockingIOError):
                        os.read(self._wake_out, 4096)
            with self._lock:
                for link in list(self._links):
                    self._serve(link, ended)
                self._deal()
                full = [self._send(link) for link in self._links]
            if ended:
                self._teller.tell(ended)
                self._news()
            else:
                self._teller.look()
            wait_s = _FULL_S if any(full) else _TICK_S

    def _serve(self, link: Link, ended: list[End]) -> None:
        now = time.monotonic()
        if link.broken_at is not None and now - link.broken_at > _MEND_S and link.shell is not None:
            link.broken_at = None
            link.shell.close()  # whoever follows the machine's log meets that, and connects again
        if link.stream is None:
            return
        if now - link.told_at > _PULSE_S:
            link.told_at = now
            link.put(b"p")
        try:
            for _ in range(_TURNS):
                if (data := link.stream.receive()) is None:
                    return
                if not data:
                    raise Unreachable("the stream of tasks ended")
                link.heard += data
                self._read(link, ended)
        except RemoteFailure as error:
            self._break(link)
            link.distrust(MachineLost(str(error)))
        except GpujobsError:
            self._break(link)

    def _break(self, link: Link) -> None:
        """Wait for the work's own end, or for another connection."""
        self._forget(link)
        link.broken_at = time.monotonic()
        link.breaks += link.shell is not None and link.shell.alive  # a lost connection is no fault of its Python
        if link.breaks >= _MOST_BREAKS:
            link.distrust(MachineLost(f"{link.name}: {link.breaks} streams of tasks ended, and nothing came of them"))

    def _forget(self, link: Link) -> None:
        stream, shell = link.stream, link.shell
        if stream is not None:
            with suppress(KeyError, ValueError):
                self._selector.unregister(stream)
            stream.close()
        link.renew(shell, None)

    def _read(self, link: Link, ended: list[End]) -> None:
        while True:
            if link.result is None:
                if len(link.heard) < FRAME.size:
                    return
                letter, number, size = FRAME.unpack_from(link.heard)
                del link.heard[: FRAME.size]
                if letter not in _LETTERS or size > (MAX_BYTES + 64 if letter == b"r" else _SHORT_BYTES):
                    raise RemoteFailure(f"{link.name} sent what is no frame of ours")
                place = io.BytesIO() if size <= _SMALL_BYTES else tempfile.TemporaryFile()  # noqa: SIM115 - for its reader
                link.result = (letter, number, size, cast("BinaryIO", place))
            letter, number, left, file = link.result
            piece = link.heard[:left]
            file.write(piece)
            del link.heard[: len(piece)]
            link.result = (letter, number, left - len(piece), file)
            if left > len(piece):
                return
            link.result = None
            self._hear(link, letter, number, file, ended)

    def _hear(self, link: Link, letter: bytes, number: int, file: BinaryIO, ended: list[End]) -> None:
        file.seek(0)
        if letter == b"h":
            with file:
                self._catch_up(link, known_told(file.read()))
            return
        if letter == b"w":
            with file:
                part = part_told(link.name, file.read())
            if number in link.tasks:
                link.tasks[number].wrote(part)
            return
        link.put(b"a", number)
        task = link.tasks.pop(number, None)
        if task is None:
            file.close()
            return

        def end() -> None:
            if letter == b"r":
                task.finish(file)
                return
            with file:
                task.fail(death(file.read()))

        ended.append(end)

    def _catch_up(self, link: Link, known: frozenset[int]) -> None:
        """Send again what was lost with an earlier stream."""
        link.ready, link.served, link.breaks = True, True, 0
        for task in link.tasks.values():
            if task.number not in known:
                link.put_task(task)

    def _deal(self) -> None:
        for link in self._links:
            while self._queue and link.ready and not link.leaving and len(link.tasks) < link.slots:
                task = self._queue.popleft()
                if not task.future.running() and not task.future.set_running_or_notify_cancel():
                    task.drop()
                    continue
                task.tries += 1
                link.tasks[task.number] = task
                link.put_task(task)
                task.begin(link.name)
            if link.leaving and link.ready and not link.tasks:
                link.put(b"q")
                link.ready = False

    def _send(self, link: Link) -> bool:
        """Send what there is room for; True where something is left."""
        if link.stream is None:
            return False
        try:
            while link.piece or link.out:
                if not link.piece:
                    link.piece = next(link.out[0], b"")
                    if not link.piece:
                        link.out.popleft()
                        continue
                sent = link.stream.send(link.piece)
                if not sent:
                    return True
                link.piece = link.piece[sent:]
        except (GpujobsError, OSError):
            self._break(link)
        return False

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            os.write(self._wake_in, b"!")
