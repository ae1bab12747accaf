"""What a function returned, as text for a page: JSON with bounds, for people to look at and not to be read back."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from itertools import islice
from pathlib import PurePath
from typing import Any

from gpujobs.call_decode import Fields

_ITEMS, _DEPTH, _TEXT_CHARS, _INT_BITS = 100, 8, 2000, 256


def shown(value: Any, most_chars: int) -> str:
    """Give `value` as JSON on one line of at most `most_chars` characters; what has no form in JSON is named."""
    text = json.dumps(_plain(value, _DEPTH), ensure_ascii=False)
    return text if len(text) <= most_chars else f"{text[: most_chars - 1]}…"


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, bool | int | float):
        return _number(value)
    if value is None or isinstance(value, str):
        return value if value is None or len(value) <= _TEXT_CHARS else f"{value[:_TEXT_CHARS]}…"
    if isinstance(value, datetime | date | time | PurePath):
        return str(value)
    return _nested(value, depth - 1) if depth else "…"


def _nested(value: Any, depth: int) -> Any:
    if (fields := _fields(value)) is not None:
        return {str(key)[:_TEXT_CHARS]: _plain(item, depth) for key, item in islice(fields.items(), _ITEMS)}
    if isinstance(value, list | tuple | set | frozenset):
        return _some(value, len(value), depth)
    return _named(value)


def _number(value: float) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    return int(value) if value.bit_length() <= _INT_BITS else f"an int of {value.bit_length()} bits"


def _fields(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Fields):
        return value.values
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if hasattr(type(value), "model_fields"):
        return {name: getattr(value, name, None) for name in type(value).model_fields}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    return None


def _some(items: Iterable[Any], count: int, depth: int) -> list[Any]:
    found = [_plain(item, depth) for item in islice(items, _ITEMS)]
    return found if count <= _ITEMS else [*found, f"… and {count - _ITEMS} more"]


def _named(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic) and isinstance(value.item(), bool | int | float | str):
        return _plain(value.item(), 1)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}, {value.dtype}"
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    return type(value).__qualname__
