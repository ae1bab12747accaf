"""A project of a user's whose functions go to the machines of fleets."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

WORK = """
import dataclasses, os, sys, threading, time
from pathlib import Path

@dataclasses.dataclass
class Point:
    x: int
    y: int

class Odd(Exception):
    def __init__(self, number, *, why):
        super().__init__(f"{number} {why}")

def square(x):
    return x * x

def mul(x, y):
    return x * y

def where(x=None):
    return os.environ["GPUJOBS_MACHINE"], os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")

def mirror(x: int) -> Point:
    return Point(x, -x)

def fail(x):
    raise Odd(x, why="is bad")

def die(how):
    os.kill(os.getpid(), 9) if how == "signal" else os._exit(7)

def odd_result():
    return [1, object()]

def size(data):
    return data[::2] if len(data) < 100 else len(data)

def big(size):
    return b"x" * size

def wait_for(name, mark=None):
    if mark:
        Path(mark).touch()
    while not Path(name).exists():
        time.sleep(0.02)
    return name

def touch(name):
    Path(name).touch()

def spoil(text):
    Path(".gpujobs-call/relay.py").write_text(text)

class Holder:
    def __init__(self, number):
        self.number = number

    def plus(self, other):
        return self.number + other
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module of the project."""
    folder = tmp_path_factory.mktemp("proj")
    (folder / ".gpujobsignore").touch()
    (folder / "fleet_work.py").write_text(WORK, encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield importlib.import_module("fleet_work")
    sys.path.remove(str(folder))
    del sys.modules["fleet_work"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this module's."""
    return tmp_path_factory.mktemp("fleet")
