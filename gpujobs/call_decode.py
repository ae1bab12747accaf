"""Reads what remote/encode.py writes, from a machine that nobody need trust: it fails cleanly, and runs no code.

Every size is held against what the file still has before anything is made of it, so that a lie costs nothing.
"""

import importlib
import math
import os
import struct
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

from gpujobs.errors import BadResult
from gpujobs.remote.encode import MAX_BYTES, MAX_DEPTH, MAX_INT_BYTES, MAX_NODES, PIECE_BYTES

_ALIKE = 64  # so many keys of one hash are made on purpose: each costs as much as all before it
_HEADER_BYTES = 10_000
_PLAIN_KEYS = (str, bytes)  # their hashes cannot be foreseen


@dataclass(frozen=True, slots=True, eq=False)
class Fields:
    """An object of a class that has yet to be found here; `name` is the class's, as the machine calls it."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A value, and whether there are Fields in it, to be made objects of."""

    value: Any
    has_fields: bool


def decode(file: BinaryIO) -> Decoded:
    """Read the one value from here to the file's end; raises BadResult where it is none."""
    try:
        return _decoded(file)
    except Exception as error:  # the readers of numpy and of dates raise what they like
        why = str(error) or type(error).__name__
        raise BadResult(f"what the machine sent is no result that can be read: {why}") from error


def _decoded(file: BinaryIO) -> Decoded:
    begin = file.tell()
    size = file.seek(0, os.SEEK_END) - begin
    file.seek(begin)
    if size > MAX_BYTES:
        raise ValueError(f"it has {size} bytes, above the {MAX_BYTES} that are read")
    decoder = _Decoder(file, size)
    value = decoder.value(0)
    if decoder.left:
        raise ValueError(f"{decoder.left} bytes follow its end")
    return Decoded(value=value, has_fields=decoder.has_fields)


class _Decoder:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.left, self._nodes, self.has_fields = file, size, 0, False

    def value(self, depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
        if self._nodes > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES} values in it")
        letter = self._take(1)
        if (atom := _ATOMS.get(letter)) is not None:
            return atom(self)
        if (nest := _NESTS.get(letter)) is None:
            raise ValueError(f"nothing begins with {letter!r}")
        return nest(self, depth + 1)

    def _take(self, size: int) -> bytes:
        if size > self.left:
            raise EOFError(f"{size} bytes are announced where {self.left} are left")
        data = self._file.read(size)
        if len(data) != size:
            raise EOFError("the file became shorter")
        self.left -= size
        return data

    def _numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _size(self) -> int:
        """Read a number of bytes or items, each of which takes a byte at least."""
        size: int = self._numbers("<Q")[0]
        if size > self.left:
            raise EOFError(f"{size} bytes or items are announced where {self.left} bytes are left")
        return size

    def _bytes(self) -> bytes:
        return self._take(self._size())

    def _text(self) -> str:
        return str(self._bytes(), "utf-8", "surrogatepass")

    def _int(self) -> int:
        return int(self._numbers("<q")[0])

    def _long_int(self) -> int:
        data = self._bytes()
        if len(data) > MAX_INT_BYTES:
            raise ValueError(f"an int has {len(data)} bytes")
        return int.from_bytes(data, "little", signed=True)

    def _timedelta(self) -> timedelta:
        days, seconds, microseconds = self._numbers("<qqq")
        return timedelta(days=days, seconds=seconds, microseconds=microseconds)

    def _items(self, depth: int) -> Iterator[Any]:
        for _ in range(self._size()):
            yield self.value(depth)

    def _set(self, depth: int) -> set[Any]:
        items = list(self._items(depth))
        _check_hashes(items)
        return set(items)

    def _pairs(self, depth: int) -> dict[Any, Any]:
        pairs = [(self.value(depth), self.value(depth)) for _ in range(self._size())]
        _check_hashes([key for key, _ in pairs])
        return dict(pairs)

    def _fields(self, depth: int) -> Fields:
        self.has_fields = True
        name, number = self._text(), self._size()
        values: dict[str, Any] = {}
        for _ in range(number):
            key = self.value(depth)
            if not isinstance(key, str) or key in values:
                raise ValueError(f"a field of {name:.80} has no name of its own")
            values[key] = self.value(depth)
        return Fields(name, values)

    # arrays and tensors

    def _array(self) -> Any:
        size = self._size()
        numpy = _module("numpy", "a numpy array")
        begin = self._file.tell()
        _check_npy(numpy, self._file, size)
        self._file.seek(begin)
        array = numpy.lib.format.read_array(self._file, allow_pickle=False)
        if self._file.tell() != begin + size:
            raise ValueError("an array is not as long as it says")
        self.left -= size
        return array

    def _tensor(self) -> Any:
        size = self._size()
        _module("torch", "a torch tensor")
        load_file = _module("safetensors.torch", "a torch tensor").load_file
        with tempfile.NamedTemporaryFile(prefix="gpujobs-") as copy:
            for data in _pieces(self._file, size):
                copy.write(data)
            copy.flush()
            self.left -= size
            try:
                return load_file(copy.name)["t"]
            except Exception as error:  # safetensors' own class of error is not there without it
                raise ValueError(f"a tensor cannot be read: {error}") from error


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (data := file.read(min(size, PIECE_BYTES))):
        size -= len(data)
        yield data


def _check_hashes(keys: list[Any]) -> None:
    """Refuse keys that were made to fall on each other."""
    hashes = sorted(hash(key) for key in keys if not isinstance(key, _PLAIN_KEYS))
    for _, alike in groupby(hashes):
        if len(list(islice(alike, _ALIKE + 1))) > _ALIKE:
            raise ValueError(f"more than {_ALIKE} keys have one hash")


def _module(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"it holds {what}, and {name.partition('.')[0]} is not installed here") from error


def _check_npy(numpy: Any, file: BinaryIO, size: int) -> None:
    """Read an .npy header; raises ValueError unless the array that it tells of is what follows, to the byte."""
    begin = file.tell()
    if numpy.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array is of another version than 1.0")
    shape, _, dtype = numpy.lib.format.read_array_header_1_0(file, max_header_size=_HEADER_BYTES)
    if dtype.hasobject or dtype.itemsize == 0 or any(length < 0 for length in shape):
        raise ValueError(f"an array of dtype {dtype} and shape {shape} is none that is sent")
    if math.prod(shape) * dtype.itemsize != size - (file.tell() - begin):
        raise ValueError(f"an array of dtype {dtype} and shape {shape} does not take the bytes that came")


_ATOMS: Mapping[bytes, Callable[[_Decoder], Any]] = {
    b"N": lambda _: None,
    b"T": lambda _: True,
    b"F": lambda _: False,
    b"i": _Decoder._int,  # noqa: SLF001 - this file's own
    b"I": _Decoder._long_int,  # noqa: SLF001
    b"f": lambda decoder: decoder._numbers("<d")[0],  # noqa: SLF001
    b"c": lambda decoder: complex(*decoder._numbers("<dd")),  # noqa: SLF001
    b"s": _Decoder._text,  # noqa: SLF001
    b"b": _Decoder._bytes,  # noqa: SLF001
    b"B": lambda decoder: bytearray(decoder._bytes()),  # noqa: SLF001
    b"D": lambda decoder: datetime.fromisoformat(decoder._text()),  # noqa: SLF001
    b"Y": lambda decoder: date.fromisoformat(decoder._text()),  # noqa: SLF001
    b"M": lambda decoder: time.fromisoformat(decoder._text()),  # noqa: SLF001
    b"E": _Decoder._timedelta,  # noqa: SLF001
    b"P": lambda decoder: Path(decoder._text()),  # noqa: SLF001
    b"A": _Decoder._array,  # noqa: SLF001
    b"G": lambda decoder: decoder._array()[()],  # noqa: SLF001
    b"K": _Decoder._tensor,  # noqa: SLF001
}
_NESTS: Mapping[bytes, Callable[[_Decoder, int], Any]] = {
    b"l": lambda decoder, depth: list(decoder._items(depth)),  # noqa: SLF001
    b"t": lambda decoder, depth: tuple(decoder._items(depth)),  # noqa: SLF001
    b"e": _Decoder._set,  # noqa: SLF001
    b"z": lambda decoder, depth: frozenset(decoder._set(depth)),  # noqa: SLF001
    b"d": _Decoder._pairs,  # noqa: SLF001
    b"o": lambda decoder, depth: OrderedDict(decoder._pairs(depth)),  # noqa: SLF001
    b"O": _Decoder._fields,
}
