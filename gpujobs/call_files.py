"""The files of one call that go to the machine: what is to be called, and with what."""

import inspect
import io
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, BinaryIO

from gpujobs.call_source import Source, main_module
from gpujobs.errors import BadInput
from gpujobs.remote import call_files, fleet_files
from gpujobs.run_folder import write_code
from gpujobs.settings import private_folder, private_opener

_PROTOCOL = 4  # the newest that Python 3.6 reads
_Pickle = Callable[[BinaryIO, BinaryIO], pickle.Pickler]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is called with what; `by_value` is given with the arguments where it is no part of the source."""

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


def write_call(folder: Path, call: Call, source: Source, *, trust_remote: bool) -> None:
    """Write a call's folder; raises BadInput that names the argument, or what a closure holds, that cannot go."""
    with _begun(folder) as (arguments, arrays):
        spec = pack(call, source, arguments, arrays)
    if spec["minor"]:
        _copy_cloudpickle(folder / "lib")
    _write(folder / "call.json", json.dumps({**spec, "trust_remote": trust_remote}))


def write_named(folder: Path, named: Mapping[str, Any], kwargs: Mapping[str, Any], *, trust_remote: bool) -> None:
    """Write a call's folder for a function that is known by `name_of` alone."""
    with _begun(folder) as (arguments, _):
        pickle.dump((None, (), dict(kwargs)), arguments, protocol=_PROTOCOL)
    _write(folder / "call.json", json.dumps({**named, "trust_remote": trust_remote}))


def name_of(source: Source) -> dict[str, Any]:
    """Give what call.py finds a function by; raises BadInput for one that has no name to be found by."""
    main = main_module(source.workdir) if source.module == "__main__" and not source.by_value else None
    if source.by_value or (source.module == "__main__" and main is None):
        raise BadInput(f"{source.name} has no name that a machine could import it by; write it at a module's top")
    return {
        "module": source.module,
        "function": source.name,
        "from_source": True,
        "roots": list(source.roots),
        "main": main,
        "minor": None,
    }


def write_fleet(folder: Path) -> None:
    """Write what makes any calls that come on a fleet's machine."""
    write_code(folder, {**call_files(), **fleet_files()})
    _copy_cloudpickle(folder / "lib")


def pack(call: Call, source: Source, arguments: BinaryIO, arrays: BinaryIO) -> dict[str, Any]:
    """Write the arguments, and the function where it goes with them; give what call.py wants to know besides.

    Raises BadInput as `write_call` does.
    """
    in_main, by_value = source.named and source.module == "__main__", source.by_value
    if not by_value:
        try:
            in_main |= _pickled(call, source, arguments, arrays, _plain_pickler)
        except BadInput:
            if source.named:
                raise
            by_value = True  # what has no name is part of it, as a lambda in a functools.partial
    main = main_module(source.workdir) if in_main and not by_value else None
    if by_value or (in_main and main is None):
        by_value = True
        _pickled(call, source, arguments, arrays, _value_pickler)
    return {
        "module": source.module,
        "function": source.name,
        "from_source": source.named and not source.by_value,
        "roots": list(source.roots),
        "main": main,
        "minor": list(sys.version_info[:2]) if by_value else None,
    }


def _pickled(call: Call, source: Source, file: BinaryIO, arrays: BinaryIO, pickler: _Pickle) -> bool:
    """Write the arguments, streamed; say whether something of the main module is among them."""
    for one in (file, arrays):
        one.seek(0)
        one.truncate()
    made = pickler(file, arrays)
    along = source.by_value or not source.named
    try:
        made.dump((call.function if along else None, tuple(call.args), dict(call.kwargs)))
    except Exception as error:  # a class may raise what it likes while it is pickled
        raise BadInput(_what_cannot_go(call, source, pickler) or f"the arguments cannot be sent: {error}") from error
    return bool(getattr(made, "of_main", False))


def _what_cannot_go(call: Call, source: Source, pickler: _Pickle) -> str | None:
    """Name the argument, or the variable of the closure, that cannot be pickled."""
    try:
        bound = inspect.signature(call.function).bind(*call.args, **call.kwargs).arguments
    except (TypeError, ValueError):  # some that are written in C have no signature
        bound = {f"{index + 1}": value for index, value in enumerate(call.args)} | dict(call.kwargs)
    for name, value in bound.items():
        if why := _refusal(value, pickler):
            return f"the argument {name} cannot be sent to a machine: {why}; send what it is made from instead"
    for name, value in _closed_over(call.function) if source.by_value else ():
        if why := _refusal(value, pickler):
            return f"{name}, which {source.name} uses, cannot go to a machine: {why}; make it inside the function"
    return None


def _refusal(value: Any, pickler: _Pickle) -> str:
    try:
        pickler(io.BytesIO(), io.BytesIO()).dump(value)
    except Exception as error:  # noqa: BLE001 - as above
        return str(error) or type(error).__name__
    return ""


@contextmanager
def _begun(folder: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Write a call's code, and give the files for its arguments and the arrays among them."""
    write_code(folder, call_files())
    with (
        open(folder / "arguments", "wb", opener=private_opener) as arguments,
        open(folder / "arrays", "wb", opener=private_opener) as arrays,
    ):
        yield arguments, arrays


def _closed_over(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    found = inspect.getclosurevars(function)
    yield from {**found.nonlocals, **found.globals}.items()


class _Arrays:
    """Numpy arrays among the arguments: each goes once, as .npy, which any other version of numpy reads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no other object gets the id of one that is written

    def put(self, value: Any) -> tuple[int, bool] | None:
        numpy = sys.modules.get("numpy")
        if numpy is None or not (type(value) is numpy.ndarray or isinstance(value, numpy.generic)):
            return None
        if value.dtype.hasobject or not str(value.dtype).isascii():
            return None
        if id(value) not in self._offsets:
            offset = self._file.seek(0, os.SEEK_END)
            numpy.lib.format.write_array(self._file, numpy.asarray(value), allow_pickle=False)
            self._offsets[id(value)] = offset
            self._kept.append(value)
        return self._offsets[id(value)], isinstance(value, numpy.generic)


class _PlainPickler(pickle.Pickler):
    """Pickles classes and functions by their names alone, and notes those of the main module."""

    def __init__(self, file: BinaryIO, arrays: BinaryIO) -> None:
        super().__init__(file, protocol=_PROTOCOL)
        self._arrays = _Arrays(arrays)
        self.of_main = False

    def persistent_id(self, value: Any) -> Any:
        return self._arrays.put(value)

    def reducer_override(self, value: Any) -> Any:
        self.of_main |= isinstance(value, type | FunctionType) and value.__module__ == "__main__"
        return NotImplemented


def _plain_pickler(file: BinaryIO, arrays: BinaryIO) -> pickle.Pickler:
    return _PlainPickler(file, arrays)


def _value_pickler(file: BinaryIO, arrays: BinaryIO) -> pickle.Pickler:
    import cloudpickle  # noqa: PLC0415 - only for what is no part of the source

    class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> Any:
            return kept.put(value)

    kept = _Arrays(arrays)
    return ValuePickler(file, protocol=_PROTOCOL)


def _copy_cloudpickle(lib: Path) -> None:
    import cloudpickle  # noqa: PLC0415

    place = private_folder(lib / "cloudpickle")
    for path in Path(cloudpickle.__file__).parent.glob("*.py"):
        _write(place / path.name, path.read_text("utf-8"))


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", opener=private_opener) as file:
        file.write(text)
