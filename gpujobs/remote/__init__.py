"""What is sent to the machine, read from the files beside this one: POSIX sh, and Python 3.6 for calls of functions."""

import base64
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from gpujobs.errors import BadInput

IN_WORKDIR = "./.gpujobs-call"  # on the machine, in the work's folder: what makes calls, or does tasks
MARGIN_S = 600  # on top of everything that the keeper waits for

_BASE = re.compile(r"(?:/|~/)[A-Za-z0-9._/-]+")


@cache
def runner_text() -> str:
    """Read runner.sh; its head is the contract of an attempt's folder."""
    return files(__name__).joinpath("runner.sh").read_text("utf-8")


def call_files() -> Mapping[str, str]:
    """Read what makes a call of a function on the machine: texts by their paths in the call's folder there."""
    names = {"call.py": "call.py", "lib/gpujobs_encode.py": "encode.py", "lib/gpujobs/__init__.py": "standin.py"}
    return {path: files(__name__).joinpath(name).read_text("utf-8") for path, name in names.items()}


def fleet_files() -> Mapping[str, str]:
    """Read what takes tasks on a fleet's machine, besides `call_files`, by their paths in the call's folder there."""
    return {name: files(__name__).joinpath(name).read_text("utf-8") for name in ("foreman.py", "slot.py", "relay.py")}


def cell_files() -> Mapping[str, str]:
    """Read what runs a recipe's tasks on the machine, by paths in the folder there: cell.py in slot.py's place."""
    return {**fleet_files(), "slot.py": files(__name__).joinpath("cell.py").read_text("utf-8")}


def keeper_command(*, base: str, boot_grace_s: int, max_duration_s: int, linger_s: int) -> str:
    """Write the command that keeps a container alive for the attempts under `base`, and ends it when it is not needed.

    The text is words and a pipe, with no quote and no `$`, since AutoDL expands its `cmd` once before running it.

    Args:
        base: the folder on the machine that holds the attempts' folders, or the folder of the one attempt; absolute or
            starting with `~/`.
        boot_grace_s: how long the container waits for an attempt to start; a heartbeat starts the wait anew.
        max_duration_s: how long all the attempts on it may take together.
        linger_s: how long it waits after the last attempt's end for somebody to pull; a heartbeat starts the wait anew.

    Raises:
        BadInput: `base` is not such a path, or a time is negative.
    """
    if not _BASE.fullmatch(base) or ".." in base.split("/"):
        raise BadInput(f"the base folder on the machine must be a plain absolute path, not {base!r}")
    times = {
        "boot_grace_s": boot_grace_s,
        "linger_s": linger_s,
        "hard_limit_s": boot_grace_s + max_duration_s + linger_s + MARGIN_S,
    }
    if min(boot_grace_s, max_duration_s, linger_s) < 0:
        raise BadInput("the keeper's times must not be negative")
    head = [f"base={'$HOME' + base[1:] if base.startswith('~') else base}", *(f"{k}={v:d}" for k, v in times.items())]
    payload = base64.b64encode("\n".join([*head, _without_comments("keeper.sh")]).encode()).decode()
    return f"echo {payload} | base64 -d | sh"


def _without_comments(name: str) -> str:
    lines = files(__name__).joinpath(name).read_text("utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if not line.lstrip().startswith("#"))
