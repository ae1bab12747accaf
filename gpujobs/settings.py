"""Settings: the environment, then `~/.config/gpujobs/config.toml`, then the blocks that a Prefect server keeps."""

import getpass
import logging
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from gpujobs.crash import Point
from gpujobs.errors import BadInput

DEFAULT_BLOCK = "gpujobs"  # the credential block that counts where neither a token nor a recipe says another
_log = logging.getLogger(__name__)
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """How to reach one provider; an empty token means that it is not set up."""

    api_url: str = ""  # empty: the provider's own address
    token: str = field(default="", repr=False)
    namespace: str = ""  # the user's id, where the provider wants it beside the token
    price_scale: float = 1.0  # CNY per hour for 1 of the provider's price unit, where the provider does not state it


class Blocks(Protocol):
    """The blocks of a Prefect server. Each method raises Unavailable, or BadCredentials, where it cannot be asked."""

    @property
    def place(self) -> str:
        """The server's address; empty where none is known, and all is as if it kept nothing."""
        ...

    def accounts(self, backend: str, *, having: str = "") -> Mapping[str, Mapping[str, Any]]:
        """Give the values of every credential block for `backend`, by name; `having` may be a moment old."""
        ...

    def secret(self, name: str) -> str:
        """Give the value of the Secret block for the variable `name`, "" where there is none."""
        ...

    def notice_url(self, name: str) -> str:
        """Give the Apprise URL of the notification block `name`, "" where there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that is not in a recipe."""

    home: Path
    database_url: str
    owner: str
    store: str = field(default="", repr=False)  # an fsspec URL that all hosts share; empty: each keeps its own files
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    blocks: Blocks | None = field(default=None, repr=False, compare=False)

    @property
    def runs(self) -> Path:
        """The folder that holds a folder for each run."""
        return self.home / "runs"

    def account(self, backend: str, block: str = "") -> Account:
        """Give the account with a provider; its token is empty where there is none.

        With `block`, the Prefect block of that name. Else BACKEND_TOKEN, _API_URL, _NAMESPACE and [backend] of the
        file; where these give no token, the block `gpujobs`. An account is one or the other, never a mixture: a token
        goes to no address that was not meant for it. On the fake cloud the environment alone counts.

        Raises BadInput where `block` is not to be had, Unavailable where the server that may keep it does not answer.
        """
        own = _account(backend, self.config)
        if is_fake() or (own.token and not block):
            return own
        kept = self.blocks.accounts(backend, having=block) if self.blocks else {}
        name = block or DEFAULT_BLOCK
        if name in kept:
            return _account_of_block(backend, name, kept[name])
        if block:
            raise BadInput(f"credentials.{backend}: {self._no_block(f'{backend}-credentials', block)}")
        return own

    def accounts(self, backend: str) -> Sequence[Account]:
        """Give every account with a provider that is known here, each once; broken blocks are left out.

        Raises Unavailable where the server that may keep some does not answer.
        """
        own = _account(backend, self.config)
        kept = {} if is_fake() or self.blocks is None else self.blocks.accounts(backend)
        found = [own]
        for name, values in kept.items():
            try:
                found.append(_account_of_block(backend, name, values))
            except BadInput as error:
                _log.warning("left out: %s", error)
        return list(dict.fromkeys(account for account in found if account.token))

    def secret(self, name: str) -> str:
        """Give the value of a recipe's secret; raises BadInput where it is nowhere, Unavailable as `account` does."""
        value = os.environ.get(name) or _text(_table(self.config, "secrets"), name)
        if value := value or (self.blocks.secret(name) if self.blocks else ""):
            return value
        where = f"set it in the environment, or under [secrets] in {_config()}"
        raise BadInput(f"secret {name} has no value; {where}; {self._no_block('secret', block_name(name))}")

    def notice_url(self, name: str) -> str:
        """Give the Apprise URL for a name under a recipe's `notify`; raises as `secret` does."""
        variable = notice_variable(name)
        value = os.environ.get(variable) or _text(_table(self.config, "notify"), name)
        if value := value or (self.blocks.notice_url(name) if self.blocks else ""):
            return value
        where = f"set {variable}, or {name} under [notify] in {_config()}, to an Apprise URL"
        raise BadInput(f"notify: {name} has no URL; {where}; {self._no_block('gpujobs-notification', name)}")

    def _no_block(self, kind: str, name: str) -> str:
        if self.blocks is None or not self.blocks.place:
            return (
                f"a Prefect block {kind}/{name} cannot be read, for no server is known: gpujobs up, or PREFECT_API_URL"
            )
        return f"the Prefect server at {self.blocks.place} has no block {kind}/{name}"


def load() -> Settings:
    """Read the settings; raises BadInput that names the variable or the line to mend.

    Makes the home, 0700, which never goes up to a machine with a workdir that it lies in.
    """
    path = _config()
    config = _read(path)
    home = Path(os.environ.get("GPUJOBS_HOME") or _text(config, "home") or _default_home()).expanduser()
    _keep_here(private_folder(home))
    return Settings(
        home=home,
        database_url=os.environ.get("GPUJOBS_DATABASE_URL")
        or _text(config, "database_url")
        or f"sqlite:///{home.absolute()}/ledger.db",
        owner=_owner(os.environ.get("GPUJOBS_OWNER") or _text(config, "owner")),
        store=os.environ.get("GPUJOBS_STORE") or _text(config, "store"),
        config=config,
    )


def is_fake() -> bool:
    """Say whether this process sees a fake cloud alone (`--fake`): then no block's account counts."""
    return bool(os.environ.get("GPUJOBS_FAKE"))


def block_name(variable: str) -> str:
    """Give the name of the Secret block for an environment variable: hf-token for HF_TOKEN."""
    return variable.lower().replace("_", "-")


def notice_variable(name: str) -> str:
    """Give the environment variable for a name under `notify`: GPUJOBS_NOTIFY_TEAM for team."""
    return f"GPUJOBS_NOTIFY_{name.upper().replace('-', '_')}"


def private_folder(path: Path) -> Path:
    """Make a folder that only we can read (0700), and so each of its parents that is missing; return it."""
    missing = [folder for folder in path.parents if not folder.exists()]
    with Point("file", "make folder", path.name):
        for folder in (*reversed(missing), path):
            folder.mkdir(mode=0o700, exist_ok=True)
    return path


def _keep_here(home: Path) -> None:
    """Have a folder ignored by whoever sends up one that it lies in: keys and the ledger stay on this computer."""
    ignore = home / ".gpujobsignore"
    if not ignore.exists():
        with open(ignore, "w", opener=private_opener, encoding="utf-8") as file:
            file.write("*\n")


def private_opener(path: str, flags: int) -> int:
    """Be the opener of `open(path, mode, opener=private_opener)`: the file is 0600 from its first moment."""
    with Point("file", "open", path.rpartition("/")[2]):
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


def _account_of_block(backend: str, name: str, values: Mapping[str, Any]) -> Account:
    where = f"block {backend}-credentials/{name}:"
    token, namespace, api_url = (str(values.get(key) or "") for key in ("token", "namespace", "api_url"))
    if not token:
        raise BadInput(f"{where} it has no token; give it one in Prefect's UI, under Blocks")
    return Account(
        api_url=_checked_url(f"{where} its address", api_url),
        token=_checked_token(f"{where} its token", token),
        namespace=_checked_token(f"{where} its namespace", namespace),
        price_scale=_scale(values.get("price_scale") or 1.0),
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
