"""What a run tells while it goes, kept in its folder, so that other processes can show it as if they drove it."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpujobs.models import Reporter
from gpujobs.settings import private_opener

NEWS = "news.jsonl"  # in a run's folder
_PROGRESS_EVERY_S = 0.5
_PIECE_BYTES = 2**16
_FULL_BYTES = 8 * 2**20  # a run that tells more has nothing new to tell


class NewsWriter:
    """A Reporter that passes everything on, and writes phases, notes and progress into a file of lines.

    The job's output is not in it: that is in the log. A disk that is full costs the news, never the run.
    """

    def __init__(self, path: Path, reporter: Reporter, *, now: Callable[[], float] = time.monotonic) -> None:
        """Add to the file at `path`, made 0600 where it is not there."""
        self._path, self._reporter, self._now = path, reporter, now
        self._moved: dict[str, float] = {}

    def phase(self, name: str, detail: str) -> None:
        """Keep and pass on."""
        self._write(["phase", name, detail])
        self._reporter.phase(name, detail)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Keep, twice a second at most and always the last; pass on."""
        if done == total or self._now() - self._moved.get(what, float("-inf")) >= _PROGRESS_EVERY_S:
            self._moved[what] = self._now()
            self._write(["progress", what, done, total])
        self._reporter.progress(what, done, total)

    def note(self, text: str) -> None:
        """Keep and pass on."""
        self._write(["note", text])
        self._reporter.note(text)

    def output(self, data: bytes) -> None:
        """Pass on."""
        self._reporter.output(data)

    def _write(self, line: list[Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        try:
            handle = private_opener(str(self._path), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                if os.fstat(handle).st_size < _FULL_BYTES:
                    os.write(handle, data)
            finally:
                os.close(handle)
        except OSError:
            return


class NewsReader:
    """Reads what a NewsWriter, or one after another, writes, and tells it to a reporter."""

    def __init__(self, path: Path, reporter: Reporter, *, from_now: bool) -> None:
        """Tell everything, or with `from_now` only what is written from now on."""
        self._path, self._reporter = path, reporter
        self._offset = path.stat().st_size if from_now and path.exists() else 0

    def look(self) -> bool:
        """Tell what is new; False where there is nothing."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_PIECE_BYTES)
        except FileNotFoundError:
            return False
        lines = data[: data.rfind(b"\n") + 1]
        self._offset += len(lines)
        for line in lines.splitlines():
            self._tell(json.loads(line))
        return bool(lines)

    def _tell(self, line: list[Any]) -> None:
        match line:
            case ["phase", name, detail]:
                self._reporter.phase(name, detail)
            case ["progress", what, done, total]:
                self._reporter.progress(what, done, total)
            case ["note", text]:
                self._reporter.note(text)
