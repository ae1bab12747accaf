"""Secrets that can be found again: made to be changed by every way of writing, and looked for in all of them."""

import base64
import html
import json
import os
import secrets
import shlex
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import quote, quote_plus

_GLANCE_S = 0.03


def new_secret(what: str, ending: str = "+/=%&'\"\\x") -> str:
    """Make a secret that quotes, JSON, HTML and URLs write each in another way."""
    return f"c4nary-{what}-{secrets.token_hex(8)}{ending}"


@cache
def spellings(secret: str) -> frozenset[bytes]:
    """Every way in which a text may be written down that holds the secret."""
    plain = secret.encode()
    texts = {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], json.dumps(json.dumps(secret))[3:-3]}
    texts |= {quote(secret), quote(secret, safe=""), quote_plus(secret), html.escape(secret), shlex.quote(secret)}
    core = secret.split("+", maxsplit=1)[0]  # what no way of quoting changes
    return frozenset(
        {text.encode() for text in texts} | {core.encode(), plain.hex().encode()} | set(_base64(core.encode()))
    )


def _base64(plain: bytes) -> Iterator[bytes]:
    """The middle of the secret's base64, wherever in the encoded text it begins."""
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            middle = encode(b"\0" * before + plain)[4 if before else 0 :]
            yield middle[: (before + len(plain)) // 3 * 4 - (4 if before else 0)]


def holding(data: bytes, named: Mapping[str, str]) -> Sequence[str]:
    """Name the secrets that stand in the data, in whatever spelling."""
    return [name for name, secret in named.items() if any(form in data for form in spellings(secret))]


def leaks(folders: Iterable[Path], named: Mapping[str, str]) -> Sequence[str]:
    """Name every file under the folders that holds a secret, with which one; also in its name."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        data = os.fsencode(path.name)
        if path.is_file() and not path.is_symlink():
            data += b"\n" + path.read_bytes()
        found += [f"{path}: {name}" for name in holding(data, named)]
    return found


class Argv:
    """The command lines of every process of this machine, as `ps` shows them to everybody."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begin to look, many times a second."""
        self._thread.start()

    def stop(self) -> None:
        """Look for the last time."""
        self._over.set()
        self._thread.join()

    def text(self) -> bytes:
        """All that was seen."""
        return b"\n".join(self.seen)

    def _watch(self) -> None:
        known: set[tuple[str, int]] = set()
        while not self._over.wait(_GLANCE_S):
            known = {self._look(pid, known) for pid in os.listdir("/proc") if pid.isdigit()}  # noqa: PTH208

    def _look(self, pid: str, known: set[tuple[str, int]]) -> tuple[str, int]:
        try:
            data = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it has ended
            return (pid, 0)
        mark = (pid, hash(data))
        if mark not in known:
            self.seen.add(data)
        return mark


@contextmanager
def watching_argv() -> Iterator[Argv]:
    """Sample command lines for as long as the block runs."""
    found = Argv()
    found.start()
    try:
        yield found
    finally:
        found.stop()
