"""The JSON schema by which Prefect's UI draws a recipe's form, and by which its server refuses bad values.

The UI draws an object's properties as a group, an `enum` as a list to choose from, anything without a type as JSON.
So each environment variable of the recipe is a field of its own, everything has a type, and nothing is a union.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gpujobs import backends
from gpujobs.form import ENV_LINE, OUTPUT_LINE, Form

_GROUPS = {  # in the order of the form
    "envs": ("Settings of the job", "Environment variables of the command"),
    "job": ("Job", "What runs, what goes up and what comes back"),
    "machine": ("Machine", "What to rent, and where"),
    "limits": ("Time and money", "When it is stopped, and what happens when something fails"),
    "images": ("Image", "What the machine boots; empty: the cloud's usual one"),
    "snapshot": ("Snapshot", "MatrixDC alone can save a machine's disk"),
    "autodl": ("AutoDL", "What only AutoDL knows"),
    "matrixdc": ("MatrixDC", "What only MatrixDC knows"),
}
_ITEMS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("job", "more_envs"): {"pattern": ENV_LINE},
    ("job", "outputs"): {"pattern": OUTPUT_LINE},
    ("job", "secrets"): {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
}


def form_schema(form: Form, names: Sequence[str]) -> dict[str, Any]:
    """Give the schema of `form`, its values as the defaults, for a recipe that may run on the backends `names`."""
    whole = Form.model_json_schema()
    groups = {name: _inlined(whole["properties"][name], whole["$defs"]) for name in _GROUPS}
    groups["envs"]["properties"] = {name: {"title": name, "type": "string"} for name in form.envs}
    groups["envs"]["required"] = [name for name, value in form.envs.items() if value]  # the UI sends no empty text
    groups["images"]["properties"] = {name: {"title": f"On {name}", "type": "string"} for name in names}
    _restrict(groups, form, names)
    values = form.model_dump(mode="json")
    shown = {name: group for name, group in groups.items() if _is_shown(name, form, names)}
    for position, (name, group) in enumerate(shown.items()):
        title, text = _GROUPS[name]
        group |= {"title": title, "description": text, "position": position}
        _set_defaults(group, values[name])
    return {"title": "Parameters", "type": "object", "properties": shown, "required": list(shown), "definitions": {}}


def form_values(form: Form) -> dict[str, Any]:
    """Give the parameters of a deployment that starts from `form`."""
    return form.model_dump(mode="json")


def _is_shown(name: str, form: Form, names: Sequence[str]) -> bool:
    if name == "envs":
        return bool(form.envs)  # a group without fields would be a box for JSON
    if name == "snapshot":
        return bool(form.snapshot.name) or any(backends.catalogue(one).snapshots for one in names)
    return name not in backends.names() or name in names


def _restrict(groups: Mapping[str, Any], form: Form, names: Sequence[str]) -> None:
    """Put in what there is to choose from; what the recipe itself names can always be chosen."""
    known = [backends.catalogue(name) for name in names]
    gpus = [*form.machine.gpus, *(gpu for one in known for gpu in one.gpus)]
    places = [*names, *(f"{name}/{region}" for name, one in zip(names, known, strict=True) for region in one.regions)]
    fields = groups["machine"]["properties"]
    fields["gpus"]["items"] = {"type": "string", "enum": list(dict.fromkeys(gpus))}
    fields["places"]["items"] = {"type": "string", "enum": list(dict.fromkeys([*places, *form.machine.places]))}
    for (group, field), more in _ITEMS.items():
        groups[group]["properties"][field]["items"] |= more


def _set_defaults(group: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Give the group and its fields their values; what always has one is required, or the UI would call it optional."""
    group["default"] = values
    required = set(group.get("required", []))
    for position, (name, field) in enumerate(group["properties"].items()):
        field["position"] = position
        if name in values:
            field["default"] = values[name]
        if "enum" in field or field["type"] in {"boolean", "integer", "number"}:
            required.add(name)
    group["required"] = [name for name in group["properties"] if name in required]


def _inlined(value: Any, definitions: Mapping[str, Any]) -> Any:
    """Put every definition in where it is referred to: the UI draws it the same, and each has its own defaults."""
    if isinstance(value, list):
        return [_inlined(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {key: _inlined(item, definitions) for key, item in value.items() if key != "$ref"}
    if "$ref" not in value:
        return plain
    return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions) | plain
