"""Settings: the environment, then `~/.config/gpujobs/config.toml`. Prefect blocks are laid over them by the flow."""

import getpass
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpujobs.errors import BadInput

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """How to reach one provider; an empty token means that it is not set up."""

    api_url: str = ""  # empty: the provider's own address
    token: str = field(default="", repr=False)
    namespace: str = ""  # the user's id, where the provider wants it beside the token
    price_scale: float = 1.0  # CNY per hour for 1 of the provider's price unit, where the provider does not state it


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that is not in a recipe."""

    home: Path
    database_url: str
    owner: str
    store: str = field(default="", repr=False)  # an fsspec URL that all hosts share; empty: each keeps its own files
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    accounts: Mapping[str, Account] = field(default_factory=dict)  # laid over the environment: from Prefect blocks

    @property
    def runs(self) -> Path:
        """The folder that holds a folder for each run."""
        return self.home / "runs"

    def account(self, backend: str) -> Account:
        """Read the account with a provider: BACKEND_TOKEN, _API_URL, _NAMESPACE, then [backend] of the file."""
        return self.accounts.get(backend) or _account(backend, self.config)

    def secret(self, name: str) -> str:
        """Give the value of a recipe's secret; raises BadInput where it is nowhere."""
        value = os.environ.get(name) or _text(_table(self.config, "secrets"), name)
        if not value:
            raise BadInput(f"secret {name} has no value; set it in the environment, or under [secrets] in {_config()}")
        return value


def load() -> Settings:
    """Read the settings; raises BadInput that names the variable or the line to mend. Makes the home, 0700."""
    path = _config()
    config = _read(path)
    home = Path(os.environ.get("GPUJOBS_HOME") or _text(config, "home") or _default_home()).expanduser()
    private_folder(home)
    return Settings(
        home=home,
        database_url=os.environ.get("GPUJOBS_DATABASE_URL")
        or _text(config, "database_url")
        or f"sqlite:///{home.absolute()}/ledger.db",
        owner=_owner(os.environ.get("GPUJOBS_OWNER") or _text(config, "owner")),
        store=os.environ.get("GPUJOBS_STORE") or _text(config, "store"),
        config=config,
    )


def private_folder(path: Path) -> Path:
    """Make a folder that only we can read (0700), and its parents as they usually are; return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def private_opener(path: str, flags: int) -> int:
    """Be the opener of `open(path, mode, opener=private_opener)`: the file is 0600 from its first moment."""
    return os.open(path, flags, 0o600)


def _config() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "gpujobs" / "config.toml"


def _default_home() -> str:
    return str(Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "gpujobs")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise BadInput(f"{path} can be read by others and may hold tokens; run: chmod 600 {path}")
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: {error}; mend the file or remove it") from error


def _table(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name, {})
    if not isinstance(value, dict):
        raise BadInput(f"{_config()}: [{name}] must be a table")
    return value


def _text(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name, "")
    if not isinstance(value, str):
        raise BadInput(f"{_config()}: {name} must be text in quotes")
    return value


def _account(name: str, config: Mapping[str, Any]) -> Account:
    table, prefix = _table(config, name), name.upper()

    def value(key: str) -> str:
        return os.environ.get(f"{prefix}_{key.upper()}") or _text(table, key)

    return Account(
        api_url=_checked_url(f"{prefix}_API_URL", value("api_url")),
        token=_checked_token(f"{prefix}_TOKEN", value("token")),
        namespace=_checked_token(f"{prefix}_NAMESPACE", value("namespace")),
        price_scale=_scale(table.get("price_scale", 1.0)),
    )


def _scale(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise BadInput(f"{_config()}: price_scale must be a number above 0 (CNY per hour for a price of 1)")
    return float(value)


def _checked_token(name: str, token: str) -> str:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise BadInput(f"{name} holds a character that no token has (a space or a line end?); copy it again")
    return token


def _checked_url(name: str, url: str) -> str:
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise BadInput(f"{name} is not a URL ({error}); it looks like https://host/path") from error
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not safe or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise BadInput(f"{name} must be a plain https URL, or http on this machine (127.0.0.1)")
    return url.rstrip("/")


def _owner(given: str) -> str:
    if given:
        if not re.fullmatch(r"[a-z0-9]{1,16}", given):
            raise BadInput(f"GPUJOBS_OWNER={given} must be 1 to 16 small letters and digits")
        return given
    return re.sub(r"[^a-z0-9]", "", getpass.getuser().lower())[:16] or "user"
