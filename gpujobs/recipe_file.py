"""A recipe from a YAML file, with `--set` laid over it. Every mistake names its file, its line and the remedy."""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpujobs.errors import BadInput
from gpujobs.recipe import Recipe
from gpujobs.recipe_draft import Draft
from gpujobs.recipe_words import ALIASES

_MOST_BYTES = 256 * 1024  # YAML is read slowly: so much takes seconds at worst

INIT_TEXT = """\
# A recipe: what to run on a rented GPU. See the offers and the cost, renting nothing: gpujobs plan recipe.yaml
name: my-job
resources:
  # infra: [autodl/westDC2, matrixdc]   # backend or backend/region, in order; left out: every one you have a token for
  accelerators: RTX 4090:1              # NAME:COUNT; a list means any of these, the cheapest that fits first
  # cpus: 4+
  # memory: 16+                         # GB
  # cuda: "11.8+"
  # image: base-image-l2t43iu6uk        # a provider's image, or snapshot:NAME for one that you saved
  max_price: 4.0                        # CNY per hour: never rent above it

workdir: .                              # this folder goes up; .gitignore and .gpujobsignore are honoured
# file_mounts: {/root/data/train.csv: ./train.csv}
envs: {LR: "1e-3"}
# secrets: [HF_TOKEN]                   # names alone; the values come from your environment

# setup: pip install -r requirements.txt
run: |
  nvidia-smi
  mkdir -p results
  echo "lr=$LR" > results/hello.txt

outputs: {results: results}             # local name: path on the machine; pulled on failure too
max_duration: 1h                        # the work is stopped after it
# idle_duration: 15m                    # … or when no GPU was used over 5 % for so long
# budget: 10                            # CNY for the whole run, retries included
# retry: {attempts: 3, wait: 2h}        # wait: how long to look for a free card
# schedule: {cron: "0 2 * * *"}         # for gpujobs deploy: each night at two, Asia/Shanghai
# for many tasks in one run: matrix: {SEED: [1, 2, 3]}, and concurrency: 2, machines at a time
# snapshot: {name: my-env, on: success} # MatrixDC: save the disk as an image when the work is done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecipe:
    """A recipe with where it came from; its local paths are absolute."""

    recipe: Recipe
    path: str  # as it was given; "-" for standard input
    folder: Path  # what its local paths are relative to


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe ("-": standard input) with `KEY=VALUE` laid over it; raises BadInput that lists what is wrong."""
    given = str(path)
    name = "standard input" if given == "-" else given
    draft = Draft(_text(given, name), name)
    for override in overrides:
        draft.lay_over(override)
    folder = (Path.cwd() if given == "-" else Path(given).parent).absolute()
    return LoadedRecipe(recipe=draft.settled(folder), path=given, folder=folder)


def schema() -> dict[str, Any]:
    """Give the recipe's JSON schema, for editors; the other names that keys may have are in it too."""
    whole = Recipe.model_json_schema()
    for alias, name in ALIASES.items():
        model = whole if len(alias) == 1 else whole["$defs"]["Resources"]
        model["properties"][alias[-1]] = model["properties"][name]
        if name in model["required"]:
            model["required"].remove(name)
            model.setdefault("allOf", []).append({"oneOf": [{"required": [name]}, {"required": [alias[-1]]}]})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | whole


def _text(given: str, name: str) -> str:
    raw = _bytes(given)
    if len(raw) > _MOST_BYTES:
        raise BadInput(f"{name} is larger than {_MOST_BYTES // 1024} KB: that is no recipe; name another file")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = f"{raw[error.start]:#04x}"
        raise BadInput(f"{name}:{line}: byte {byte} is not UTF-8; is it a text file? Save it as UTF-8") from error


def _bytes(given: str) -> bytes:
    if given == "-":
        return _first(sys.stdin.buffer)
    path = Path(given)
    try:
        with path.open("rb") as file:
            return _first(file)
    except FileNotFoundError as error:
        raise BadInput(f"{given} does not exist; {_nearby(path.parent, path.name)}") from error
    except IsADirectoryError as error:
        raise BadInput(f"{given} is a folder; {_nearby(path, '')}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"{given!r} cannot be read: {reason}; name a recipe that you can read") from error


def _first(file: BinaryIO) -> bytes:
    return file.read(_MOST_BYTES + 1)


def _nearby(folder: Path, name: str) -> str:
    """Name recipes in a folder, those alike first."""
    try:
        names = sorted(found.name for found in folder.iterdir() if found.suffix in {".yaml", ".yml"})
    except OSError:
        return f"nor can its folder {folder} be read; check the path"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:3]
    shown = " or ".join(str(folder / name) for name in near)
    return f"did you mean {shown}?" if near else "gpujobs init writes a recipe to begin with"
