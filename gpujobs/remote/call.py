"""Runs one call of a function on the machine: `python call.py`, in the project's folder there. Python 3.6 or later.

Beside this file lie `call.json` (what to call), `arguments` and `arrays` (with what), `lib/` (stand-ins), and `out/`,
where it leaves `outcome`: a line, then by its last word a value, an error's record, or a pickle. `python call.py
check` only says whether this Python will do. What cannot be done at all is said in `out/refused`.
"""

import importlib
import json
import os
import pickle
import runpy
import sys
import tempfile
import traceback
import types
from typing import Any, BinaryIO, Callable, Dict, List, Optional

HERE = os.path.dirname(os.path.abspath(__file__))
OUTCOME = os.path.join(HERE, "out", "outcome")
sys.path[0] = os.path.join(HERE, "lib")  # instead of this file's own folder

from gpujobs_encode import Encoder, Unfit  # type: ignore[import-not-found] # noqa: E402 - it lies there

TRACEBACK_CHARS = 200_000
OUT_OF_IT = "have it write a file and name that under outputs=, or set trust_remote=True, which pickles"


class Refused(Exception):
    """The call cannot be made here."""

    code = 2


class NoResult(Refused):
    """The call was made, and what it returned cannot go home."""

    code = 3


def main(words: List[str]) -> int:
    """Make the call; 0 where it returned, 1 where it raised, else the code of the refusal."""
    with open(os.path.join(HERE, "call.json"), encoding="utf-8") as file:
        call = json.load(file)
    try:
        check(call)
        if words == ["check"]:
            return 0
        return run(call)
    except Refused as error:
        with open(os.path.join(HERE, "out", "refused"), "w", encoding="utf-8") as file:
            file.write(str(error))
        print("gpujobs: {}".format(error), file=sys.stderr)
        return error.code


def check(call: Dict[str, Any]) -> None:
    """Refuse a function that went by value where this Python has other bytecode."""
    wanted = call["minor"]
    if wanted and list(sys.version_info[:2]) != wanted:
        raise Refused(
            "{} goes to the machine by value (it is a lambda, a nested function or from a notebook), for which both "
            "Pythons must be of one minor version: here it is {}.{}, and the machine's {} is {}.{}; name another with "
            "python=, or write the function into a module".format(
                call["function"], wanted[0], wanted[1], sys.executable, *sys.version_info[:2]
            )
        )


def run(call: Dict[str, Any]) -> int:
    """Find the function and its arguments, call it, and leave what came of it."""
    roots = [os.path.normpath(os.path.join(os.getcwd(), root)) for root in call["roots"]]
    sys.path[1:1] = roots
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[: len(roots) + 1] + ([inherited] if inherited else []))
    try:
        function, args, kwargs = load(call)
        value = function(*args, **kwargs)
    except Refused:
        raise
    except BaseException as error:  # noqa: BLE001 - all of it goes home
        told = "".join(traceback.format_exception(type(error), error, beyond_us(error)))
        sys.stderr.write(told)
        record = record_of(error, told)
        leave(OUTCOME, b"error", lambda file: Encoder(file).put(record))
        return 1
    return give_back(call, value, OUTCOME)


def give_back(call: Dict[str, Any], value: Any, path: str) -> int:
    """Leave a value in the file `path`, by the codec or by pickle."""
    try:
        if call["trust_remote"]:
            leave(path, b"pickle", lambda file: pickle.dump(value, file, protocol=4))
        else:
            leave(path, b"value", lambda file: Encoder(file).put(value))
    except Unfit as error:
        raise NoResult("{}; {}".format(error, OUT_OF_IT)) from None
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise NoResult("the result cannot be pickled ({}); have it write a file".format(error)) from None
    return 0


def leave(path: str, kind: bytes, write: Callable[[BinaryIO], None]) -> None:
    """Write the outcome, whole or not at all."""
    with open(path + ".part", "w+b") as file:
        file.write(b"gpujobs call 1 " + kind + b"\n")
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".part", path)


def beyond_us(error: BaseException) -> Optional[types.TracebackType]:
    """Give the traceback from the called function on; all of it where that was not reached."""
    whole = error.__traceback__
    return whole.tb_next or whole if whole else None


def record_of(error: BaseException, told: str) -> Dict[str, Any]:
    """Give what is known of an exception; of its arguments and attributes, those that have a form."""
    whole = all(map(is_fit, error.args))
    return {
        "module": type(error).__module__,
        "name": type(error).__qualname__,
        "text": text_of(error)[:TRACEBACK_CHARS],
        "traceback": told[-TRACEBACK_CHARS:],
        "whole": whole,
        "args": list(error.args) if whole else [],
        "state": {name: value for name, value in vars(error).items() if name[:2] != "__" and is_fit(value)},
    }


def text_of(error: BaseException) -> str:
    """Give what the exception says of itself."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a class may do anything
        return "(its text could not be made)"


def is_fit(value: Any) -> bool:
    """Say whether the codec has a form for it."""
    with tempfile.TemporaryFile() as file:
        try:
            Encoder(file).put(value)
        except (Unfit, OSError):
            return False
    return True


# What to call, and with what


def load(call: Dict[str, Any]) -> Any:
    """Give the function, its positional and its keyword arguments; each file goes once it is read."""
    if call["main"]:
        become_main(call["main"])
    found = find(call) if call["from_source"] else None
    path = os.path.join(HERE, "arguments")
    with open(path, "rb") as file:
        function, args, kwargs = Unpickler(file, os.path.join(HERE, "arrays")).load()
    for name in ("arguments", "arrays"):
        os.unlink(os.path.join(HERE, name))
    return found or function, args, kwargs


def find(call: Dict[str, Any]) -> Any:
    """Import the function by its qualified name."""
    try:
        found = sys.modules["__main__"] if call["module"] == "__main__" else importlib.import_module(call["module"])
    except SyntaxError as error:
        raise Refused(
            "{}:{} is not for this machine's Python {}.{} ({}); name a newer one with python=".format(
                error.filename, error.lineno, sys.version_info[0], sys.version_info[1], error.msg
            )
        ) from error
    for name in call["function"].split("."):
        if not hasattr(found, name):
            raise Refused(
                "importing {} on the machine makes no {}; define it at the module's top, and not under "
                'if __name__ == "__main__":'.format(call["module"], call["function"])
            )
        found = getattr(found, name)
    return found


def become_main(main: Dict[str, str]) -> None:
    """Run the caller's main module under another name, as multiprocessing's spawn does, and let it be __main__."""
    module = types.ModuleType("__mp_main__")
    try:
        if "module" in main:
            names = runpy.run_module(main["module"], run_name="__mp_main__", alter_sys=True)
        else:
            names = runpy.run_path(main["path"], run_name="__mp_main__")
    except SyntaxError as error:
        raise Refused(
            "{}:{} is not for this machine's Python {}.{} ({}); name a newer one with python=".format(
                error.filename, error.lineno, sys.version_info[0], sys.version_info[1], error.msg
            )
        ) from error
    vars(module).update(names)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


class Unpickler(pickle.Unpickler):
    """Takes numpy arrays from the file `arrays`, so that they pass whole from one version of numpy to another.

    They begin at the offset `base` of it.
    """

    def __init__(self, file: BinaryIO, arrays: str, base: int = 0) -> None:
        """Have read no array yet."""
        super().__init__(file)
        self._arrays, self._base = arrays, base
        self._read: Dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        """Give the array, or the scalar, at an offset."""
        offset, is_scalar = pid
        if offset not in self._read:
            self._read[offset] = read_array_at(self._arrays, self._base + offset)
        return self._read[offset][()] if is_scalar else self._read[offset]


def read_array_at(path: str, offset: int) -> Any:
    """Read one array of the arguments."""
    try:
        from numpy.lib.format import read_array
    except ImportError:
        raise Refused("an argument is a numpy array, and the machine's Python has no numpy") from None
    with open(path, "rb") as file:
        file.seek(offset)
        return read_array(file, allow_pickle=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
