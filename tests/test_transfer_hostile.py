"""A machine that lies writes nothing here, and what it sent is refused by name."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpujobs.errors import TransferFailed, UnsafeArchive
from gpujobs.models import Access
from gpujobs.shell import Shell, connect
from gpujobs.transfer import Limits, pull
from gpujobs.transfer_unpack import Unpacker
from tests.folders import alone, contents
from tests.sshd.machines import skip_without_sshd
from tests.sshd.openssh import OpenSsh

pytest_plugins = ("tests.sshd.fixtures",)

# Machines that lie


LYING_TAR = """#!/bin/sh
case $1 in --version) echo lying tar; exit 0 ;; esac
cat {archive}
"""


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, Path]]:
    skip_without_sshd()
    folder = tmp_path_factory.mktemp("liar")
    (folder / "bin").mkdir()
    (folder / "bin" / "tar").write_text(LYING_TAR.format(archive=folder / "archive"))
    (folder / "bin" / "tar").chmod(0o755)
    sshd = OpenSsh(folder / "sshd", path=f"{folder}/bin:{os.environ['PATH']}")
    access = Access(host="127.0.0.1", port=sshd.port, user=sshd.user, password="")
    with connect(access, host_key=sshd.host_key, pkey_path=sshd.key) as shell:
        shell.check("mkdir ~/r && echo true >~/r/x", what="making files")
        yield shell, folder / "archive"
    sshd.close()


def member(name: str, data: bytes = b"x", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def broken_header(**change: bytes) -> bytes:
    header = bytearray(member("x")[0].tobuf(tarfile.GNU_FORMAT))
    places = {"size": slice(124, 136), "checksum": slice(148, 156)}
    for field, value in change.items():
        header[places[field]] = value
    if "checksum" not in change:
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    return bytes(header)


def extended_header() -> bytes:
    """One pax header with its content, and no member behind it."""
    return archive(member("x", pax_headers={"comment": "c"}), form=tarfile.PAX_FORMAT)[:1024]


LINK, HARD, FIFO, CHAR, DIR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE
NAME, KIND = "not a name that may be written here", "only files come down"
HOSTILE = {
    "absolute": (archive(member("/tmp/gj-evil")), NAME),
    "climbing": (archive(member("../evil")), NAME),
    "climbing inside": (archive(member("a/../../evil")), NAME),
    "dots inside": (archive(member("a/./b")), NAME),
    "empty part": (archive(member("a//b")), NAME),
    "symbolic link": (archive(member("l", b"", type=LINK, linkname="/etc"), member("l/passwd")), KIND),
    "hard link": (archive(member("l", b"", type=HARD, linkname="/etc/passwd")), KIND),
    "fifo": (archive(member("p", b"", type=FIFO)), KIND),
    "device": (archive(member("d", b"", type=CHAR, devmajor=1, devminor=3)), KIND),
    "twice": (archive(member("x"), member("x")), "'x' is in the archive twice"),
    "file then folder": (
        archive(member("x"), member("x", b"", type=DIR)),
        "'x' is in the archive as a file and as a folder",
    ),
    "file as folder": (archive(member("x"), member("x/y")), "'x' is in the archive as a file and as a folder"),
    "folder then file": (archive(member("x", b"", type=DIR), member("x")), "'x' is in the archive twice"),
    "folder with content": (archive(member("x", b"content", type=DIR)), "folder with content of its own"),
    "the folder itself as a file": (archive(member("./")), "'' is in the archive twice"),
    "control character": (archive(member("a\x07b")), NAME),
    "C1 control character": (archive(member("a\u009bb")), NAME),
    "backslash": (archive(member("..\\evil")), NAME),
    "long part": (archive(member("n" * 256)), NAME),
    "long path": (archive(member("/".join(["d" * 100] * 30))), NAME),
    "NUL in a long name": (archive(member("a\0b" + "c" * 200), form=tarfile.PAX_FORMAT), NAME),
    "climbing pax path": (archive(member("x", pax_headers={"path": "../evil"}), form=tarfile.PAX_FORMAT), NAME),
    "bad pax size": (archive(member("x", pax_headers={"size": "-1"}), form=tarfile.PAX_FORMAT), "size is no number"),
    "sparse": (archive(member("x", pax_headers={"GNU.sparse.major": "1"}), form=tarfile.PAX_FORMAT), "cannot be read"),
    "huge header": (
        archive(member("x", pax_headers={"comment": "c" * 100_000}), form=tarfile.PAX_FORMAT),
        "that no tar writes",
    ),
    "global header": (archive(member("x", b"5 a=b\n", type=b"g")), KIND),
    "over the byte limit": (archive(member("x", bytes(1_000_001))), "more than 1000000 bytes"),
    "a lying size": (broken_header(size=b"\x80" + b"\xff" * 11), "more than 1000000 bytes"),
    "a negative size": (broken_header(size=b"-0000000001\0"), "no number"),
    "a size that is none": (broken_header(size=b"0_0\0\0\0\0\0\0\0\0\0"), "no number"),
    "a wrong checksum": (broken_header(checksum=b"0000001\0"), "checksum"),
    "too many": (archive(*(member(f"{i}", b"") for i in range(101))), "more than 100 files"),
    "too many folders": (archive(member("/".join("d" * 101))), "more than 100 files"),
    "no end": (archive(member("x"))[:1024], "ends in the middle"),
    "an end inside": (archive(member("x", bytes(2000)))[:1500], "ends in the middle"),
    "nothing": (b"", "ends in the middle"),
    "no archive": (b"hello " * 500, "checksum|no number"),
    "more after its end": (archive(member("x")) + bytes(2_000_000), "goes on after its end"),
    "endless extended headers": (2 * extended_header(), "that no tar writes"),
    "half an end": (archive(member("x"))[:1024] + bytes(512) + archive(member("y")), "checksum"),
}
LIMITS = Limits(max_bytes=1_000_000, max_files=100, max_path_bytes=2000)


@pytest.mark.parametrize(("data", "why"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused_and_nothing_is_left(
    liar: tuple[Shell, Path], before: Path, data: bytes, why: str
) -> None:
    shell, source = liar
    source.write_bytes(data)
    with pytest.raises(UnsafeArchive, match=why):
        pull(shell, "~/r", before, limits=LIMITS)
    assert contents(before) == {"old": b"old"}
    assert alone(before)
    assert not list(before.parent.parent.rglob("*evil*"))


HONEST = {
    "ustar": archive(member("x", b"true\n"), form=tarfile.USTAR_FORMAT),
    "gnu": archive(member("./", b"", type=DIR), member("./x", b"true\n")),
    "pax": archive(member("x", b"true\n", pax_headers={"comment": "fine"}), form=tarfile.PAX_FORMAT),
    "before 1970": archive(member("x", b"true\n", mtime=-5)),
}


@pytest.mark.parametrize("data", HONEST.values(), ids=HONEST.keys())
def test_every_tar_format_is_read(liar: tuple[Shell, Path], before: Path, data: bytes) -> None:
    shell, source = liar
    source.write_bytes(data)
    pull(shell, "~/r", before, limits=LIMITS)
    assert contents(before) == {"x": b"true\n"}


LIES = {
    "another content": archive(member("x", b"lies\n")),
    "another name": archive(member("y", b"true\n")),
    "one more": archive(member("x", b"true\n"), member("y")),
    "one less": archive(),
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES.keys())
def test_an_archive_that_differs_from_its_hashes_is_refused(
    liar: tuple[Shell, Path], before: Path, data: bytes
) -> None:
    shell, source = liar
    source.write_bytes(data)
    with pytest.raises(TransferFailed, match="not as the machine hashed them"):
        pull(shell, "~/r", before, limits=LIMITS)
    assert contents(before) == {"old": b"old"}


# The unpacker alone


def test_two_names_that_are_one_on_this_file_system_are_refused(tmp_path: Path) -> None:
    unpacker = Unpacker(tmp_path, Limits())
    (tmp_path / "x").write_text("what another spelling of x wrote")
    with pytest.raises(UnsafeArchive, match="the same on this file system"):
        unpacker.feed(archive(member("x")))
    assert (tmp_path / "x").read_text() == "what another spelling of x wrote"


@given(st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=3000)), max_size=6), st.integers(1, 3000))
def test_any_cut_into_pieces_unpacks_the_same(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[int, bytes]], piece: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    stream = archive(*(member(f"{'d/' * depth}{n}-{'n' * 40 * depth}", data) for n, (depth, data) in enumerate(files)))
    unpacker = Unpacker(folder, Limits())
    for start in range(0, len(stream), piece):
        unpacker.feed(stream[start : start + piece])
    unpacker.finish()
    came = {name: data for name, data in contents(folder).items() if data is not None}
    assert sorted(came.values()) == sorted(data for _, data in files)
    assert unpacker.hashes == {name: hashlib.sha256(data).hexdigest() for name, data in came.items()}


@given(st.binary(max_size=2000))
def test_no_bytes_write_outside(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "in").mkdir()
    valid = bytearray(archive(member("a/b", b"c" * 600)))
    valid[: len(data)] = bytes(a ^ b for a, b in zip(valid, data, strict=False))
    unpacker = Unpacker(folder / "in", LIMITS)
    try:
        unpacker.feed(bytes(valid))
        unpacker.finish()
    except UnsafeArchive:
        pass
    finally:
        unpacker.close()
    assert [item.name for item in folder.iterdir()] == ["in"]
