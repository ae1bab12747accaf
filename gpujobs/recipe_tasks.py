"""What a recipe's tasks must not be; `known` is what stands before them in the recipe. All raise ValueError."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gpujobs.recipe_types import MAX_TASKS
from gpujobs.variables import flaw_of, flaw_of_all


def check_matrix(value: dict[str, list[str]], known: Mapping[str, Any]) -> dict[str, list[str]]:
    """Refuse a matrix that is too large, or says of a variable what another part says too."""
    for name, items in value.items():
        if name in known.get("envs", {}):
            raise ValueError(f"{name!r} stands in both envs and matrix; leave it in one")
        if len(set(items)) < len(items):
            raise ValueError(f"{name!r} has a value twice; name each once")
        for item in items:
            _check_variables({name: item}, known)
    if (count := _count(value)) > MAX_TASKS:
        raise ValueError(f"it makes {count} tasks, and a run has {MAX_TASKS} at the most; make several recipes of it")
    if value:
        _check_rest(known)
    return value


def check_tasks(value: list[dict[str, str]], known: Mapping[str, Any]) -> list[dict[str, str]]:
    """Refuse tasks beside a matrix, and more than there may be."""
    if value and known.get("matrix"):
        raise ValueError("matrix says already what the tasks are; leave one of the two out")
    if len(value) > MAX_TASKS:
        raise ValueError(f"there are {len(value)}, and a run has {MAX_TASKS} at the most; make several recipes of it")
    for one in value:
        _check_variables(one, known)
    if value:
        _check_rest(known)
    return value


def check_only(value: list[int], known: Mapping[str, Any]) -> list[int]:
    """Refuse an index of no task; gives them in order, each once."""
    matrix = known.get("matrix")
    count = _count(matrix) if matrix else len(known.get("tasks", []))
    if beyond := [number for number in value if number >= count]:
        raise ValueError(f"there is no task {beyond[0]}; there are {count}, counted from 0")
    return sorted(set(value))


def check_env_name(name: str) -> None:
    """Refuse what is no name of a variable, or is one of ours."""
    if flaw := flaw_of(name):
        raise ValueError(flaw)
    if name.startswith("GPUJOBS_"):
        raise ValueError(f"{name!r}: names that begin with GPUJOBS_ are set by gpujobs")


def _count(matrix: Mapping[str, Sequence[str]]) -> int:
    return math.prod(map(len, matrix.values()))


def _check_variables(values: Mapping[str, str], known: Mapping[str, Any]) -> None:
    for name in values:
        check_env_name(name)
        if name in known.get("secrets", []):
            raise ValueError(f"{name!r} stands in secrets too; leave it in one")
    if flaw := flaw_of_all({**known.get("envs", {}), **values}):
        raise ValueError(flaw)


def _check_rest(known: Mapping[str, Any]) -> None:
    """Refuse what is of no use where many tasks share machines."""
    for remote in known.get("outputs", {}).values():
        if remote.startswith(("/", "~")) or ".." in remote.split("/"):
            raise ValueError(
                f"tasks share machines, so the output {remote} might be another's; let it be in the workdir"
            )
    if known.get("snapshot"):
        raise ValueError("a snapshot is of one job's machine, and these share theirs; leave one of the two out")
    if getattr(known.get("on_failure"), "keep", 0):
        raise ValueError("on_failure.keep is for one job's machine, and these share theirs; leave one of the two out")
