"""Which Prefect API the user has chosen, and how to log in to it, without importing Prefect."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

_NAMES = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING")


def login() -> Mapping[str, str]:
    """Give PREFECT_API_URL, _KEY and _AUTH_STRING as the environment, or the active Prefect profile, sets them."""
    profile = _profile()
    values = {name: os.environ.get(name) or profile.get(name, "") for name in _NAMES}
    found = {name: value for name, value in values.items() if value}
    if url := found.get("PREFECT_API_URL"):
        found["PREFECT_API_URL"] = url.rstrip("/")
    return found


def _profile() -> Mapping[str, str]:
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # Prefect itself says what is wrong with it
    chosen = value.get("profiles", {}).get(os.environ.get("PREFECT_PROFILE") or value.get("active", ""), {})
    return {name: str(chosen[name]) for name in _NAMES if chosen.get(name)}
