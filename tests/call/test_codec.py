"""Results come back whole, by the codec."""

import dataclasses
import io
import math
import subprocess
import sys
from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gpujobs.call_decode import decode
from gpujobs.call_fit import fit
from gpujobs.errors import BadResult
from gpujobs.remote.encode import Encoder, Unfit
from tests.call.coding import Point, decoded, encoded


def there_and_back(value: Any, folder: Path, hint: Any = Any) -> Any:
    return fit(decoded(encoded(value, folder)).value, hint)


# What comes back

VALUES = [
    None,
    True,
    [False, 0, -1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**4000, -(10**4000)],
    [0.1, math.inf, -math.inf, -0.0, 1e-320],
    ["", "ümläut", "\ud800 alone", "a\0b"],
    [b"", b"\0\xff", bytearray(b"ab")],
    (1, (2, ()), [3, []]),
    {1, 2.5, "x", (3, 4)},
    frozenset({frozenset(), frozenset({1})}),
    {"a": {1: "one", (2, "b"): None, None: []}, 2.5: "x"},
    OrderedDict([("z", 1), ("a", 2)]),
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=8))),
    [date(1, 1, 1), time(23, 59, 59, 999999), timedelta(days=-3, microseconds=1)],
    [Path("a/../b"), Path("/x")],
    complex(1, -math.inf),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_equal_and_of_its_type(value: Any, tmp_path: Path) -> None:
    found = there_and_back(value, tmp_path)
    assert found == value
    assert repr(found) == repr(value) if not isinstance(value, list) or 10**4000 not in value else True


def test_not_a_number_stays_one(tmp_path: Path) -> None:
    found = there_and_back({"loss": math.nan, "both": complex(math.nan, 1)}, tmp_path)
    assert math.isnan(found["loss"])
    assert (math.isnan(found["both"].real), found["both"].imag) == (True, 1)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers(), st.text()), inner)
    ),
    max_leaves=20,
)


@given(value=JSON_LIKE)
def test_whatever_is_made_of_these_comes_back(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = (tmp_path_factory.getbasetemp() / "hypothesis").open("w+b")
    with file:
        Encoder(file).put(value)
        file.seek(0)
        assert decode(file).value == value


ARRAYS = [
    np.arange(24, dtype=np.int16).reshape(2, 3, 4),
    np.arange(24.0).reshape(4, 6)[::2, ::-1],
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array([], dtype=np.float32),
    np.array(2.5),
    np.array([1 + 2j, np.nan]),
    np.array(["a", "bcd"]),
    np.array([1, 2], dtype=">i4"),
    np.array(["2026-01-01", "NaT"], dtype="datetime64[D]"),
    np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
    np.zeros((0, 10**9), dtype=np.int8),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_an_array_comes_back_bit_for_bit(array: "np.ndarray[Any, Any]", tmp_path: Path) -> None:
    found = there_and_back({"w": [array, "behind"]}, tmp_path)["w"]
    assert (found[0].dtype, found[0].shape, found[0].tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert found[1] == "behind"


@pytest.mark.parametrize("scalar", [np.float64(0.1), np.float32(2.5), np.int8(-3), np.bool_(1), np.str_("ab")])
def test_a_numpy_scalar_comes_back_as_one(scalar: Any, tmp_path: Path) -> None:
    found = there_and_back(scalar, tmp_path)
    assert (type(found), found) == (type(scalar), scalar)


@dataclasses.dataclass
class Deep(Point):
    """… and one below it."""

    label: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Still:
    """A frozen dataclass."""

    name: str


class Pair(NamedTuple):
    """A named tuple."""

    left: Point
    right: int


class Report(BaseModel):
    """A pydantic model."""

    at: datetime
    points: list[Point]
    inner: "Report | None" = None


A, B = Point(1.0, 2.0), Point(3.0)
A.norm = 5.0
NOW = datetime(2026, 1, 1, tzinfo=UTC)
REPORT = Report(at=NOW, points=[A, B], inner=Report(at=NOW, points=[]))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (A, Point),
        (A, Point | None),
        (Deep(1.0, label="x"), Point),
        ({Still("a"): 1}, dict[Still, int]),
        ({Still("a"), Still("b")}, set[Still]),
        (A, Annotated[Point, "metres"]),
        ([A, B], list[Point]),
        ((A, 1), tuple[Point, int]),
        ((A, B, A), tuple[Point, ...]),
        ({"a": {"b": [A]}}, dict[str, dict[str, list[Point]]]),
        (Pair(A, 3), Pair),
        (REPORT, Report),
        ({1: REPORT}, dict[int, Report | Point]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_are_made_by_the_callers_own_hints(value: Any, hint: Any, tmp_path: Path) -> None:
    found = there_and_back(value, tmp_path, hint)
    assert (type(found), found) == (type(value), value)


def test_an_object_that_no_hint_names_is_refused_by_the_name_of_its_part(tmp_path: Path) -> None:
    with pytest.raises(BadResult, match=r"result\['a'\]\[1\] is a Point, and the function's return type names no such"):
        there_and_back({"a": [1, A]}, tmp_path)
    with pytest.raises(BadResult, match="names no such class"):
        there_and_back(A, tmp_path, Report)


def test_fields_that_a_class_has_not_are_refused(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Other:
        z: int

    Other.__qualname__ = "Point"
    with pytest.raises(BadResult, match="Point has no field z here; is it the same source"):
        there_and_back(Other(1), tmp_path, Point)


class _Layer:
    pass


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (_Layer(), r"^result is a .*_Layer, which cannot come back by itself"),
        ({"model": [1, 2, _Layer()]}, r"^result\['model'\]\[2\] is a .*_Layer"),
        (Pair(Point(_Layer()), 1), r"^result\.left\.x is a .*_Layer"),  # type: ignore[arg-type]
        ({"f": print}, r"^result\['f'\] is a builtins.builtin_function"),
        (np.array([print], dtype=object), r"^result is a numpy array of Python objects"),
        ([1 << 2**24], r"^result\[0\] is an int of more than 1048576 bytes"),
        ({10**5000: print}, r"^result\[…\] is a builtins"),
    ],
)
def test_what_cannot_come_back_is_named_by_its_part(value: Any, part: str, tmp_path: Path) -> None:
    with pytest.raises(Unfit, match=part):
        encoded(value, tmp_path)


def test_what_holds_itself_or_is_too_deep_is_refused_where_it_is_made(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(Unfit, match=r"^result\[0\]\[0\]\[0\] is nested deeper than 100 levels, or holds itself"):
        encoded(loop, tmp_path)


# What it costs


def test_a_large_array_is_never_in_memory_twice(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
import numpy as np
from gpujobs.call_decode import decode
from gpujobs.remote.encode import Encoder
path, verb = Path(sys.argv[1]), sys.argv[2]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with path.open("w+b" if verb == "put" else "rb") as file:
    if verb == "put":
        Encoder(file).put({"w": np.ones(25_000_000)})
    else:
        assert decode(file).value["w"].sum() == 25_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    for verb in ("put", "get"):
        command = [sys.executable, "-c", program, str(tmp_path / "w"), verb]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 1.5 * 200, verb  # MB, of 200
    assert (tmp_path / "w").stat().st_size < 200_001_000


def test_the_encoder_holds_nothing_back() -> None:
    file = io.BytesIO()
    Encoder(file).put({"a": [1, (2, {3})]})
    assert file.getvalue()[:1] == b"d"


# torch, where it is


def test_tensors_and_state_dicts_come_back_as_safetensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="NOT RUN: torch is not installed, so no tensor has come back here")
    pytest.importorskip("safetensors", reason="NOT RUN: safetensors is not installed")
    layer = torch.nn.Linear(3, 2)
    found = there_and_back(
        {"state": layer.state_dict(), "half": torch.arange(4)[::2].half(), "one": layer.bias}, tmp_path
    )
    assert type(found["state"]) is OrderedDict
    assert list(found["state"]) == ["weight", "bias"]
    assert torch.equal(found["state"]["weight"], layer.weight)
    assert (found["half"].dtype, found["half"].tolist()) == (torch.float16, [0.0, 2.0])
    assert torch.equal(found["one"], layer.bias)
