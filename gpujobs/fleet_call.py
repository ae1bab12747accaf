"""A call as a task of a fleet: to the bytes that a slot reads, and from those that it leaves to a future's end."""

import json
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from gpujobs.call_files import Call, pack
from gpujobs.call_outcome import Wanted, result_in
from gpujobs.call_source import Source
from gpujobs.fleet_book import Book
from gpujobs.fleet_task import Task
from gpujobs.settings import private_folder, private_opener

_HEAD = struct.Struct(">IQ")  # as remote/slot.py reads it
_SMALL_BYTES = 2**16  # what is larger waits on the disk, so that a long queue costs little memory
_PIECE_BYTES = 2**18


@dataclass(slots=True, kw_only=True, eq=False)
class CallTask(Task):
    """A call that waits, or is at a machine."""

    wanted: Wanted
    book: Book

    def begin(self, machine: str) -> None:
        """Note at which machine it is."""
        self.book.began(self.number, machine, self.tries)

    def put_back(self) -> None:
        """Note that it waits again."""
        self.book.waits(self.number)

    def finish(self, outcome: BinaryIO) -> None:
        """End the future with what a slot left."""
        try:
            with outcome:
                value = result_in(outcome, self.wanted)
        except Exception as error:  # noqa: BLE001 - a future's exception is whatever came
            self.fail(error)
        else:
            self.book.succeeded(self.number)
            self.drop()
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """End the future with an exception, and note it."""
        self.book.failed(self.number, error)
        Task.fail(self, error)

    def drop(self) -> None:
        """Let go of the content; note where that is because the call was cancelled."""
        Task.drop(self)
        if self.future.cancelled():
            self.book.dropped(self.number)


def pack_task(call: Call, source: Source, *, chunk: bool, trust_remote: bool, place: Path) -> tuple[bytes | Path, int]:
    """Give what a slot reads to make a call, and its size; a large one lies in the file `place`. Raises BadInput."""
    with (
        tempfile.SpooledTemporaryFile(_SMALL_BYTES) as arguments,
        tempfile.SpooledTemporaryFile(_SMALL_BYTES) as arrays,
    ):
        parts = cast("tuple[BinaryIO, BinaryIO]", (arguments, arrays))
        spec = {**pack(call, source, *parts), "chunk": chunk, "trust_remote": trust_remote}
        text = json.dumps(spec).encode()
        sizes = [part.seek(0, os.SEEK_END) for part in parts]
        head = _HEAD.pack(len(text), sizes[0]) + text
        for part in parts:
            part.seek(0)
        if sum(sizes) <= _SMALL_BYTES:
            content = head + arguments.read() + arrays.read()
            return content, len(content)
        private_folder(place.parent)
        with open(place, "wb", opener=private_opener) as file:
            file.write(head)
            for part in parts:
                shutil.copyfileobj(part, file, _PIECE_BYTES)
        return place, len(head) + sum(sizes)
