"""Writes a value so that reading it can run no code: goes to the machine, where the standard library of 3.6 is all.

The form, which call_decode reads: one letter, then what it says below; all numbers little-endian, sizes 8 bytes.

    N T F     None, True, False
    i I       an int in 8 bytes; a longer one by size and bytes, two's complement
    f c       a float, a complex number: 8 and 16 bytes
    s b B     text (UTF-8, lone surrogates passed), bytes, bytearray: size and bytes
    l t e z   list, tuple, set, frozenset: number of items, then the items
    d o       dict, OrderedDict: number of pairs, then key and value in turn
    D Y M     datetime, date, time: text of its ISO form
    E         timedelta: days, seconds, microseconds, 8 bytes each
    P         path: its text
    O         dataclass, named tuple or pydantic model: text of its class's qualified name, number of fields, then
              name and value in turn
    A G       numpy array, numpy scalar: size and bytes of an .npy file
    K         torch tensor: size and bytes of a safetensors file that holds it as "t"
"""

import collections
import datetime as dt
import os
import pathlib
import struct
import sys
import tempfile
from typing import Any, BinaryIO, Callable, Dict, List, Tuple

MAX_DEPTH = 100
MAX_NODES = 10_000_000
MAX_INT_BYTES = 2**20
MAX_BYTES = 4 * 2**30
PIECE_BYTES = 2**20


class Unfit(Exception):
    """A part of the value has no such form; the message names it."""


class Encoder:
    """Writes values to a file that can be sought in; nothing is held in memory."""

    def __init__(self, file: BinaryIO, name: str = "result") -> None:
        """Begin; `name` is what the whole value is called in messages."""
        self._file, self._name = file, name
        self._path: List[Tuple[bool, Any]] = []  # whether it is an attribute, and its name, key or index
        self._nodes = 0

    def put(self, value: Any) -> None:
        """Write one value; raises Unfit, and then what was written is of no use."""
        try:
            self._put(value)
        except Unfit as error:
            raise Unfit("{} {}".format(self._part(), error)) from None

    def _part(self) -> str:
        return self._name + "".join("." + key if attribute else _shown(key) for attribute, key in self._path)

    def _put(self, value: Any) -> None:
        self._nodes += 1
        if len(self._path) > MAX_DEPTH:
            self._path = self._path[:3]
            raise Unfit("is nested deeper than {} levels, or holds itself".format(MAX_DEPTH))
        if self._nodes > MAX_NODES:
            self._path = []
            raise Unfit("has more than {} values in it; make numbers an array".format(MAX_NODES))
        if self._nodes % 4096 == 0:
            self._check_size()
        writer = _WRITERS.get(type(value))
        if writer is not None:
            writer(self, value)
        elif not (self._put_path(value) or self._put_fields(value) or self._put_array(value)):
            self._refuse(value)

    def _refuse(self, value: Any) -> None:
        kind = type(value)
        raise Unfit("is a {}.{}, which cannot come back by itself".format(kind.__module__, kind.__qualname__))

    def _check_size(self) -> None:
        if self._file.tell() > MAX_BYTES:
            raise Unfit("makes the result larger than {} bytes".format(MAX_BYTES))

    def _child(self, key: Any, value: Any, attribute: bool = False) -> None:
        self._path.append((attribute, key))
        self._put(value)
        self._path.pop()

    # the plain ones

    def _put_none(self, _value: None) -> None:
        self._file.write(b"N")

    def _put_bool(self, value: bool) -> None:
        self._file.write(b"T" if value else b"F")

    def _put_int(self, value: int) -> None:
        if -(2**63) <= value < 2**63:
            self._file.write(b"i" + struct.pack("<q", value))
            return
        size = value.bit_length() // 8 + 1
        if size > MAX_INT_BYTES:
            raise Unfit("is an int of more than {} bytes".format(MAX_INT_BYTES))
        self._sized(b"I", value.to_bytes(size, "little", signed=True))

    def _put_float(self, value: float) -> None:
        self._file.write(b"f" + struct.pack("<d", value))

    def _put_complex(self, value: complex) -> None:
        self._file.write(b"c" + struct.pack("<dd", value.real, value.imag))

    def _put_text(self, value: str) -> None:
        self._sized(b"s", value.encode("utf-8", "surrogatepass"))

    def _put_bytes(self, value: bytes) -> None:
        self._sized(b"b", value)

    def _put_bytearray(self, value: bytearray) -> None:
        self._sized(b"B", value)

    def _sized(self, letter: bytes, data: Any) -> None:
        self._file.write(letter + struct.pack("<Q", len(data)))
        self._file.write(data)
        self._check_size()

    def _put_datetime(self, value: dt.datetime) -> None:
        self._sized(b"D", value.isoformat().encode())

    def _put_date(self, value: dt.date) -> None:
        self._sized(b"Y", value.isoformat().encode())

    def _put_time(self, value: dt.time) -> None:
        self._sized(b"M", value.isoformat().encode())

    def _put_timedelta(self, value: dt.timedelta) -> None:
        self._file.write(b"E" + struct.pack("<qqq", value.days, value.seconds, value.microseconds))

    # those that hold others

    def _put_items(self, value: Any) -> None:
        self._file.write(_ITEMS[type(value)] + struct.pack("<Q", len(value)))
        for index, item in enumerate(value):
            self._child(index, item)

    def _put_pairs(self, value: Any) -> None:
        self._file.write((b"d" if type(value) is dict else b"o") + struct.pack("<Q", len(value)))
        for key, item in value.items():
            self._child(key, key)
            self._child(key, item)

    def _put_fields(self, value: Any) -> bool:
        kind = type(value)
        if hasattr(kind, "__dataclass_fields__"):
            fields = {name: getattr(value, name) for name in kind.__dataclass_fields__ if hasattr(value, name)}
        elif isinstance(value, tuple) and hasattr(kind, "_fields"):
            fields = dict(zip(kind._fields, value))
        elif any(base.__module__.split(".")[0] == "pydantic" for base in kind.__mro__):
            fields = dict(value.__dict__)
            fields.update(getattr(value, "__pydantic_extra__", None) or {})
        else:
            return False
        self._sized(b"O", kind.__qualname__.encode())
        self._file.write(struct.pack("<Q", len(fields)))
        for name, item in fields.items():
            self._put_text(str(name))
            self._child(name, item, attribute=True)
        return True

    def _put_path(self, value: Any) -> bool:
        if not isinstance(value, pathlib.PurePath):
            return False
        self._sized(b"P", str(value).encode("utf-8", "surrogatepass"))
        return True

    # arrays and tensors

    def _put_array(self, value: Any) -> bool:
        numpy: Any = sys.modules.get("numpy")
        torch: Any = sys.modules.get("torch")
        if numpy is not None and (type(value) is numpy.ndarray or isinstance(value, numpy.generic)):
            self._put_npy(numpy, b"A" if type(value) is numpy.ndarray else b"G", numpy.asarray(value))
            return True
        if torch is not None and isinstance(value, torch.Tensor):
            self._put_tensor(value)
            return True
        return False

    def _put_npy(self, numpy: Any, letter: bytes, array: Any) -> None:
        if array.dtype.hasobject:
            raise Unfit("is a numpy array of Python objects (dtype {})".format(array.dtype))
        begin = self._begin_frame(letter)
        try:
            numpy.lib.format.write_array(self._file, array, version=(1, 0), allow_pickle=False)
        except ValueError as error:
            raise Unfit("is a numpy array that an .npy file cannot hold ({})".format(error)) from None
        self._end_frame(begin)

    def _put_tensor(self, value: Any) -> None:
        try:
            from safetensors.torch import save_file  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise Unfit(
                "is a torch tensor, and the machine has no safetensors (setup: pip install safetensors)"
            ) from None
        begin = self._begin_frame(b"K")
        with tempfile.TemporaryDirectory(dir=".") as folder:
            path = os.path.join(folder, "t")
            try:
                save_file({"t": value.detach().cpu().contiguous()}, path)
            except (ValueError, RuntimeError, KeyError) as error:
                raise Unfit("is a torch tensor that safetensors cannot hold ({})".format(error)) from None
            with open(path, "rb") as file:
                for piece in iter(lambda: file.read(PIECE_BYTES), b""):
                    self._file.write(piece)
        self._end_frame(begin)

    def _begin_frame(self, letter: bytes) -> int:
        self._file.write(letter + bytes(8))
        return self._file.tell()

    def _end_frame(self, begin: int) -> None:
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(begin - 8)
        self._file.write(struct.pack("<Q", end - begin))
        self._file.seek(end)
        self._check_size()


def _shown(key: Any) -> str:
    try:
        return "[{!r:.80}]".format(key)
    except Exception:  # noqa: BLE001 - a class may do anything, and an int may be too long to be written out
        return "[…]"


_ITEMS: Dict[type, bytes] = {list: b"l", tuple: b"t", set: b"e", frozenset: b"z"}
_WRITERS: Dict[type, Callable[[Encoder, Any], None]] = {
    type(None): Encoder._put_none,
    bool: Encoder._put_bool,
    int: Encoder._put_int,
    float: Encoder._put_float,
    complex: Encoder._put_complex,
    str: Encoder._put_text,
    bytes: Encoder._put_bytes,
    bytearray: Encoder._put_bytearray,
    dt.datetime: Encoder._put_datetime,
    dt.date: Encoder._put_date,
    dt.time: Encoder._put_time,
    dt.timedelta: Encoder._put_timedelta,
    dict: Encoder._put_pairs,
    collections.OrderedDict: Encoder._put_pairs,
    list: Encoder._put_items,
    tuple: Encoder._put_items,
    set: Encoder._put_items,
    frozenset: Encoder._put_items,
}
