"""The kinds of values that a recipe is made of, each with what it refuses."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(s|m|h|d)")
_DURATION_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 366 * 86400
MAX_TASKS = 1000
_AT_LEAST = re.compile(r"(\d{1,9})\+?")


def _duration_s(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} has no unit; write it with one, as 90s, 30m, 6h or 2d")  # noqa: TRY004 - pydantic
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value.replace(" ", ""):
        raise ValueError(f"{value!r} is not a duration; write 90s, 30m, 6h, 2d or 1h30m")
    seconds = sum(float(number) * _DURATION_S[unit] for number, unit in parts)
    if seconds > _LONGEST_S:
        raise ValueError(f"{value!r} is longer than a year; write less")
    return round(seconds)


def _at_least(value: Any) -> Any:
    if isinstance(value, str):
        found = _AT_LEAST.fullmatch(value.strip())
        if found is None:
            raise ValueError(f"{value!r} is not a number; write 4 or 4+, both mean at least 4")
        return int(found[1])
    return value


def _listed(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    texts = [str(item) if type(item) is int else item for item in items]  # a GPU may be called 4090
    return value if isinstance(value, dict | None) else texts


def _env_text(name: str, value: Any) -> Any:
    """Give a number as text; raises ValueError for what YAML takes for something else."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f'{name!r} must be text; quote it, as {name}: "{str(value or "").lower()}"')
    return str(value) if isinstance(value, int | float) else value


def _env_texts(value: Any) -> Any:
    return {name: _env_text(name, item) for name, item in value.items()} if isinstance(value, Mapping) else value


def _matrix(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    for name, items in value.items():
        if not isinstance(items, list) or not items:
            raise ValueError(f"{name!r} must be a list of values, as {name}: [1, 2]")
    return {name: [_env_text(name, item) for item in items] for name, items in value.items()}


def _tasks(value: Any) -> Any:
    """Give the variables of each task; a number means so many that have their index alone, and 1 a run without any."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value[:9])
    if type(value) is not int:
        return [_env_texts(one) for one in value] if isinstance(value, list) else value
    if not 1 <= value <= MAX_TASKS:
        raise ValueError(f"must be from 1 to {MAX_TASKS}, not {value}")
    return [{}] * value if value > 1 else []


def _lines(value: Any) -> Any:
    return "\n".join(value) if isinstance(value, list) and all(isinstance(line, str) for line in value) else value


def _plain_text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds bytes that are no text; write it in UTF-8") from error
    return value


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"{value!r} holds a character that cannot be printed; write it on one line, without it")
    return value


def _block_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9](-?[a-z0-9]){0,62}", value):  # not quoted: it may be a token
        raise ValueError("give a block's name (small letters, digits, dashes), not a token, as {autodl: my-team}")
    return value


def _notice_name(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", value):  # not quoted: it may be a URL, which is a secret
        raise ValueError("give names (small letters, digits, - _), not URLs, as [wecom]; the URLs are settings")
    return value


# A schema's default would be a number of seconds, which no form could send back: each field gives it as text.
Seconds = Annotated[
    int,
    BeforeValidator(_duration_s, json_schema_input_type=str),
    PlainSerializer(lambda seconds: f"{seconds}s", return_type=str),
]
AtLeast = Annotated[int, BeforeValidator(_at_least, json_schema_input_type=int | str), Field(ge=1)]
Word = Annotated[str, AfterValidator(_one_line)]
Names = Annotated[list[Word], BeforeValidator(_listed, json_schema_input_type=list[str] | str)]
BlockName = Annotated[str, AfterValidator(_block_name)]
NoticeName = Annotated[str, AfterValidator(_notice_name)]
Text = Annotated[str, AfterValidator(_plain_text)]
Script = Annotated[
    str,
    BeforeValidator(_lines, json_schema_input_type=str | list[str]),
    AfterValidator(_plain_text),
    Field(max_length=200_000, min_length=1),
]


Envs = Annotated[dict[str, Text], BeforeValidator(_env_texts, json_schema_input_type=dict[str, str | int | float])]
Matrix = Annotated[
    dict[str, list[Text]],
    BeforeValidator(_matrix, json_schema_input_type=dict[str, list[str | int | float]]),
]
Tasks = Annotated[
    list[Envs],
    BeforeValidator(_tasks, json_schema_input_type=int | list[dict[str, str | int | float]]),
]


class Strict(BaseModel):
    """A part of a recipe: nothing unknown, nothing bent into another type, nothing changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, strict=True, allow_inf_nan=False)
