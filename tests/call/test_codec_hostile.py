"""A machine that lies about its results does nothing but fail cleanly."""

import itertools
import pickle
import random
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpujobs.call_fit import fit
from gpujobs.call_outcome import Ending, Wanted, result_of
from gpujobs.errors import BadResult
from tests.call.coding import Point, decoded, encoded

NOTHING = Wanted(hint=Any, trust_remote=False)
DONE = Ending(state="succeeded", exit_code=0, error="", code=0)


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


@pytest.mark.parametrize("lie", ["an array that is not there", "an array too long", "an array of a negative length"])
def test_no_room_is_made_for_an_array_whose_size_is_a_lie(lie: str, tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(HOSTILE[lie])
    with pytest.raises(BadResult, match=r"does not take the bytes that came|is none that is sent"):
        decoded(tmp_path / "value")


def test_a_result_with_more_values_than_allowed_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpujobs.call_decode.MAX_NODES", 1000)
    path = encoded([[]] * 1000, tmp_path)
    with pytest.raises(BadResult, match="more than 1000 values"):
        decoded(path)


def test_no_prefix_and_no_changed_byte_does_more_than_fail(tmp_path: Path) -> None:
    whole = encoded(
        {"a": [1, 2.5, "x", datetime(2026, 1, 1, tzinfo=UTC), np.arange(4)], "b": {(1, 2): b"y"}, "c": Point(1.0)},
        tmp_path,
    ).read_bytes()
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
