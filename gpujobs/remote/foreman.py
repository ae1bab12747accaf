"""Takes tasks for this machine's slots over a socket, from one controller: `python foreman.py`. Python 3.6 or later.

Frames, both ways: a letter, a task's number and the size of what follows (8 bytes each, big-endian), and that.

    to here    c  {"slots"}: how many calls at a time; the first frame of each connection
               t  a task, as slot.py reads it; one that is known already is left alone
               a  its outcome came: forget it
               p  somebody is still there
               q  no more tasks: end
    from here  h  {"tasks"}: the numbers that are known, once `c` came; then the outcomes that nobody acknowledged
               r  what slot.py left
               x  {"signal", "code", "oom"}: the slot's process ended under the task
               w  {"from", "to"}: where in this run's output a task's own begins, and, once it is over, ends

A connection that is lost costs nothing: the next one goes on. Nobody there for SILENT_S: it ends.
"""

import collections
import json
import os
import select
import socket
import stat
import struct
import subprocess
import sys
import time
from typing import Any, BinaryIO, Deque, Dict, Iterator, List, Optional, Set, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
TASKS = os.path.join(HERE, "tasks")
HEAD = struct.Struct(">cQQ")
PIECE_BYTES = 2**16
SILENT_S = 1800.0


class Slot:
    """One process that makes calls, with a GPU of its own where there are several."""

    def __init__(self, gpu: Optional[str]) -> None:
        """Start nothing yet."""
        self.number: Optional[int] = None  # of the task that it is at
        self._gpu = gpu
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._ooms = 0
        self.done = self._tasks = -1

    def begin(self, number: int) -> None:
        """Have it make a call."""
        if self.has_died():
            self.end()
        if self._process is None:
            self._start()
        self.number, self._ooms = number, ooms()
        try:
            os.write(self._tasks, b"%d\n" % number)
        except BrokenPipeError:  # it died this moment, which its pipe tells
            pass

    def _start(self) -> None:
        tasks, self._tasks = os.pipe()
        self.done, done = os.pipe()
        env = dict(os.environ)
        if self._gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = self._gpu
        words = [sys.executable, os.path.join(HERE, "slot.py"), str(tasks), str(done)]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, pass_fds=(tasks, done), env=env)
        os.close(tasks)
        os.close(done)

    def came(self) -> bool:
        """Say whether what it wrote is that its call is made; False where its process has ended."""
        return bool(os.read(self.done, 100))

    def has_died(self) -> bool:
        """Say whether its process ended, though something that it started may hold its pipe open."""
        return self._process is not None and self._process.poll() is not None

    def end(self) -> Dict[str, Any]:
        """Tell how its process ended; the next call gets another."""
        code = self._process.wait() if self._process is not None else 0
        os.close(self.done)
        os.close(self._tasks)
        self._process, self.done = None, -1
        return {"signal": max(0, -code), "code": max(0, code), "oom": ooms() > self._ooms}


class Link:
    """The connection to the controller: frames in, frames out, nothing that waits."""

    def __init__(self, conn: socket.socket) -> None:
        """Have heard nothing yet."""
        self.conn, self.begun = conn, False
        conn.setblocking(False)
        self._head = b""
        self._left = -1  # bytes of the frame's content that are still to come; -1: its head is
        self._letter, self._number = b"", 0
        self._file: Optional[BinaryIO] = None
        self._content = b""
        self._out: Deque[Iterator[bytes]] = collections.deque()
        self._piece = b""

    @property
    def has_more(self) -> bool:
        """Whether there is something to send."""
        return bool(self._piece or self._out)

    def put(self, letter: bytes, number: int, content: bytes = b"", path: str = "") -> None:
        """Send a frame, with what is in the file `path` if that is named."""
        self._out.append(frame(letter, number, content, path))

    def send(self) -> None:
        """Send what there is room for; raises OSError where nobody listens."""
        while self.has_more:
            if not self._piece:
                self._piece = next(self._out[0], b"")
                if not self._piece:
                    self._out.popleft()
                    continue
            try:
                self._piece = self._piece[self.conn.send(self._piece) :]
            except BlockingIOError:
                return

    def receive(self) -> Iterator[Tuple[bytes, int, bytes]]:
        """Give the frames that are whole by now; raises OSError at the connection's end."""
        data = self.conn.recv(PIECE_BYTES)
        if not data:
            raise ConnectionError("nobody is there any more")
        while data:
            if self._left < 0:
                data = self._take_head(data)
            if self._left >= 0:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                self._keep(piece)
                if self._left == 0:
                    yield self._whole()

    def _take_head(self, data: bytes) -> bytes:
        wanted = HEAD.size - len(self._head)
        self._head += data[:wanted]
        if len(self._head) == HEAD.size:
            self._letter, self._number, self._left = HEAD.unpack(self._head)
            self._head, self._content = b"", b""
            if self._letter == b"t":
                self._file = open(task_path(self._number) + ".part", "wb")
        return data[wanted:]

    def _keep(self, piece: bytes) -> None:
        if self._file is not None:
            self._file.write(piece)
        else:
            self._content += piece

    def _whole(self) -> Tuple[bytes, int, bytes]:
        self._left = -1
        if self._file is not None:
            self._file.close()
            self._file = None
        return self._letter, self._number, self._content

    def close(self) -> None:
        """End it."""
        self.conn.close()
        if self._file is not None:
            self._file.close()


class Foreman:
    """Hands tasks to slots and what came of them home."""

    def __init__(self, listener: socket.socket) -> None:
        """Know no task yet."""
        self._listener = listener
        self._link: Optional[Link] = None
        self._slots: List[Slot] = []
        self._waiting: Deque[int] = collections.deque()
        self._known: Set[int] = set()
        self._outcomes: collections.OrderedDict[int, Tuple[bytes, bytes, str]] = collections.OrderedDict()
        self._wrote: Dict[int, Dict[str, Optional[int]]] = {}
        self._heard_at = time.monotonic()
        self._over = False

    def work(self) -> None:
        """Go on until told to end, or until nobody has been there for too long."""
        while not self._over and time.monotonic() - self._heard_at < SILENT_S:
            running = {slot.done: slot for slot in self._slots if slot.number is not None}
            link = self._link
            sources: List[Any] = [self._listener, *running] + ([link.conn] if link else [])
            sinks = [link.conn] if link and link.has_more else []
            readable, writable, _ = select.select(sources, sinks, [], 1.0)
            for slot in running.values():
                if slot.done in readable or slot.has_died():
                    self._hear_slot(slot, slot.done in readable and slot.came())
            if self._listener in readable:
                self._connect()
            elif link is not None and (link.conn in readable or link.conn in writable):
                self._exchange(link, link.conn in readable)
            self._deal()

    def _connect(self) -> None:
        conn, _ = self._listener.accept()
        if self._link is not None:
            self._link.close()
        self._link = Link(conn)

    def _exchange(self, link: Link, readable: bool) -> None:
        try:
            if readable:
                for letter, number, content in link.receive():
                    self._heard_at = time.monotonic()
                    self._hear(link, letter, number, content)
            link.send()
        except OSError:
            link.close()
            self._link = None

    def _hear(self, link: Link, letter: bytes, number: int, content: bytes) -> None:
        if letter == b"c":
            self._begin(link, json.loads(content.decode()))
        elif letter == b"t":
            self._take(number)
        elif letter == b"a":
            self._forget(number)
        elif letter == b"q":
            self._over = True

    def _begin(self, link: Link, wanted: Dict[str, Any]) -> None:
        if not self._slots:
            self._slots = [Slot(gpu) for gpu in gpus(wanted["slots"])]
        link.begun = True
        link.put(b"h", 0, json.dumps({"tasks": sorted(self._known)}).encode())
        for number in sorted(self._wrote):
            self._tell_wrote(link, number)
        for number, outcome in self._outcomes.items():
            link.put(outcome[0], number, *outcome[1:])

    def _take(self, number: int) -> None:
        path = task_path(number)
        if number in self._known:
            os.unlink(path + ".part")
            return
        os.rename(path + ".part", path)
        self._known.add(number)
        self._waiting.append(number)

    def _forget(self, number: int) -> None:
        self._known.discard(number)
        self._wrote.pop(number, None)
        if self._outcomes.pop(number, (b"", b"", ""))[2]:
            os.unlink(task_path(number) + ".out")

    def _deal(self) -> None:
        for slot in self._slots:
            if slot.number is None and self._waiting:
                number = self._waiting.popleft()
                self._wrote[number] = {"from": written(), "to": None}
                slot.begin(number)
                if self._link is not None and self._link.begun:
                    self._tell_wrote(self._link, number)
                    self._exchange(self._link, False)

    def _tell_wrote(self, link: Link, number: int) -> None:
        link.put(b"w", number, json.dumps(self._wrote[number]).encode())

    def _hear_slot(self, slot: Slot, made: bool) -> None:
        number, slot.number = slot.number or 0, None
        if made:
            outcome = (b"r", b"", task_path(number) + ".out")
        else:
            outcome = (b"x", json.dumps(slot.end()).encode(), "")
        self._outcomes[number] = outcome
        self._wrote[number]["to"] = written()
        if self._link is not None and self._link.begun:
            self._tell_wrote(self._link, number)
            self._link.put(outcome[0], number, *outcome[1:])
            self._exchange(self._link, False)


def frame(letter: bytes, number: int, content: bytes, path: str) -> Iterator[bytes]:
    """Give a frame piece by piece."""
    size = os.path.getsize(path) if path else len(content)
    yield HEAD.pack(letter, number, size) + content
    if path:
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(PIECE_BYTES), b""):
                yield piece


def task_path(number: int) -> str:
    """Name the file of a task."""
    return os.path.join(TASKS, str(number))


def written() -> int:
    """Count the bytes that this run has written by now; 0 where its output is no file."""
    told = os.fstat(1)
    return told.st_size if stat.S_ISREG(told.st_mode) else 0


def gpus(slots: int) -> List[Optional[str]]:
    """Name the GPU of each slot; one slot has all that there are."""
    if slots == 1:
        return [None]
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return [seen[index] if index < len(seen) else str(index) for index in range(slots)]


def ooms() -> int:
    """Count the processes that Linux has ended for their memory."""
    for name in ("memory.events", "memory/memory.oom_control"):
        try:
            with open(os.path.join("/sys/fs/cgroup", name)) as file:
                return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except (OSError, ValueError, IndexError):
            continue
    return 0


def main() -> None:
    """Listen, say by which Python to come, and work."""
    work = os.getcwd()
    os.chdir(HERE)  # a socket's path must be short
    before = os.umask(0o077)
    os.mkdir("tasks")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        listener.listen(4)
        with open("python.part", "w") as file:
            file.write(sys.executable + "\n")
        os.rename("python.part", "python")
        os.umask(before)
        os.chdir(work)
        Foreman(listener).work()


if __name__ == "__main__":
    main()
