"""A run's story as lines of a log: phases, notes, and the job's output in pieces, not line by line."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable

from gpujobs.flow_facts import amount_text
from gpujobs.models import NAME_PATTERN

QUIET_S = 1.0  # output is gathered for so long at least
PIECE_BYTES = 64 * 1024  # … or until there is so much of it
OUTPUT_BYTES = 8 * 1024 * 1024  # what a log takes of the job's output; the file has it all
OUTPUT = "gpujobs.output"  # the name of records of the job's output, before .ATTEMPT.BYTES
_NAME = re.compile(r"gpujobs\.output\.([0-9]+)\.([0-9]+)")
_PROGRESS_S = 30.0
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


_ECHOES = ("Finished in state Completed", "Task run failed with state")


class NoEcho(logging.Filter):
    """Drops what Prefect writes at the end of each phase that the page shows anyway, or that it writes once more."""

    def __init__(self, flow_name: str) -> None:
        """Be about the tasks of this flow alone."""
        super().__init__()
        self._flow_name = flow_name

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record stays."""
        ours = getattr(record, "flow_name", "") == self._flow_name
        return not (ours and str(record.msg).startswith(_ECHOES))


class RunLog:
    """A Reporter that writes to a logger, which may change while it is used (each phase has its own).

    Call `flush` about once a second from any thread, so that the end of a silent job's output is not held back.
    """

    def __init__(self, logger: Logger, *, where: str, now: Callable[[], float] = time.monotonic) -> None:
        """Write to `logger`; `where` names the file that holds all of the output."""
        self.logger = logger
        self._attempt, self._upto = 0, 0  # whose output it is, and how many bytes of it are written
        self._where, self._now = where, now
        self._lock = threading.Lock()
        self._held = bytearray()
        self._flushed_at = now()
        self._left_bytes = OUTPUT_BYTES
        self._told: dict[str, float] = {}

    def phase(self, name: str, detail: str) -> None:
        """Write a phase's news; that it begins, its task says."""
        self.flush(force=True)
        if machine := NAME_PATTERN.fullmatch(detail):
            self._take_up(int(machine["attempt"]), 0)
        if detail:
            self.logger.info("%s: %s", name, detail)

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Write how far it is, every half minute and at the end."""
        now = self._now()
        if done != total and now - self._told.setdefault(what, now) < _PROGRESS_S:
            return
        self._told[what] = now
        self.logger.info("%s: %s", what, amount_text(what, done, total))

    def catch_up(self, attempt: int, told_bytes: int, rest: bytes) -> None:
        """Go on with an attempt's output behind what was told of it; `rest` came since, while nobody told of it."""
        self._take_up(attempt, told_bytes)
        self.output(rest)
        self.flush(force=True)

    def note(self, text: str) -> None:
        """Write what the user should know."""
        self.flush(force=True)
        self.logger.warning("%s", text)

    def output(self, data: bytes) -> None:
        """Gather the job's output, and write it once there is enough of it."""
        with self._lock:
            self._held += data
        self.flush()

    def flush(self, *, force: bool = False) -> None:
        """Write whole lines of what was gathered, where it is time; with `force` all of it, now."""
        with self._lock:
            while (force and self._held) or self._is_time():
                self._write(self._piece(force=force))

    def _take_up(self, attempt: int, upto: int) -> None:
        if attempt != self._attempt:
            self._attempt, self._upto, self._left_bytes = attempt, upto, OUTPUT_BYTES - upto

    def _is_time(self) -> bool:
        full = len(self._held) >= PIECE_BYTES
        return full or (bool(self._held) and self._now() - self._flushed_at >= QUIET_S)

    def _piece(self, *, force: bool) -> bytes:
        """Take up to PIECE_BYTES, cut behind a line's end where there is one."""
        end = min(len(self._held), PIECE_BYTES)
        cut = self._held.rfind(b"\n", 0, end) + 1
        size = end if force and end == len(self._held) else cut or end
        piece = bytes(self._held[:size])
        del self._held[:size]
        return piece

    def _write(self, piece: bytes) -> None:
        self._flushed_at = self._now()
        self._upto += len(piece)
        if self._left_bytes <= 0:
            return
        self._left_bytes -= len(piece)
        text = _ESCAPES.sub("", piece.decode("utf-8", errors="replace").replace("\r\n", "\n")).removesuffix("\n")
        if text.strip("\n"):
            self._tell(text)
        if self._left_bytes <= 0:
            self.logger.warning("the job wrote more than this log takes; all of its output is in %s", self._where)

    def _tell(self, text: str) -> None:
        """Write a piece of output under a name that tells how far it goes, so that whoever resumes knows."""
        logger, extra = self.logger, {}
        if isinstance(logger, logging.LoggerAdapter):
            extra, logger = dict(logger.extra or {}), logger.logger
        name = f"{OUTPUT}.{self._attempt}.{self._upto}"
        if logger.isEnabledFor(logging.INFO):
            logger.handle(logger.makeRecord(name, logging.INFO, __file__, 0, text, (), None, extra=extra))


def told_of(names: Iterable[str]) -> tuple[int, int] | None:
    """Give the newest attempt of which output was told, and how many bytes, from the names of a log's records."""
    found = [match for name in names if (match := _NAME.fullmatch(name))]
    return max(((int(match[1]), int(match[2])) for match in found), default=None)
