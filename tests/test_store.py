"""The store: what one host put there, another finds, whole and checked, and nothing leads out of a run's folder."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpujobs.errors import BadInput, Missing, TransferFailed, Unavailable, UnsafeArchive
from gpujobs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/store")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    run = tmp_path / "runs" / "k3x9"
    (run / "outputs" / "ckpt" / "deep").mkdir(parents=True)
    (run / "outputs" / "ckpt" / "empty").mkdir()
    (run / "output.log").write_bytes(b"begun\nover\n")
    (run / "recipe.json").write_text("{}")
    (run / "outputs" / "ckpt" / "deep" / "model").write_bytes(b"\x00\x01" * 1000)
    (run / "outputs" / "ckpt" / "run.sh").write_text("true")
    (run / "outputs" / "ckpt" / "run.sh").chmod(0o700)
    (run / "outputs" / "answer").write_text("42")
    return run


def test_logs_and_outputs_come_back_as_they_were_put(store: Store, folder: Path, tmp_path: Path) -> None:
    store.put_run("k3x9", folder)
    found = store.manifest("k3x9")
    assert found is not None
    assert found.outputs() == ["answer", "ckpt"]
    to = tmp_path / "here"
    for path in ("output.log", "outputs/ckpt", "outputs/answer"):
        store.fetch("k3x9", found, path, to / path)
    names = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    assert {name: (to / name).read_bytes() for name in names} == {
        "output.log": b"begun\nover\n",
        "outputs/answer": b"42",
        "outputs/ckpt/deep/model": b"\x00\x01" * 1000,
        "outputs/ckpt/run.sh": b"true",
    }
    assert (to / "outputs/ckpt/empty").is_dir()
    assert [stat.S_IMODE((to / "outputs/ckpt" / name).stat().st_mode) for name in ("run.sh", "deep/model")] == [
        0o700,
        0o600,
    ]


def test_a_file_that_was_changed_in_the_store_is_refused(store: Store, folder: Path, tmp_path: Path) -> None:
    found = store.put_run("k3x9", folder)
    (tmp_path / "store/k3x9/outputs/answer").write_text("43")
    with pytest.raises(TransferFailed, match="SHA-256 differs"):
        store.fetch("k3x9", found, "outputs/answer", tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "outputs/../../evil", "outputs\\..\\evil"])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "store/k3x9").mkdir(parents=True)
    manifest = {"files": {name: {"size": 1, "sha256": "", "mode": 384}}, "folders": []}
    (tmp_path / "store/k3x9/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnsafeArchive, match="leads out"):
        store.manifest("k3x9")


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"files": [1], "folders": []}'])
def test_a_manifest_that_is_broken_is_told(store: Store, tmp_path: Path, text: str) -> None:
    (tmp_path / "store/k3x9").mkdir(parents=True)
    (tmp_path / "store/k3x9/manifest.json").write_text(text)
    with pytest.raises(TransferFailed, match="is not readable"):
        store.manifest("k3x9")


def test_a_link_out_of_the_outputs_is_not_followed(store: Store, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary")
    (folder / "outputs" / "out").symlink_to(tmp_path / "secret")
    (folder / "outputs" / "same").symlink_to("answer")
    found = store.put_run("k3x9", folder)
    assert found.outputs() == ["answer", "ckpt", "same"]


def test_a_growing_log_is_read_without_gap_or_repeat_whoever_put_its_pieces(store: Store) -> None:
    store.put_piece("k3x9", 1, 0, b"an older attempt")
    for offset, data in ((0, b"begun\n"), (6, b"goes on\n"), (3, b"un\ngo"), (14, b"over\n"), (99, b"later")):
        store.put_piece("k3x9", 2, offset, data)
    assert b"".join(store.pieces("k3x9")) == b"begun\ngoes on\nover\n"
    assert b"".join(store.pieces("none")) == b""


def test_pieces_go_once_the_whole_is_there(store: Store, folder: Path) -> None:
    store.put_piece("k3x9", 1, 0, b"begun\n")
    store.put_run("k3x9", folder)
    assert list(store.pieces("k3x9")) == []


def test_a_run_that_is_not_there_has_no_manifest_and_no_files(store: Store, folder: Path, tmp_path: Path) -> None:
    assert store.manifest("k3x9") is None
    found = store.put_run("k3x9", folder)
    with pytest.raises(Missing):
        store.fetch("k3x9", found, "outputs/none", tmp_path / "here")


def test_a_new_store_on_a_disk_is_private(store: Store, folder: Path, tmp_path: Path) -> None:
    store.put_run("k3x9", folder)
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


def test_a_store_that_cannot_be_written_is_told_with_its_url(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = Store(f"file://{tmp_path}/store")
    (tmp_path / "store/k3x9").write_text("in the way")
    with pytest.raises(Unavailable, match="the store file://"):
        store.put_run("k3x9", folder)


def test_a_store_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(BadInput, match="GPUJOBS_STORE"):
        Store("gopher://somewhere/x")
