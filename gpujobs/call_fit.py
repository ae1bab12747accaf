"""Makes dataclasses, named tuples and pydantic models of fields that came, by the caller's own type hints alone.

No class is looked up by a name that the machine sent: those that the hint of the return value names, and their
subclasses that are loaded here, are all that there is to choose from.
"""

import dataclasses
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from gpujobs.call_decode import Fields
from gpujobs.errors import BadResult

_HOLDERS = (list, tuple, set, frozenset)


def return_hint(function: Callable[..., Any]) -> Any:
    """Give the type that a function says it returns; Any where it says none that is known here."""
    try:
        return get_type_hints(function, include_extras=True).get("return", Any)
    except Exception:  # noqa: BLE001 - whatever a hint does when it is looked at; plain values need none
        return Any


def fit(value: Any, hint: Any, part: str = "result") -> Any:
    """Give `value` with every Fields in it made an object of the class that `hint` has for it; raises BadResult."""
    if get_origin(hint) is Annotated:
        return fit(value, get_args(hint)[0], part)
    if isinstance(value, Fields):
        return _build(value, hint, part)
    if type(value) in _HOLDERS:
        return type(value)(
            fit(item, inner, f"{part}[{index}]")
            for index, (item, inner) in enumerate(zip(value, _inner(hint, len(value)), strict=True))
        )
    if isinstance(value, dict):
        key_hint, item_hint = _of_mapping(hint)
        pairs = (
            (fit(key, key_hint, f"{part} key"), fit(item, item_hint, _at(part, key))) for key, item in value.items()
        )
        return OrderedDict(pairs) if isinstance(value, OrderedDict) else dict(pairs)
    return value


def _at(part: str, key: Any) -> str:
    short = isinstance(key, str) or (isinstance(key, int) and key.bit_length() < 64)  # noqa: PLR2004 - others take long
    return f"{part}[{key!r:.80}]" if short else f"{part}[…]"


def _options(hint: Any) -> Iterator[Any]:
    """Give the types that a hint allows, unions taken apart."""
    origin = get_origin(hint)
    if origin is Annotated:
        yield from _options(get_args(hint)[0])
    elif origin in (Union, types.UnionType):
        for option in get_args(hint):
            yield from _options(option)
    else:
        yield hint


def _inner(hint: Any, number: int) -> Sequence[Any]:
    """Give a hint for each of `number` items."""
    for option in _options(hint):
        origin, args = get_origin(option), get_args(option)
        if origin is tuple and args and args[-1] is not Ellipsis:
            return args if len(args) == number else [Any] * number
        if isinstance(origin, type) and args and not issubclass(origin, Mapping):
            return [args[0]] * number
    return [Any] * number


def _of_mapping(hint: Any) -> tuple[Any, Any]:
    for option in _options(hint):
        origin, args = get_origin(option), get_args(option)
        if isinstance(origin, type) and issubclass(origin, Mapping) and len(args) == 2:  # noqa: PLR2004 - key, value
            return args[0], args[1]
    return Any, Any


def _build(value: Fields, hint: Any, part: str) -> Any:
    for option in _options(hint):
        origin = get_origin(option) or option
        if isinstance(origin, type):
            for kind in _family(origin):
                if kind.__qualname__ == value.name:
                    return _make(kind, value, part)
    raise BadResult(
        f"{part} is a {value.name[:80]}, and the function's return type names no such class; annotate it, as "
        f"def f(…) -> {value.name.rpartition('.')[2][:80]}, or set trust_remote=True"
    )


def _family(kind: type) -> Iterator[type]:
    """Give a class and the subclasses of it that are loaded here."""
    yield kind
    if kind is not object:
        subs: list[type] = type.__subclasses__(kind)
        for sub in subs:
            yield from _family(sub)


def _make(kind: type, value: Fields, part: str) -> Any:
    try:
        if dataclasses.is_dataclass(kind):
            return _make_dataclass(kind, value, part)
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return kind(**_fitted(kind, value, part))
        if hasattr(kind, "model_validate"):
            return kind.model_validate(_fitted(kind, value, part), by_name=True)
    except BadResult:
        raise
    except Exception as error:
        raise BadResult(f"{part}: no {kind.__qualname__} can be made of what came: {error}") from error
    raise BadResult(f"{part}: {kind.__qualname__} is neither a dataclass, a named tuple nor a pydantic model here")


def _make_dataclass(kind: Any, value: Fields, part: str) -> Any:
    values, fields = _fitted(kind, value, part), {field.name: field for field in dataclasses.fields(kind)}
    if unknown := values.keys() - fields.keys():
        raise BadResult(f"{part}: {kind.__qualname__} has no field {min(unknown)[:80]} here; is it the same source?")
    made = kind(**{name: item for name, item in values.items() if fields[name].init})
    for name, item in values.items():
        if not fields[name].init:
            object.__setattr__(made, name, item)
    return made


def _fitted(kind: type, value: Fields, part: str) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: fit(item, hints.get(name, Any), f"{part}.{name}") for name, item in value.values.items()}
