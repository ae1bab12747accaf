"""Where every host finds the logs and outputs of every run: a folder or a bucket, named by an fsspec URL.

A run's part is a folder of its id. While it runs, `pieces/ATTEMPT/OFFSET` hold its log as it grows; once it is over,
`manifest.json`, which is written last, names each file with its size and SHA-256.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from gpujobs.crash import Point
from gpujobs.errors import BadInput, Missing, TransferFailed, Unavailable, UnsafeArchive
from gpujobs.settings import private_folder, private_opener

_MANIFEST = "manifest.json"
_PIECE_BYTES = 2**20
OUTPUTS = "outputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One file as it was put into the store."""

    size: int
    sha256: str
    mode: int = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the store holds of a run that is over; paths are relative to the run's folder."""

    files: Mapping[str, Kept] = field(default_factory=dict)
    folders: tuple[str, ...] = ()

    def outputs(self) -> list[str]:
        """Name the outputs."""
        paths = [PurePosixPath(path) for path in (*self.files, *self.folders)]
        return sorted({path.parts[1] for path in paths if path.parts[0] == OUTPUTS and len(path.parts) > 1})


class Store:
    """The folder of all runs; each method raises Unavailable where it cannot be reached."""

    def __init__(self, url: str) -> None:
        """Open nothing yet; raises BadInput where the URL is of no known kind."""
        import fsspec  # noqa: PLC0415 - a third of a second that only who has a store pays

        try:
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise BadInput(f"GPUJOBS_STORE: {error}; write file:///folder, or s3://bucket/folder with s3fs") from error
        self._url = url

    def where(self, run_id: str, path: str) -> str:
        """Give the URL of a run's file or folder."""
        return f"{self._url.rstrip('/')}/{run_id}/{path}"

    def put_piece(self, run_id: str, attempt: int, offset: int, data: bytes) -> None:
        """Keep a piece of a log that grows."""
        self._write(f"{run_id}/pieces/{attempt}/{offset:015d}", data)

    def pieces(self, run_id: str) -> Iterator[bytes]:
        """Give the newest attempt's log as far as it is here, without a gap or a repeat."""
        with self._told():
            found = sorted(self._files.find(self._at(f"{run_id}/pieces")))
        newest = max((int(PurePosixPath(path).parts[-2]) for path in found), default=0)
        position = 0
        for path in found:
            attempt, offset = (int(part) for part in PurePosixPath(path).parts[-2:])
            if attempt == newest and offset <= position:
                with self._told():
                    data: bytes = self._files.cat_file(path)
                yield data[position - offset :]
                position = max(position, offset + len(data))

    def put_run(self, run_id: str, folder: Path) -> Manifest:
        """Keep a run's logs and outputs, then the manifest; the pieces are no longer wanted."""
        files, folders = dict[str, Kept](), list[str]()
        for path in _walk(folder):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                folders.append(name)
            else:
                files[name] = self._put_file(f"{run_id}/{name}", path)
        manifest = Manifest(files=files, folders=tuple(folders))
        self._write(f"{run_id}/{_MANIFEST}", json.dumps(asdict(manifest)).encode())
        with self._told():
            if self._files.exists(self._at(f"{run_id}/pieces")):
                with Point("store", "remove pieces"):
                    self._files.rm(self._at(f"{run_id}/pieces"), recursive=True)
        return manifest

    def manifest(self, run_id: str) -> Manifest | None:
        """Give what is here of a run that is over; None where there is nothing (yet)."""
        try:
            with self._told():
                data = self._files.cat_file(self._at(f"{run_id}/{_MANIFEST}"))
            value = json.loads(data)
            files = {_safe(path): Kept(**kept) for path, kept in value["files"].items()}
            return Manifest(files=files, folders=tuple(_safe(path) for path in value["folders"]))
        except Missing:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TransferFailed(f"{self.where(run_id, _MANIFEST)} is not readable: {error}") from error

    def fetch(self, run_id: str, manifest: Manifest, path: str, to: Path) -> None:
        """Bring a file or a folder of the manifest to `to`, each file checked; raises TransferFailed, Missing."""
        below = {name: to / name.removeprefix(f"{path}/") for name in manifest.files if name.startswith(f"{path}/")}
        wanted = {path: to} if path in manifest.files else below
        folders = [to / name.removeprefix(f"{path}/") for name in manifest.folders if name.startswith(f"{path}/")]
        for folder in folders + ([to] if path in manifest.folders else []):
            private_folder(folder)
        if not wanted and path not in manifest.folders:
            raise Missing(f"{self.where(run_id, path)} is not in the store")
        for name, target in wanted.items():
            self._get_file(run_id, name, manifest.files[name], target)

    def _put_file(self, name: str, path: Path) -> Kept:
        digest, size = hashlib.sha256(), 0
        with self._told(), path.open("rb") as source:
            self._make_folder_of(name)
            with Point("store", "put", path.name), self._files.open(self._at(name), "wb") as target:
                while data := source.read(_PIECE_BYTES):
                    digest.update(data)
                    size += target.write(data)
        return Kept(size=size, sha256=digest.hexdigest(), mode=0o700 if os.access(path, os.X_OK) else 0o600)

    def _get_file(self, run_id: str, name: str, kept: Kept, path: Path) -> None:
        private_folder(path.parent)
        draft, digest = path.with_name(f".{path.name}.new"), hashlib.sha256()
        with (
            self._told(),
            self._files.open(self._at(f"{run_id}/{name}"), "rb") as source,
            open(draft, "wb", opener=private_opener) as target,
        ):
            while data := source.read(_PIECE_BYTES):
                digest.update(data)
                target.write(data)
        if digest.hexdigest() != kept.sha256:
            with Point("file", "remove draft of", path.name):
                draft.unlink()
            raise TransferFailed(f"{self.where(run_id, name)} is not what was put there: its SHA-256 differs")
        draft.chmod(0o700 if kept.mode & 0o100 else 0o600)
        with Point("file", "put in place", path.name):
            draft.replace(path)

    def _write(self, name: str, data: bytes) -> None:
        with self._told():
            self._make_folder_of(name)
            with Point("store", "write", PurePosixPath(name).name):
                self._files.pipe_file(self._at(name), data)

    def _make_folder_of(self, name: str) -> None:
        if "file" in self._files.protocol:
            private_folder(Path(self._root))  # a new one is ours alone; one that is there is as its owner wants it
        with Point("store", "make folder"):
            self._files.makedirs(self._at(str(PurePosixPath(name).parent)), exist_ok=True)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{_safe(name)}"

    def _told(self) -> "_Told":
        return _Told(self._url)


class _Told:
    """Turns what a file system raises into our errors."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Raise Missing or Unavailable for what went wrong in the store."""
        if isinstance(error, FileNotFoundError):
            raise Missing(f"{self._url}: {error}") from error
        if isinstance(error, Exception):
            raise Unavailable(f"the store {self._url} failed: {type(error).__name__}: {error}") from error


def _walk(folder: Path) -> Iterator[Path]:
    """Give a run's logs, then its outputs with their folders; a link is followed where it stays in the outputs."""
    yield from sorted(path for path in folder.glob("*.log") if path.is_file())
    outputs = folder / OUTPUTS
    for path in sorted(outputs.rglob("*")):
        if path.is_symlink() and not (path.resolve().is_relative_to(outputs.resolve()) and path.is_file()):
            continue
        if path.is_file() or path.is_dir():
            yield path


def _safe(name: str) -> str:
    """Refuse a path that would lead out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
        raise UnsafeArchive(f"the store names a file {name!r}, which leads out of the run's folder")
    return name
