"""YAML into plain values, each with the line it stands on. No tags, no objects, nothing twice, nothing endless."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, Event
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from gpujobs.errors import BadInput

KeyPath = tuple[str | int, ...]

_MOST_VALUES = 20_000  # with every alias written out: a small file must not unfold into a huge one
_DEEPEST = 20
_TAG = "tag:yaml.org,2002:"
_SCALARS = {"null", "bool", "int", "float", "str", "timestamp", "merge", "value"}  # the tags that plain words get
_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*")
_TAB = "cannot start any token"


class Mistakes(BadInput):
    """What is wrong in a text, each with its line (None: nowhere in particular)."""

    def __init__(self, found: list[tuple[int | None, str]]) -> None:
        """Keep the lines beside the words."""
        super().__init__("; ".join(words for _, words in found))
        self.found = found


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A YAML text's value, and the line of each key and item in it, from 1."""

    value: Any
    lines: dict[KeyPath, int]


def parse(text: str, *, is_text: Callable[[KeyPath], bool], at: KeyPath = ()) -> Parsed:
    """Read one YAML document; raises Mistakes. Where `is_text` says so of a path, a number stays as it is written.

    `at` is the path under which the document will stand.
    """
    reading = _Reading(is_text=is_text)
    node = _compose(text)
    value = None if node is None else reading.plain(node, at)
    if reading.mistakes:
        raise Mistakes(reading.mistakes)
    return Parsed(value=value, lines=reading.lines)


def _compose(text: str) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    try:
        _check_size(yaml.parse(StringIO(text)))
        found: Node | None = yaml.compose(StringIO(text))
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Mistakes([(line, "holds a control character; is this a text file?")]) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Mistakes([(mark.line + 1 if mark else None, _in_words(error))]) from error
    except YAMLError as error:
        raise Mistakes([(None, f"is not YAML: {error}")]) from error
    return found


def _check_size(events: Iterable[Event]) -> None:
    """Stop at the first sign of too much: the parser needs minutes for what is nested thousands deep."""
    depth = 0
    for number, event in enumerate(events):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _DEEPEST or number > _MOST_VALUES:
            what = (
                f"is nested deeper than {_DEEPEST} levels"
                if depth > _DEEPEST
                else f"holds more than {_MOST_VALUES} values"
            )
            raise Mistakes([(event.start_mark.line + 1, what)])


def _in_words(error: MarkedYAMLError) -> str:
    problem = str(error.problem or error.context or "").strip()
    if _TAB in problem and "\\t" in problem:
        return "a tab cannot indent YAML; use spaces"
    if _TAB in problem:
        return f"{problem.removeprefix('found ')}; put the value in quotes"
    if "another document" in problem or "single document" in str(error.context):
        return "holds a second document (---); keep one recipe in a file"
    if "mapping values are not allowed" in problem:
        return "has a colon where none can be; indent the line as its neighbours, or put the value in quotes"
    if "undefined alias" in problem:
        return f"{problem.removeprefix('found ')}; put a value that begins with * in quotes"
    context = f" {error.context}" if error.context and error.context != problem else ""
    return f"is not YAML: {problem}{context}; check quotes, colons and indentation"


@dataclass(slots=True, kw_only=True)
class _Reading:
    is_text: Callable[[KeyPath], bool]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    mistakes: list[tuple[int | None, str]] = field(default_factory=list)
    values: int = 0

    def plain(self, node: Node, path: KeyPath) -> Any:
        self.values += 1
        line = node.start_mark.line + 1
        if self.values > _MOST_VALUES:
            raise Mistakes(
                [(line, f"holds more than {_MOST_VALUES} values, counting each alias as what it stands for")]
            )
        if len(path) > _DEEPEST:
            raise Mistakes([(line, f"is nested deeper than {_DEEPEST} levels")])
        tag = str(node.tag)
        if isinstance(node, MappingNode) and tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and tag == _TAG + "seq":
            return [self._item(item, (*path, number)) for number, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and tag.removeprefix(_TAG) in _SCALARS:
            return _scalar(node.value, tag.removeprefix(_TAG), keep=self.is_text(path))
        shown = tag.replace(_TAG, "!!")
        self.mistakes.append((line, f"{shown} is a tag, and tags are not read; write the plain value"))
        return None

    def _item(self, node: Node, path: KeyPath) -> Any:
        self.lines[path] = node.start_mark.line + 1
        return self.plain(node, path)

    def _mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode):
                self.mistakes.append((line, "has a key that is no plain word; put keys in quotes"))
                continue
            key = str(key_node.value)
            if key in found:
                first = self.lines[*path, key]
                self.mistakes.append((line, f"{dotted((*path, key))} stands here and in line {first}; leave one"))
                continue
            self.lines[*path, key] = line
            found[key] = self.plain(value_node, (*path, key))
        return found


def _scalar(text: str, tag: str, *, keep: bool) -> Any:
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if keep or tag not in {"int", "float"}:
        return text
    try:
        digits = text.replace("_", "")
        if tag == "float":
            return float(digits.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return int(digits) if _NUMBER.fullmatch(text) else int(digits, 0)
    except ValueError:
        return text


def dotted(path: KeyPath) -> str:
    """Write a path as a user would: resources.volumes[0].size."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return words.removeprefix(".")
