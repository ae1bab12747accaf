"""A run's folder here: the job's log, what it wrote, and the recipe; 0700, its files 0600."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpujobs.crash import Point
from gpujobs.errors import TransferFailed
from gpujobs.news import NEWS
from gpujobs.recipe import Recipe
from gpujobs.settings import private_folder, private_opener

LOG = "output.log"
CALL_FOLDER = "call"  # in a run's folder while it runs: what makes a call, or does tasks, and goes up
TASK = "task-"  # and its index: the folder of a task in that of the outputs
_LONG_LOG_BYTES = 64 * 2**20
_ROOM_KEPT_BYTES = 512 * 2**20  # for the ledger and the other runs


def attempt_log(number: int) -> str:
    """Name the log of one attempt of several: an earlier one, or one of a fleet's."""
    return f"attempt-{number}.log"


def names_of_outputs(recipe: Recipe) -> Sequence[str]:
    """Name what a recipe's run may bring home: its outputs, or a folder for each of its tasks."""
    return [f"{TASK}{number}" for number in recipe.wanted_tasks] or list(recipe.outputs)


def write_code(folder: Path, texts: Mapping[str, str]) -> None:
    """Write what goes up as `folder`, private from the start: texts by their paths in it, beside an empty `out`."""
    for path in sorted({folder, folder / "out", *((folder / name).parent for name in texts)}):
        private_folder(path)
    for name, text in texts.items():
        with open(folder / name, "w", encoding="utf-8", newline="", opener=private_opener) as file:
            file.write(text)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run keeps its files on this side."""

    path: Path
    log_name: str = LOG

    @property
    def log(self) -> Path:
        """What the newest attempt's set-up and command wrote; earlier attempts' are attempt-N.log."""
        return self.path / self.log_name

    @property
    def news(self) -> Path:
        """What the run told while it went: phases, notes and progress, a line each."""
        return self.path / NEWS

    @property
    def outputs(self) -> Path:
        """The folder of pulled outputs, one entry a name."""
        return self.path / "outputs"

    def task(self, number: int) -> Path:
        """Where what a task left is: its log, its metrics and its outputs."""
        return self.outputs / f"{TASK}{number}"

    def make(self, recipe: Recipe) -> None:
        """Make the folder with the recipe in it; again is fine."""
        private_folder(self.path)
        private_folder(self.outputs)
        with open(self.path / "recipe.json", "w", encoding="utf-8", opener=private_opener) as file:
            file.write(recipe.model_dump_json(indent=2))

    def set_log_aside(self, attempt: int) -> None:
        """Keep the log of an attempt that is over under its number."""
        if self.log.exists():
            with Point("file", "set aside", self.log.name):
                self.log.rename(self.path / attempt_log(attempt))

    @contextmanager
    def appending(self) -> Iterator[Callable[[bytes], None]]:
        """Open the log, and give what adds a piece to it; unbuffered: a reader sees each piece at once.

        What adds raises TransferFailed where a long log would take the last of the disk.
        """
        with open(self.log, "ab", buffering=0, opener=private_opener) as file:

            def add(data: bytes) -> None:
                with Point("file", "add to", self.log.name):
                    file.write(data)
                self._check_room(file)

            yield add

    def _check_room(self, log: IO[bytes]) -> None:
        """Raise TransferFailed where a log that is long already would take the last of the disk."""
        if log.tell() > _LONG_LOG_BYTES and shutil.disk_usage(self.path).free < _ROOM_KEPT_BYTES:
            raise TransferFailed(f"{self.log} has {log.tell()} bytes, and the disk is nearly full; let it write less")

    def log_size(self) -> int:
        """Give how many bytes of the log are here."""
        try:
            return self.log.stat().st_size
        except FileNotFoundError:
            return 0

    def log_sha256(self) -> str:
        """Give the hash of what is here, as 64 hexadecimal digits."""
        if not self.log.exists():
            return hashlib.sha256().hexdigest()
        with self.log.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def drop_log(self) -> None:
        """Empty the log, to fetch it anew."""
        with Point("file", "empty", self.log.name):
            os.truncate(self.log, 0)

    def pulled(self, names: Iterable[str]) -> Mapping[str, Path]:
        """Name the outputs that are here."""
        return {name: self.outputs / name for name in names if (self.outputs / name).exists()}
