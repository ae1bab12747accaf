"""Results come back whole, by the codec; and a machine that lies about them does nothing but fail cleanly."""

import dataclasses
import io
import itertools
import math
import pickle
import random
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gpujobs.call_decode import Decoded, decode
from gpujobs.call_error import rebuild
from gpujobs.call_fit import fit
from gpujobs.call_outcome import Ending, Wanted, result_of
from gpujobs.errors import BadResult, RemoteError
from gpujobs.remote.encode import Encoder, Unfit

NOTHING = Wanted(hint=Any, trust_remote=False)
DONE = Ending(state="succeeded", exit_code=0, error="", code=0)


def encoded(value: Any, folder: Path) -> Path:
    path = folder / "value"
    with path.open("w+b") as file:
        Encoder(file).put(value)
    return path


def decoded(path: Path) -> Decoded:
    with path.open("rb") as file:
        return decode(file)


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
class Point:
    """A dataclass."""

    x: float
    y: float = 0.0
    norm: float = dataclasses.field(init=False, default=0.0)


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


# A machine that lies


def size(number: int) -> bytes:
    return struct.pack("<Q", number)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"A" + size(10 + len(text) + len(data)) + b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def many_of_one_hash() -> bytes:
    keys = [(2**61 - 1) * number for number in range(1, 200)]
    return b"e" + size(len(keys)) + b"".join(b"I" + size(16) + key.to_bytes(16, "little") for key in keys)


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "unknown letter": b"?",
    "a pickle": pickle.dumps({"a": 1}),
    "truncated int": b"i\0\0",
    "truncated text": b"s" + size(10) + b"abc",
    "bytes that are not there": b"b" + size(2**62),
    "items that are not there": b"l" + size(2**63 - 1) + b"N",
    "pairs that are not there": b"d" + size(2**64 - 1),
    "fields that are not there": b"O" + size(1) + b"C" + size(2**40),
    "a field without a name": b"O" + size(1) + b"C" + size(1) + b"NN",
    "more than one value": b"NN",
    "no UTF-8": b"s" + size(1) + b"\xff",
    "deep lists": (b"l" + size(1)) * 100_000 + b"N",
    "deep tuples of dicts": (b"t" + size(1) + b"d" + size(1) + b"N") * 5000 + b"N",
    "a key that cannot be one": b"d" + size(1) + b"l" + size(0) + b"N",
    "a set of lists": b"e" + size(1) + b"l" + size(0),
    "an int of two megabytes": b"I" + size(2**21) + bytes(2**21),
    "a date that is none": b"D" + size(3) + b"now",
    "a year 100000": b"Y" + size(10) + b"99999-1-01",
    "a timedelta beyond": b"E" + struct.pack("<qqq", 2**62, 0, 0),
    "keys of one hash": many_of_one_hash(),
    "an array that is not there": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
    "an array too long": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes(800)),
    "an array of a negative length": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1), }", bytes(8)),
    "an array of objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps([1])),
    "an array of nothing": npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,), }"),
    "an array with code for a header": npy("__import__('os').system('touch hacked')"),
    "an array with a deep header": npy("(" * 9000),
    "a npy of version 9": b"A" + size(10) + b"\x93NUMPY\x09\x00\x00\x00",
    "a frame that ends early": b"A" + size(4) + b"\x93NUM",
    "a tensor": b"K" + size(4) + b"abcd",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_result_fails_cleanly(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outcome").write_bytes(b"gpujobs call 1 value\n" + data)
    with pytest.raises(BadResult):
        result_of(tmp_path, DONE, NOTHING)
    assert not (tmp_path / "hacked").exists()


def test_a_result_with_more_values_than_allowed_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpujobs.call_decode.MAX_NODES", 1000)
    path = encoded([[]] * 1000, tmp_path)
    with pytest.raises(BadResult, match="more than 1000 values"):
        decoded(path)


def test_no_prefix_and_no_changed_byte_does_more_than_fail(tmp_path: Path) -> None:
    whole = encoded({"a": [1, 2.5, "x", NOW, np.arange(4)], "b": {(1, 2): b"y"}, "c": A}, tmp_path).read_bytes()
    dice = random.Random(4)
    cut = [whole[:length] for length in range(len(whole))]
    changed = []
    for _ in range(3000):
        data = bytearray(whole)
        data[dice.randrange(len(data))] = dice.randrange(256)
        changed.append(bytes(data))
    path = tmp_path / "broken"
    refused = 0
    for data in itertools.chain(cut, changed):
        path.write_bytes(data)
        try:
            fit(decoded(path).value, dict[str, Any])
        except BadResult:
            refused += 1
    assert refused >= len(cut)


class _Trap:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (Path("hacked"),)


def test_a_pickle_is_not_read_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outcome").write_bytes(b"gpujobs call 1 pickle\n" + pickle.dumps(_Trap()))
    with pytest.raises(BadResult, match="is no value, but b'pickle'"):
        result_of(tmp_path, DONE, NOTHING)
    assert not (tmp_path / "hacked").exists()
    result_of(tmp_path, DONE, Wanted(hint=Any, trust_remote=True))
    assert (tmp_path / "hacked").exists()


@pytest.mark.parametrize("head", [b"", b"gpujobs call 1 \n", b"gpujobs call 1 error\nN", b"x" * 10_000])
def test_an_outcome_of_another_kind_is_no_value(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "outcome").write_bytes(head)
    with pytest.raises(BadResult):
        result_of(tmp_path, DONE, NOTHING)


# Exceptions


def record(**changes: Any) -> dict[str, Any]:
    usual = {"module": "builtins", "name": "ValueError", "text": "t", "traceback": "tb", "whole": True}
    return {**usual, "args": ["a", 1], "state": {}, **changes}


class Custom(Exception):
    """One whose arguments are not those of its `__init__`."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code


class Eager(Exception):
    """One that does something when it is made."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        Path(path).touch()


def test_builtin_exceptions_come_back_as_themselves_with_the_traceback_as_a_note() -> None:
    error = rebuild(record(traceback="line 1\n\x1b]0;title\x07line 2"))
    assert (type(error), error.args) == (ValueError, ("a", 1))
    assert error.__notes__ == ["Traceback on the machine:\n\nline 1\nline 2"]
    missing = rebuild(record(name="FileNotFoundError", args=[2, "No such file", "x.txt"]))
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, missing.filename) == (2, "x.txt")


def test_a_class_of_the_callers_comes_back_with_its_attributes_and_without_its_init() -> None:
    error = rebuild(record(module=__name__, name="Custom", args=["7: no"], state={"code": 7}))
    assert isinstance(error, Custom)
    assert (error.args, error.code) == (("7: no",), 7)


def test_no_init_is_called_with_what_a_machine_says(tmp_path: Path) -> None:
    error = rebuild(record(module=__name__, name="Eager", args=[str(tmp_path / "made")]))
    assert isinstance(error, Eager)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"module": "no_such_module", "name": "X"},
        {"module": "antigravity", "name": "X"},
        {"name": "SystemExit"},
        {"name": "KeyboardInterrupt"},
        {"name": "ExceptionGroup", "args": ["x", []]},
        {"name": "eval", "args": ["1/0"]},
        {"module": "subprocess", "name": "Popen", "args": ["touch hacked"]},
        {"module": "os", "name": "path.join"},
        {"whole": False},
        {"name": "UnicodeDecodeError", "args": [1]},
        {"args": "no list"},
        {"state": []},
    ],
    ids=str,
)
def test_all_else_is_a_remote_error(changes: dict[str, Any]) -> None:
    error = rebuild(record(**changes))
    assert isinstance(error, RemoteError)
    assert "tb" in error.__notes__[0]
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("wrong", [None, [], {}, record(text=1), record(module=[])], ids=str)
def test_a_record_that_is_none_is_a_bad_result(wrong: Any) -> None:
    with pytest.raises(BadResult):
        rebuild(wrong)


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
