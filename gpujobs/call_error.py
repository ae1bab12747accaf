"""Raises here what was raised on the machine, without running anything that the machine could choose.

Only a class that is loaded here already is made again, and only an ordinary exception: its arguments come by the
codec, its own `__init__` and `__reduce__` are not called. All else is a RemoteError.
"""

import builtins
import sys
from collections.abc import Mapping
from typing import Any

from gpujobs.errors import BadResult, RemoteError
from gpujobs.progress import clean


def rebuild(record: Any) -> Exception:
    """Give the exception that a record tells of, with the machine's traceback as a note; raises BadResult."""
    if not isinstance(record, dict):
        raise BadResult("what the machine sent is no record of an exception")
    module, name, text, told = (_text(record, key) for key in ("module", "name", "text", "traceback"))
    whole = name if module == "builtins" else f"{module}.{name}"
    error = _rebuilt(module, name, record) or RemoteError(f"{whole}: {text}")
    error.add_note(f"Traceback on the machine:\n\n{told}")
    return error


def _text(record: Mapping[Any, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise BadResult(f"what the machine sent is no record of an exception: it has no {key}")
    return clean(value)


def _rebuilt(module: str, name: str, record: Mapping[Any, Any]) -> Exception | None:
    kind, args, state = _find(module, name), record.get("args"), record.get("state")
    if kind is None or record.get("whole") is not True or not isinstance(args, list) or not isinstance(state, dict):
        return None
    try:
        error = kind(*args) if _is_plain(kind) else kind.__new__(kind, *args)
        vars(error).update({key: value for key, value in state.items() if isinstance(key, str) and key[:2] != "__"})
        str(error)
    except Exception:  # noqa: BLE001 - whatever a class says to other arguments than its own
        return None
    return error


def _find(module: str, name: str) -> type[Exception] | None:
    found: Any = sys.modules.get("__main__" if module == "__mp_main__" else module)
    for step in name.split("."):
        found = vars(found).get(step) if hasattr(found, "__dict__") else None
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _is_plain(kind: type[Exception]) -> bool:
    """Say whether making one calls no code but Python's own."""
    return vars(builtins).get(kind.__name__) is kind and not issubclass(kind, ExceptionGroup)
