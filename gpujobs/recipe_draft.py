"""A recipe on its way from text to model: plain values, where each was written, and what is wrong with them."""

import difflib
import os
import stat
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gpujobs.errors import BadInput
from gpujobs.recipe import Recipe
from gpujobs.recipe_words import ALIASES, unknown_key, wrong_value
from gpujobs.recipe_yaml import KeyPath, Mistakes, dotted, parse

_MOST_MESSAGES = 5
_FREE_MAPS: list[KeyPath] = [
    ("envs",),
    ("matrix",),
    ("file_mounts",),
    ("outputs",),
    ("resources", "image"),
]  # keys may hold dots
_TEXTS: list[KeyPath] = [("name",), ("workdir",), ("resources", "cuda"), ("snapshot", "name"), ("snapshot", "tag")]
_TEXTS_BELOW: list[KeyPath] = [
    ("envs",),
    ("env",),
    ("matrix",),
    ("tasks",),
    ("outputs",),
    ("resources", "accelerators"),
    ("resources", "gpu"),
]

_Mistake = tuple[KeyPath, str]  # what is wrong, and the path whose place is named


class Draft:
    """A recipe's text, parsed; then overrides; then the model, or everything that is wrong with it."""

    def __init__(self, text: str, name: str) -> None:
        """Parse the text of the file called `name`; raises BadInput."""
        self._name = name
        self._places: dict[KeyPath, int | str] = {}  # a line of the file, or the --set
        try:
            parsed = parse(text, is_text=_is_text)
        except Mistakes as error:
            raise BadInput(_listed([f"{self._written(line)}: {words}" for line, words in error.found])) from error
        if parsed.value is None:
            raise BadInput(f"{name} is empty; gpujobs init writes a recipe to begin with")
        if not isinstance(parsed.value, dict):
            raise BadInput(f"{name}:1: a recipe begins with a line as name: digits; gpujobs init writes one")
        self._value: dict[str, Any] = parsed.value
        self._places.update(parsed.lines)
        self._use_one_name()

    def lay_over(self, override: str) -> None:
        """Lay `KEY=VALUE` over the text; the value is YAML, as in the file. Raises BadInput."""
        key, equals, text = override.partition("=")
        path, place = _path_of(key.strip()), f"--set {key.strip()}"
        if not equals or not all(path):
            raise BadInput(f"--set {override} is not KEY=VALUE; write it as --set envs.LR=0.1")
        try:
            value = parse(text, is_text=_is_text, at=path).value
        except Mistakes as error:
            raise BadInput(f"{place}: {error}") from error
        parent = self._parent(path, place)
        parent[str(path[-1])] = text if value is None else value
        if value is None and not _is_text(path):  # nothing after the sign: as if the key had been left out
            del parent[str(path[-1])]
        self._places = {known: where for known, where in self._places.items() if known[: len(path)] != path}
        for depth in range(1, len(path) + 1):
            self._places.setdefault(path[:depth], place)

    def settled(self, folder: Path) -> Recipe:
        """Give the recipe, its local paths absolute, relative ones under `folder`; BadInput lists all mistakes."""
        try:
            recipe = Recipe.model_validate(self._value)
        except ValidationError as error:
            raise self._refused([self._in_words(detail) for detail in error.errors(include_url=False)]) from error
        return self._with_local_paths(recipe, folder)

    def _use_one_name(self) -> None:
        twice: list[_Mistake] = []
        for alias, name in ALIASES.items():
            parent = self._value if len(alias) == 1 else self._value.get(str(alias[0]))
            if not isinstance(parent, dict) or alias[-1] not in parent:
                continue
            path = (*alias[:-1], name)
            if name in parent:
                twice.append((alias, f"{dotted(alias)} is another name of {dotted(path)}, which stands too; leave one"))
            parent[name] = parent.pop(str(alias[-1]))
            moved = {known: where for known, where in self._places.items() if known[: len(alias)] == alias}
            self._places.update({(*path, *known[len(alias) :]): where for known, where in moved.items()})
        if twice:
            raise self._refused(twice)

    def _parent(self, path: KeyPath, place: str) -> dict[str, Any]:
        here = self._value
        for depth, part in enumerate(path[:-1], start=1):
            if here.get(str(part)) is None:
                here[str(part)] = {}
            here = here[str(part)]
            if not isinstance(here, dict):
                whole = dotted(path[:depth])
                raise BadInput(
                    f"{place}: {whole} is no map here, so it has no parts; set all of it, as --set {whole}=…"
                )
        return here

    def _in_words(self, error: ErrorDetails) -> _Mistake:
        path: KeyPath = tuple(part for part in error["loc"] if part != "[key]")
        if error["type"] == "extra_forbidden":
            return path, unknown_key(path)
        if error["type"] == "missing":
            return path, wrong_value(path, error)
        while path and path not in self._places:  # parts that the model added: one name, read as a list of one
            path = path[:-1]
        words = wrong_value(path, error)
        return self._named(path, words), words

    def _named(self, path: KeyPath, words: str) -> KeyPath:
        """Give the entry of a map that the words begin with, else the path itself."""
        below = [known for known in self._places if known[:-1] == path and f"{dotted(path)}: {known[-1]!r}" in words]
        return below[0] if below else path

    def _refused(self, mistakes: list[_Mistake]) -> BadInput:
        ordered = sorted(
            ((self._place(path), words) for path, words in mistakes), key=lambda found: str(found[0]).zfill(9)
        )
        return BadInput(_listed(list(dict.fromkeys(f"{self._written(place)}: {words}" for place, words in ordered))))

    def _place(self, path: KeyPath) -> int | str:
        while path and path not in self._places:
            path = path[:-1]
        return self._places.get(path, 1)

    def _written(self, place: int | str | None) -> str:
        if place is None:
            return self._name
        return place if isinstance(place, str) else f"{self._name}:{place}"

    def _with_local_paths(self, recipe: Recipe, folder: Path) -> Recipe:
        mistakes: list[_Mistake] = []

        def found(local: str, path: KeyPath, *, only_folders: bool) -> str:
            absolute = Path(os.path.normpath(folder / os.path.expanduser(local)))  # noqa: PTH111 - never raises
            if words := _missing(absolute, local, only_folders=only_folders):
                mistakes.append((path, f"{dotted(path[:1])}: {words}"))
            return str(absolute)

        workdir = found(recipe.workdir, ("workdir",), only_folders=True) if recipe.workdir else ""
        mounts = {
            remote: found(local, ("file_mounts", remote), only_folders=False)
            for remote, local in recipe.file_mounts.items()
        }
        if mistakes:
            raise self._refused(mistakes)
        return recipe.model_copy(update={"workdir": workdir, "file_mounts": mounts})


def _is_text(path: KeyPath) -> bool:
    return path in _TEXTS or any(path[: len(top)] == top for top in _TEXTS_BELOW)


def _path_of(key: str) -> KeyPath:
    path: KeyPath = tuple(key.split("."))
    for alias, name in ALIASES.items():
        if path[: len(alias)] == alias:
            path = (*alias[:-1], name, *path[len(alias) :])
    for free in _FREE_MAPS:
        if path[: len(free)] == free and len(path) > len(free):
            return (*free, ".".join(str(part) for part in path[len(free) :]))
    return path


def _missing(absolute: Path, given: str, *, only_folders: bool) -> str | None:
    """Say what is wrong with a local file or folder; None when it can be sent."""
    if not str(absolute).isprintable():
        return f"{str(absolute)!r} holds a character that cannot be printed; rename it"
    try:
        mode = absolute.stat().st_mode
    except OSError:
        return f"{given} does not exist (looked for {absolute}){_alike(absolute)}"
    if only_folders and not stat.S_ISDIR(mode):
        return f"{given} is a file; name its folder"
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return f"{given} is neither a file nor a folder; name one"
    return None if os.access(absolute, os.R_OK) else f"{given} cannot be read by you; check its permissions"


def _alike(absent: Path) -> str:
    try:
        near = difflib.get_close_matches(absent.name, os.listdir(absent.parent), n=1)  # noqa: PTH208 - names alone
    except OSError:
        return "; make it, or mend the path"
    return f"; did you mean {near[0]}?" if near else "; make it, or mend the path"


def _listed(lines: list[str]) -> str:
    more = [f"… and {len(lines) - _MOST_MESSAGES} more"] if len(lines) > _MOST_MESSAGES else []
    return "\n".join([*lines[:_MOST_MESSAGES], *more])
