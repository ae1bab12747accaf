"""From the keywords of a decorator to the Recipe of one call; what is wrong is said before anything is rented."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gpujobs.errors import BadInput
from gpujobs.fleet_script import filled, find_python, foreman_script
from gpujobs.recipe import Recipe, Resources
from gpujobs.remote import IN_WORKDIR

OURS = ("python", "trust_remote", "workdir")  # of the keywords, those that are no key of a recipe's
NOT_OURS = {  # keys of a recipe's that a call has no use for, and why
    "run": "the function is what runs",
    "commands": "the function is what runs",
    "schedule": "a decorated function has its schedule by .deploy(cron=…)",
    "matrix": "map() calls it with many arguments",
    "tasks": "map() calls it with many arguments",
    "only_tasks": "map() calls it with many arguments",
    "concurrency": "map() has machines=",
}
OUTCOME = "_outcome"  # the output that brings the function's result home

_CHECK = """\
(
{find_it}[ -z "$gj_python" ] || "$gj_python" {folder}/call.py check
)
"""
_RUN = """\
{find_it}[ -n "$gj_python" ] || gj_refuse {absent}
"$gj_python" -c 'import sys; sys.exit(sys.version_info < (3, 6))' ||
  gj_refuse "the machine's Python is $("$gj_python" -V 2>&1), and a call needs 3.6 or later; name another with python="
gj_ooms() {{
  sed -n 's/^oom_kill //p' {cgroup}/memory.events {cgroup}/memory/memory.oom_control 2>/dev/null | head -n 1
}}
gj_before=$(gj_ooms)
gj_code=0
"$gj_python" {folder}/call.py || gj_code=$?
if [ "$gj_code" -gt 128 ]; then echo "$gj_code ${{gj_before:-0}} $(gj_ooms)" >{folder}/out/killed; fi
exit "$gj_code"
"""

_NOT_OF_A_FLEET = ("outputs", "snapshot", "on_failure", "matrix", "tasks")


class Keys(TypedDict, total=False):
    """What `gpu_job` takes: the keys of a recipe, those under `resources` beside the others, and three of its own."""

    accelerators: str | int | list[str]
    infra: str | list[str]
    image: str | dict[str, str]
    cpus: int | str
    memory: int | str
    cuda: str
    max_price: float
    volumes: list[dict[str, Any]]
    name: str
    workdir: str
    file_mounts: dict[str, str]
    envs: dict[str, Any]
    secrets: list[str]
    credentials: dict[str, str]
    setup: str | list[str]
    outputs: dict[str, str]
    snapshot: dict[str, str]
    max_duration: str
    idle_duration: str
    linger: str
    budget: float
    retry: dict[str, Any]
    on_failure: dict[str, str]
    notify: list[str]
    autodl: dict[str, Any]
    matrixdc: dict[str, Any]
    python: str
    trust_remote: bool


def template(keys: Mapping[str, Any], *, name: str, folder: Path) -> Recipe:
    """Check the keywords and give what all calls have in common; raises BadInput that lists every mistake.

    Args:
        keys: the decorator's.
        name: the function's, from which the runs have theirs unless `name=` says another.
        folder: what local paths are relative to.
    """
    for key in keys:
        if key in NOT_OURS:
            raise BadInput(f"gpu_job: {key}= is of no use, since {NOT_OURS[key]}; leave it out")
    resources = {key: value for key, value in keys.items() if key in Resources.model_fields}
    rest = {key: value for key, value in keys.items() if key not in resources and key not in OURS}
    _check_ours(keys)
    try:
        recipe = Recipe.model_validate({"name": run_name(name), "run": "-", "resources": resources, **rest})
    except ValidationError as error:
        raise BadInput("\n".join(f"gpu_job: {_in_words(one)}" for one in error.errors(include_url=False))) from error
    if OUTCOME in recipe.outputs:
        raise BadInput(f"gpu_job: outputs: {OUTCOME} is the name of the function's own result; choose another")
    mounts = {
        remote: str((folder / Path(local).expanduser()).resolve()) for remote, local in recipe.file_mounts.items()
    }
    return recipe.model_copy(update={"file_mounts": mounts})


def for_call(common: Recipe, *, workdir: str, files: Path, python: str) -> Recipe:
    """Give the recipe of one call, whose files lie in `files`."""
    return common.model_copy(
        update={
            "workdir": workdir,
            "file_mounts": {**common.file_mounts, IN_WORKDIR: str(files)},
            "setup": check_script(python) + (common.setup or ""),
            "run": run_script(python),
            "outputs": {**common.outputs, OUTCOME: f"{IN_WORKDIR}/out"},
        }
    )


def for_fleet(common: Recipe, *, workdir: str, files: Path, python: str) -> Recipe:
    """Give the recipe of a fleet's run, each of whose machines takes tasks; raises BadInput for a key of no use."""
    for key in _NOT_OF_A_FLEET:
        if getattr(common, key) != Recipe.model_fields[key].get_default(call_default_factory=True):
            raise BadInput(f"{key} is of no use in a fleet, whose machines run many tasks; leave it out")
    return common.model_copy(
        update={
            "workdir": workdir,
            "file_mounts": {**common.file_mounts, IN_WORKDIR: str(files)},
            "run": foreman_script(python),
        }
    )


def run_name(name: str) -> str:
    """Make a run's name of a function's."""
    return re.sub(r"[^a-z0-9_.-]+", "-", name.rpartition(".")[2].lower()).lstrip("-_.")[:40] or "call"


def check_script(python: str) -> str:
    """Write what refuses a Python that will not do, before the user's own set-up; one that is yet to come is let be."""
    return _CHECK.format(find_it=find_python(python), folder=IN_WORKDIR)


def run_script(python: str, *, cgroup: str = "/sys/fs/cgroup") -> str:
    """Write what makes the call; `cgroup` is where Linux counts the processes that it ended for their memory."""
    return filled(_RUN, python, cgroup=cgroup)


def _check_ours(keys: Mapping[str, Any]) -> None:
    for key, kind, example in (
        ("python", str, '"python3.10"'),
        ("workdir", str, '"."'),
        ("trust_remote", bool, "True"),
    ):
        value = keys.get(key, kind())
        if type(value) is not kind or (isinstance(value, str) and not value.isprintable()):
            raise BadInput(f"gpu_job: {key}= must be as {key}={example}, not {value!r}")


def _in_words(error: ErrorDetails) -> str:
    from gpujobs.recipe_words import unknown_key, wrong_value  # noqa: PLC0415 - brings the YAML reader

    path = tuple(part for part in error["loc"] if part != "[key]")
    if error["type"] == "missing":
        return 'accelerators= is missing; add accelerators="RTX 4090:1"'
    words = unknown_key(path) if error["type"] == "extra_forbidden" else wrong_value(path, error)
    return words.replace("resources.", "")
