"""What a machine sends for a task's outcome does nothing but come home whole, or fail cleanly."""

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gpujobs.errors import BadResult, TransferFailed, UnsafeArchive
from gpujobs.sweep_home import bring_home, read_metrics


def tar_of(files: Mapping[str, bytes], *, link: str = "") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
    return made.getvalue()


def left(tar: bytes, **changes: Any) -> io.BytesIO:
    record = {
        "code": 0,
        "signal": None,
        "missing": [],
        "trouble": "",
        "size": len(tar),
        "sha256": hashlib.sha256(tar).hexdigest(),
    }
    text = json.dumps({**record, **changes}).encode()
    return io.BytesIO(tar + text + struct.pack(">I", len(text)))


def test_what_comes_replaces_what_stood_there(tmp_path: Path) -> None:
    place = tmp_path / "task-0"
    bring_home(left(tar_of({"old": b"1"})), place)
    record = bring_home(left(tar_of({"output.log": b"hello"}), code=3), place)
    assert (record.code, record.failure) == (3, "the command ended with exit code 3")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {"output.log": b"hello"}
    assert (place.stat().st_mode & 0o777, (place / "output.log").stat().st_mode & 0o777) == (0o700, 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["task-0"]


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (io.BytesIO(b""), BadResult),
        (io.BytesIO(b"rubbish" * 99), BadResult),
        (left(b"", code="0"), BadResult),
        (left(b"", code=-1), BadResult),
        (left(b"", code=True), BadResult),
        (left(b"", missing=3), BadResult),
        (left(tar_of({"a": b"1"}), size=1), BadResult),
        (left(tar_of({"a": b"1"}), size=-1), BadResult),
        (left(tar_of({"a": b"1"}), size=1e999), BadResult),
        (left(tar_of({"a": b"1"}), size=float(len(tar_of({"a": b"1"})))), BadResult),
        (left(tar_of({"a": b"1"}), sha256="0" * 64), TransferFailed),
        (left(tar_of({"a": b"1"})[:512]), TransferFailed),
        (left(tar_of({"../a": b"1"})), UnsafeArchive),
        (left(tar_of({"/tmp/a": b"1"})), UnsafeArchive),
        (left(tar_of({}, link="/etc/passwd")), UnsafeArchive),
    ],
)
def test_what_is_not_as_it_should_be_leaves_nothing(tmp_path: Path, sent: io.BytesIO, error: type[Exception]) -> None:
    with pytest.raises(error):
        bring_home(sent, tmp_path / "task-0")
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_numbers_and_short_texts_alone(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(
        '{"loss": 0.5, "best": true, "note": "fine", "nan": NaN, "inf": 1e999, "huge": 1' + "0" * 400 + ', "list": [1],'
        '"map": {}, "none": null, "long": "' + "x" * 300 + '", "esc\\u001b": 1, "said": "\\u001b[2J"}'
    )
    assert read_metrics(tmp_path) == '{"loss": 0.5, "best": true, "note": "fine"}'


def test_metrics_in_an_output_count_where_there_are_none_beside_it(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "metrics.json").write_text('{"loss": 1}')
    assert read_metrics(tmp_path) == '{"loss": 1}'
    (tmp_path / "metrics.json").write_text('{"loss": 2}')
    assert read_metrics(tmp_path) == '{"loss": 2}'


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"a": ' + '"' + "x" * 70_000 + '"}', "\x80"])
def test_what_is_no_metrics_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_bytes(text.encode("latin-1"))
    assert read_metrics(tmp_path) == "{}"
