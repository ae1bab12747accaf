"""Values there and back, for the tests of the codec."""

import dataclasses
from pathlib import Path
from typing import Any

from gpujobs.call_decode import Decoded, decode
from gpujobs.remote.encode import Encoder


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: float
    y: float = 0.0
    norm: float = dataclasses.field(init=False, default=0.0)


def encoded(value: Any, folder: Path) -> Path:
    path = folder / "value"
    with path.open("w+b") as file:
        Encoder(file).put(value)
    return path


def decoded(path: Path) -> Decoded:
    with path.open("rb") as file:
        return decode(file)
