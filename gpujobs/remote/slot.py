"""Makes one call after another in one process: `python slot.py TASKS_FD DONE_FD`. Python 3.6 or later.

For each number that it reads, it makes the call in `tasks/NUMBER`, leaves what came of it in `tasks/NUMBER.out`, and
writes the number. A task's file: sizes of the two next parts (4 and 8 bytes, big-endian), what to call (JSON), the
arguments (a pickle), and the arrays among them.
"""

import json
import os
import struct
import sys
import traceback
from typing import Any, BinaryIO, Dict

import call  # type: ignore[import-not-found] # it lies beside this file on the machine

HERE = call.HERE
HEAD = struct.Struct(">IQ")


def main(tasks: int, done: int) -> None:
    """Answer until nobody asks any more."""
    os.set_inheritable(tasks, False)
    os.set_inheritable(done, False)
    with os.fdopen(tasks, "r") as numbers:
        for line in numbers:
            answer(os.path.join(HERE, "tasks", line.strip()))
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os.write(done, line.encode())


def answer(path: str) -> None:
    """Make one call, and leave its value, its exception, or why there is neither."""
    try:
        with open(path, "rb") as file:
            sizes = HEAD.unpack(file.read(HEAD.size))
            spec = json.loads(file.read(sizes[0]).decode())
            value = make(spec, file, path, HEAD.size + sum(sizes))
        call.give_back(spec, value, path + ".out")
    except call.Refused as error:
        text = str(error).encode("utf-8", "replace")
        kind = b"no-result" if isinstance(error, call.NoResult) else b"refused"
        call.leave(path + ".out", kind, lambda out: out.write(text))
    except BaseException as error:  # noqa: BLE001 - all of it goes home
        told = "".join(traceback.format_exception(type(error), error, beyond_us(error)))
        record = call.record_of(error, told)
        call.leave(path + ".out", b"error", lambda out: call.Encoder(out).put(record))
    os.unlink(path)


def make(spec: Dict[str, Any], file: BinaryIO, path: str, arrays_at: int) -> Any:
    """Find the function and its arguments, and call it."""
    call.check(spec)
    see_roots(spec)
    if spec["main"] and "__mp_main__" not in sys.modules:
        call.become_main(spec["main"])
    found = call.find(spec) if spec["from_source"] else None
    function, args, kwargs = call.Unpickler(file, path, arrays_at).load()
    function = found or function
    if spec["chunk"]:
        return [function(*one) for one in args]
    return function(*args, **kwargs)


def see_roots(spec: Dict[str, Any]) -> None:
    """Have the project's folders among those that modules are imported from, here and in what the call starts."""
    roots = [os.path.normpath(os.path.join(WORK, root)) for root in spec["roots"]]
    new = [root for root in roots if root not in sys.path]
    if new:
        sys.path[1:1] = new
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0]] + new + ([inherited] if inherited else []))


def beyond_us(error: BaseException) -> Any:
    """Give the traceback from the called function on; all of it where that was not reached."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename == __file__:
        found = found.tb_next
    return found or error.__traceback__


WORK = os.getcwd()
if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
