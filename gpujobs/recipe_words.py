"""What is wrong with a recipe, in a user's words: the nearest known key, or what a value must be, with an example."""

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gpujobs.recipe import Recipe, Resources
from gpujobs.recipe_yaml import KeyPath, dotted, parse

ALIASES: Mapping[KeyPath, str] = {  # where a key stands under another name that users bring along
    ("commands",): "run",
    ("env",): "envs",
    ("resources", "gpu"): "accelerators",
}

_NOT_YET = {
    "lease": "renews no leases",
}
_MEANT = {
    "image_id": "use resources.image",
    "image": "use resources.image",
    "docker": "use resources.image",
    "sweep": "use matrix, as {LR: [1e-4, 1e-3]}",
    "parallelism": "use concurrency, as 2",
    "num_nodes": "a run has one machine; leave it out",
    "nodes": "a run has one machine; leave it out",
    "disk_size": "use resources.volumes, as [{path: /root/data, size: 50}]",
    "disk": "use resources.volumes, as [{path: /root/data, size: 50}]",
    "any_of": "give infra or accelerators a list",
    "ordered": "give infra a list, it is an order",
    "cloud": "use resources.infra, as autodl",
    "provider": "use resources.infra, as autodl",
    "backend": "use resources.infra, as autodl",
    "backends": "use resources.infra, as autodl",
    "region": "use resources.infra, as autodl/westDC2",
    "regions": "use resources.infra, as autodl/westDC2",
    "zone": "use resources.infra, as autodl/westDC2",
    "use_spot": "neither cloud rents spot machines; leave it out",
    "spot_policy": "neither cloud rents spot machines; leave it out",
    "job_recovery": "use retry",
    "retries": "use retry, as {attempts: 3}",
    "on_events": "use on",
    "duration": "use wait, as 2h",
    "timeout": "use max_duration, as 6h",
    "time_limit": "use max_duration, as 6h",
    "idle_timeout": "use idle_duration, as 15m",
    "autostop": "use idle_duration, as 15m",
    "storage_mounts": "use file_mounts",
    "files": "use file_mounts",
    "working_dir": "use workdir",
    "command": "use run",
    "script": "use run",
    "instance_type": "use resources.accelerators",
    "<<": "merge keys are not read; write the keys out",
}

_SHAPES = {  # what the pattern of a last key asks for, where its parent is
    ("", "name"): "1 to 40 small letters, digits, - _ ., a letter or digit first",
    ("snapshot", "name"): "1 to 63 small letters, digits, - _ ., a letter or digit first",
    ("snapshot", "tag"): "1 to 63 letters, digits, - _ ., a letter or digit first",
    ("volumes", "path"): "an absolute path",
    ("matrixdc", "cost_time"): "a number with D, W or M",
}

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a map of key: value",
    "model_type": "a map of key: value",
    "model_attributes_type": "a map of key: value",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
}
_TOO_LONG_TO_QUOTE = 40
_MAY_BE_SECRET = {"secrets", "credentials", "notify"}  # keys under which somebody may write the secret itself


def unknown_key(path: KeyPath) -> str:
    """Say that a key is not known, and which one was likely meant."""
    parent, key = path[:-1], str(path[-1])
    if not parent and key in _NOT_YET:
        return f"{key} is for a later version: this one {_NOT_YET[key]}; leave it out"
    return f"{dotted(path)} is not known; {_remedy(parent, key)}"


def _remedy(parent: KeyPath, key: str) -> str:
    if not parent and key in Resources.model_fields:
        return f"it belongs under resources: {key}: …"
    if parent and key in Recipe.model_fields:
        return f"{key} belongs at the left edge, not under {dotted(parent)}"
    if key in _MEANT:
        return _MEANT[key]
    known = {name: name for name in _model_at(parent).model_fields}
    known |= {str(alias[-1]): str(alias[-1]) for alias in ALIASES if alias[:-1] == parent}
    far = {name: f"resources.{name}" for name in Resources.model_fields} if not parent else {}
    near = difflib.get_close_matches(key.lower(), [*known, *far], n=1, cutoff=0.5)
    return f"did you mean {(far | known)[near[0]]}?" if near else f"known here: {', '.join(known)}"


def wrong_value(path: KeyPath, error: ErrorDetails) -> str:
    """Say what was given at `path`, what is wanted, and how it is written; `error` is pydantic's."""
    kind, name = error["type"], dotted(path)
    if kind == "missing":
        return f"{name} is missing; add {path[-1]}: {_example(path)}"
    if kind == "value_error":
        return f"{name}: {error['ctx']['error']}"
    if wanted := _wanted(path, error):
        given = "what it is" if path[0] in _MAY_BE_SECRET else _described(error["input"])  # it may be a secret itself
        return f"{name} must be {wanted}, not {given}; write {_key(path)}: {_example(path)}"
    words = " is empty" if kind in {"too_short", "string_too_short"} else f": {error['msg']}"
    return f"{name}{words}; write {_key(path)}: {_example(path)}"


def _wanted(path: KeyPath, error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        word, limit = _BOUNDS[kind]
        return f"{word} {context[limit]:g}"
    if kind == "string_pattern_mismatch":
        names = ["", *(part for part in path if isinstance(part, str))]
        return _SHAPES[names[-2], names[-1]]
    return str(context.get("expected", "")) if kind == "literal_error" else _EXPECTED.get(kind, "")


def _key(path: KeyPath) -> str:
    return next((str(part) for part in reversed(path) if isinstance(part, str) and _field_at(path)), str(path[-1]))


def _described(value: Any) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            shown = value if len(value) <= _TOO_LONG_TO_QUOTE else value[: _TOO_LONG_TO_QUOTE - 1] + "…"
            return f"the text {shown!r}"
        case list():
            return "a list"
        case _:
            return "a map"


def _example(path: KeyPath) -> str:
    found = _field_at(path)
    return _flow(found.examples[0]) if found and found.examples else "…"


def _flow(value: Any) -> str:
    """Write a value as YAML on one line, quoted only where it would be read as something else."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and parse(value, is_text=_never).value != value:
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _never(_path: KeyPath) -> bool:
    return False


def _field_at(path: KeyPath) -> FieldInfo | None:
    """Give the field that `path` leads to, or that holds the list or free map that it leads into."""
    model: type[BaseModel] | None = Recipe
    found: FieldInfo | None = None
    for part in path:
        if model is None or isinstance(part, int):
            continue
        found = model.model_fields.get(part)
        model = _model_in(found.annotation) if found else None
    return found


def _model_at(path: KeyPath) -> type[BaseModel]:
    found = _field_at(path)
    return (_model_in(found.annotation) if found else None) or Recipe


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)
