"""What a killed process leaves behind, all of it, as one hash: two kills that leave the same have the same future.

Nothing is drawn anew within `repeatable`, so the hash is of the things themselves: the ledger's rows, the home's files,
both clouds with what falls due there, their machines, the network, the clock.
"""

import functools
import hashlib
import itertools
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fake_server import world as fake_world
from fake_server.autodl_fleet import Fleet
from fake_server.clock import Timeline
from fake_server.faults import Faults
from fake_server.ground import Ground
from gpujobs import host, shell
from tests.crash.machines import SimMachine
from tests.crash.world import SimContainers, World

START_AT = 1_800_000_000.0
_DRAWN = re.compile(r"(?<=pull-)\d+-\w+$|(?<=^\.id_ed25519\.)\d+\.\d+$")  # the end of a draft's name
_IN_DRAFT = re.compile(r"\.pull-/")  # whoever finds a draft removes it, whatever of it was on the disk
_PLAIN = (type(None), bool, int, float, str, bytes, datetime, Enum, type, PurePath, itertools.count)
_LEFT_OUT: Mapping[str, frozenset[str]] = {  # what no rule of a cloud reads
    Ground.__name__: frozenset({"calls", "call_log", "lock", "_lanes"}),  # the lanes are empty between two places
    Timeline.__name__: frozenset({"_changed", "_anchor", "_order", "_thread", "acts"}),
    Faults.__name__: frozenset({"_watchers", "_endpoints", "_now"}),
    fake_world.World.__name__: frozenset({"_ended", "_saver", "_unwatch", "_keeper"}),
    Fleet.__name__: frozenset({"hosts"}),  # they never change
    SimMachine.__name__: frozenset({"time", "on_start", "on_pulled", "network"}),
    SimContainers.__name__: frozenset({"world", "farewells", "graces", "sshd_delays", "farewell_timeouts"}),
}
_NONE: frozenset[str] = frozenset()


class Walk:
    """Writes down all that hangs on an object, in an order of its own; what was met before by its number."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._hash = hashlib.blake2b(digest_size=12)
        self._met: dict[int, int] = {}
        self._kept: list[object] = []  # else another object might get the number of one that is gone

    def digest(self) -> str:
        return self._hash.hexdigest()

    def over(self, found: object) -> None:
        """Go over an object and all that it holds."""
        if isinstance(found, _PLAIN):
            self._say(repr(found))
        elif id(found) in self._met:
            self._say(f"#{self._met[id(found)]}")
        else:
            self._met[id(found)] = len(self._met)
            self._kept.append(found)
            self._inside(found)

    def _inside(self, found: object) -> None:
        match found:
            case Timeline():
                self._timeline(found)
            case dict():
                self._each("{", itertools.chain.from_iterable(found.items()))
            case list() | tuple() | deque():
                self._each("[", found)
            case set() | frozenset():
                self._each("(", sorted(found, key=repr))
            case random.Random():
                self._say(repr(found.getstate()))
            case threading.Event():
                self._say(repr(found.is_set()))
            case _ if callable(found):
                self._act(found)
            case _:
                self._object(found)

    def _act(self, found: Callable[..., object]) -> None:
        """Go over what is due: a function, and what it is about."""
        match found:
            case functools.partial():
                self._each("partial", [found.func, found.args, found.keywords])
            case FunctionType():
                cells = [cell.cell_contents for cell in found.__closure__ or ()]
                self._each(found.__qualname__, [*cells, found.__defaults__, found.__kwdefaults__])
            case MethodType() | BuiltinFunctionType():
                self._each(found.__qualname__, [found.__self__])
            case _:
                self._object(found)

    def _object(self, found: object) -> None:
        kind = type(found)
        if kind.__module__ == "_thread":
            return
        left_out = next((_LEFT_OUT[one.__name__] for one in kind.__mro__ if one.__name__ in _LEFT_OUT), _NONE)
        slots = [name for one in kind.__mro__ for name in getattr(one, "__slots__", ())]
        names = [*getattr(found, "__dict__", ()), *(name for name in slots if hasattr(found, name))]
        for name in names:
            if name not in left_out:
                self._say(name)
                self.over(getattr(found, name))

    def _timeline(self, timeline: Timeline) -> None:
        self.over(timeline.now())
        for due_at, _, action in sorted(timeline._due, key=lambda due: due[:2]):
            self.over(due_at)
            self.over(action)

    def _each(self, what: str, found: Iterable[object]) -> None:
        self._say(what)
        for one in found:
            self.over(one)
        self._say("]")

    def _say(self, text: str) -> None:
        self._hash.update(text.encode(errors="surrogatepass") + b"\0")


def durable(world: World) -> str:
    """Give the hash of all that outlives the process which is at work now."""
    walk = Walk()
    for found in (world.rows(), _files(world), world.machines, world.starts, world.network):
        walk.over(found)
    walk.over(world.clock.monotonic())
    walk.over(world.fake.faults._armed)
    walk.over(world.fake.world)
    return walk.digest()


def _files(world: World) -> list[tuple[str, int, bytes]]:
    """Give the home's files; the ledger's own are told by its rows."""
    found = []
    for path in world.home.rglob("*"):
        if not path.name.startswith("ledger.db"):
            name = "/".join(_DRAWN.sub("", part) for part in path.relative_to(world.home).parts)
            read = path.is_file() and not _IN_DRAFT.search(name)
            found.append((name, path.lstat().st_mode, path.read_bytes() if read else b""))
    return sorted(found)


@contextmanager
def repeatable(world: World) -> Iterator[Callable[[], None]]:
    """Have all that is drawn by lot be the same in each case; call what this gives to begin one."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())  # no two times the same
    drawn = SimpleNamespace(private_bytes=lambda *_: text)
    drivers = itertools.count(1)

    def begin() -> None:
        nonlocal drivers
        drivers = itertools.count(1)
        world.clock._passed_s = 0.0
        world.new()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_world, "time", SimpleNamespace(time=lambda: START_AT))
        patch.setattr(Ground, "password", lambda _: "the same")
        patch.setattr(shell, "Ed25519PrivateKey", SimpleNamespace(generate=lambda: drawn))
        patch.setattr(host, "uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{next(drivers):08d}")))
        yield begin
