"""Telling a person what a run does: bars on a terminal, plain lines elsewhere, and the job's own output."""

import codecs
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS, …: titles, clipboard
    r"|\x1b[ -/]*[0-~]"  # the other escapes
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"  # controls, but tab, line end and return
    r"|[\u202a-\u202e\u2066-\u2069]"  # text that turns its reading order
)
_OPEN_ESCAPE = re.compile(
    r"(?:\x1b|(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*\x1b?|\x1b[ -/]+)\Z"
)
_LONGEST_ESCAPE = 4096
_PLAIN_EVERY_S = 10.0
_UNITS = ("B", "kB", "MB", "GB", "TB")
_BYTES = ("uploading", "downloading")  # what begins with these words counts bytes, everything else seconds


def clean(text: str) -> str:
    """Strip terminal escapes and control characters from a text that came from elsewhere."""
    return _ESCAPES.sub("", text)


class Cleaner:
    """Turns the bytes of a job into text that is safe on a terminal, also where an escape is cut in two."""

    def __init__(self) -> None:
        """Start with nothing held back."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, data: bytes) -> str:
        """Give what of `data`, and of what was held back before it, can be shown."""
        text = self._held + self._decoder.decode(data)
        cut = _OPEN_ESCAPE.search(text, max(0, len(text) - _LONGEST_ESCAPE))
        self._held = text[cut.start() :] if cut else ""
        return _ESCAPES.sub("", text[: cut.start()] if cut else text)


def size_text(size_bytes: float) -> str:
    """Name a size as people do: 12.3 MB."""
    unit = 0
    while size_bytes >= 1000 and unit < len(_UNITS) - 1:  # noqa: PLR2004 - of a unit make the next
        size_bytes, unit = size_bytes / 1000, unit + 1
    return f"{size_bytes:.0f} B" if unit == 0 else f"{size_bytes:.1f} {_UNITS[unit]}"


def time_text(seconds: float) -> str:
    """Name a length of time as people do: 45s, 3m05s, 2h10m, 4d02h."""
    whole = max(0, int(seconds))
    if whole < 60:  # noqa: PLR2004
        return f"{whole}s"
    for size, big, small, part in ((3600, "m", "s", 60), (86400, "h", "m", 3600)):
        if whole < size:
            return f"{whole // part}{big}{whole % part // (part // 60):02d}{small}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def drop(stream: TextIO) -> None:
    """Send what is written to `stream`, and what it still holds, nowhere: nobody reads it any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class TerminalReporter:
    """A models.Reporter: phases and notes go to `err`, the job's output to `out`. No call of it ever raises."""

    def __init__(self, *, out: TextIO | None = None, err: TextIO | None = None, bars: bool | None = None) -> None:
        """Write to `out` and `err`, else to the process's own; `bars`: whether `err` shows bars, else if it can."""
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._begun_s = time.monotonic()
        self._cleaner = Cleaner() if self._out.isatty() else None
        self._bar: _Bar = (
            _RichBar(self._err) if (_can_show_bars(self._err) if bars is None else bars) else _Lines(self.say)
        )
        self._lock = threading.RLock()
        self._last = ("", "")
        self._mid_line = False
        self.cut = False  # nobody reads our output any more

    def phase(self, name: str, detail: str) -> None:
        """Say that a phase begins, or its news; the same said again is not repeated."""
        with self._lock:
            if (name, detail) != self._last:
                self._last = (name, detail)
                self.say(f"{name}: {detail}" if detail else name)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Show bytes (uploading …, downloading …) or seconds (waits) done of a total, which the last call reaches."""
        with self._lock:
            self._break_line()
            _quietly(lambda: self._bar.show(clean(what), done, total))

    def note(self, text: str) -> None:
        """Say something that the user should know."""
        with self._lock:
            self.say(f"note: {text}")

    def output(self, data: bytes) -> None:
        """Hand on what the job wrote: as it is where piped, without terminal escapes on a terminal."""
        with self._lock:
            self.rest()
            if self.cut or not data:
                return
            text = None if self._cleaner is None else self._cleaner.feed(data)
            if not _quietly(lambda: self._write(data, text)):
                self.cut = True
                drop(self._out)
            self._mid_line = not data.endswith(b"\n") and self._cleaner is not None

    def rest(self) -> None:
        """Take the bar off the screen, so that something else can be written."""
        with self._lock:
            _quietly(self._bar.hide)

    def say(self, text: str) -> None:
        """Write a line to `err`, with the seconds since the start in front."""
        with self._lock:
            self.rest()
            self._break_line()
            line = f"[{time.monotonic() - self._begun_s:6.1f}s] {clean(text)}\n"
            _quietly(lambda: _put(self._err, line))

    def _write(self, data: bytes, text: str | None) -> None:
        if text is not None:
            _put(self._out, text)
            return
        self._out.flush()
        self._out.buffer.write(data)
        self._out.buffer.flush()

    def _break_line(self) -> None:
        if self._mid_line and self._err.isatty():
            _quietly(lambda: _put(self._err, "\n"))
            self._mid_line = False


class _Lines:
    """Progress as plain lines, seldom."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._what, self._begun_s, self._said_s = "", 0.0, 0.0

    def show(self, what: str, done: int, total: int | None) -> None:
        now_s = time.monotonic()
        if what != self._what:
            self._what, self._begun_s, self._said_s = what, now_s, now_s
        over = total is not None and done >= total
        if over or now_s - self._said_s >= _PLAIN_EVERY_S:
            self._say(f"{what}: {_amount(what, done, total)}" + (f" in {now_s - self._begun_s:.1f}s" if over else ""))
            self._said_s = now_s
        if over:
            self._what = ""

    def hide(self) -> None:
        pass


class _RichBar:
    """One bar that moves on a terminal, gone once it is full or something else is written."""

    def __init__(self, err: TextIO) -> None:
        self._err = err
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""

    def show(self, what: str, done: int, total: int | None) -> None:
        if self._progress is None or what != self._what:
            self.hide()
            self._progress, self._what = _rich_progress(self._err, bytes_counted=what.startswith(_BYTES)), what
            self._task = self._progress.add_task(what, total=total, completed=done)
            self._progress.start()
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)
        if total is not None and done >= total:
            self._progress.refresh()
            self._progress.stop()  # the full bar stays, as a record
            self._progress = None

    def hide(self) -> None:
        if self._progress is not None:
            self._progress.live.transient = True
            self._progress.stop()
            self._progress = None


_Bar = _Lines | _RichBar


def _rich_progress(err: TextIO, *, bytes_counted: bool) -> "Progress":
    from rich.console import Console  # noqa: PLC0415 - costs half as much as all the rest of a command
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    amount: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn()] if bytes_counted else []
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *amount,
        TimeElapsedColumn(),
    ]
    return Progress(*columns, console=Console(file=err), redirect_stdout=False, redirect_stderr=False)


def _amount(what: str, done: int, total: int | None) -> str:
    text = size_text if what.startswith(_BYTES) else time_text
    return text(done) if total is None else f"{text(done)} of {text(total)}"


def _can_show_bars(err: TextIO) -> bool:
    return err.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _put(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _quietly(act: Callable[[], None]) -> bool:
    """Do `act`; False where nobody reads any more, which must not end a run that is being paid for."""
    try:
        act()
    except (OSError, ValueError):  # a closed pipe, a terminal that is gone, a closed file
        return False
    return True
