"""What a machine's shell takes as an environment variable: told of before anything is rented."""

import re
from collections.abc import Mapping

ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ENV_VALUE_BYTES = 120_000  # Linux takes 128 KiB for one variable with its name
ENV_TOTAL_BYTES = 1_000_000  # and 2 MiB for all, with those that the machine has itself
READ_ONLY_NAMES = frozenset({"BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID", "_"})


def flaw_of(name: str, value: str = "") -> str:
    """Say what keeps a variable from being set, "" where nothing does; the value is not in the text."""
    if not ENV_NAME.fullmatch(name):
        return f"{name!r} is not a name of an environment variable"
    if name in READ_ONLY_NAMES:
        return f"{name!r} cannot be set, for the shell sets it itself; choose another name"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return f"the value of {name} holds bytes that are no text; write it in UTF-8"
    if "\0" in value:
        return f"the value of {name} holds a NUL character, which no variable can"
    if size > ENV_VALUE_BYTES:
        return f"the value of {name} has {size} bytes, over the {ENV_VALUE_BYTES} that a variable can hold; use a file"
    return ""


def flaw_of_all(values: Mapping[str, str]) -> str:
    """Say what keeps these variables from being set together, "" where nothing does."""
    flaw = next(filter(None, (flaw_of(name, value) for name, value in values.items())), "")
    size = 0 if flaw else sum(len(name.encode()) + len(value.encode()) + 2 for name, value in values.items())
    if size > ENV_TOTAL_BYTES:
        return (
            f"all variables together have {size} bytes, over the {ENV_TOTAL_BYTES} that a command can have; use a file"
        )
    return flaw
