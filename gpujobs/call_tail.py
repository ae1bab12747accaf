"""One task's part of a machine's log, told as it comes."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from gpujobs.fleet_task import Part, part_of
from gpujobs.models import Reporter
from gpujobs.run_folder import attempt_log

_PIECE_BYTES = 2**20


class Tail:
    """Reads what a task of a fleet writes, from the log of the machine that it is at, and passes it on."""

    def __init__(self, folder: Path, future: Future[Any], reporter: Reporter) -> None:
        """Have read nothing; `folder` is the fleet's run's."""
        self._folder, self._future, self._reporter = folder, future, reporter
        self._attempt, self._at = 0, 0

    @property
    def whole(self) -> bool:
        """Whether all that the task wrote was passed on, as far as is known."""
        part = part_of(self._future)
        return part is None or (part.end is not None and part.attempt == self._attempt and self._at >= part.end)

    def look(self) -> None:
        """Pass on what has come since."""
        part = part_of(self._future)
        if part is None:
            return
        if part.attempt != self._attempt:  # the machine was lost, and the task went to another
            self._attempt, self._at = part.attempt, part.begin
        while data := self._read(part):
            self._at += len(data)
            self._reporter.output(data)

    def _read(self, part: Part) -> bytes:
        most = _PIECE_BYTES if part.end is None else min(_PIECE_BYTES, part.end - self._at)
        try:
            with (self._folder / attempt_log(self._attempt)).open("rb") as file:
                file.seek(self._at)
                return file.read(max(0, most))
        except FileNotFoundError:
            return b""
