"""Between a run's folder here and the store: a log as it grows, everything at the end, and back."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpujobs.clock import Clock
from gpujobs.crash import Point
from gpujobs.errors import GpujobsError, Missing, Unavailable
from gpujobs.ledger_rows import ENDED, Run
from gpujobs.settings import Settings, private_folder, private_opener
from gpujobs.store import OUTPUTS, Manifest, Store

PERIOD_S = 30.0
_PIECE_BYTES = 8 * 2**20
_log = logging.getLogger(__name__)


@contextmanager
def growing(store: Store, run_id: str, attempt: int, log: Path, *, clock: Clock) -> Iterator[None]:
    """Put what the log gains into the store while the block runs; trouble is told, and costs no run."""
    over = threading.Event()

    def deposit() -> None:
        offset = 0
        while not clock.wait(over, PERIOD_S):
            try:
                offset += _put_rest(store, run_id, attempt, log, offset)
            except (GpujobsError, OSError) as error:
                _log.warning("run %s: its log is not in the store yet: %s", run_id, error)

    threading.Thread(target=deposit, name=f"gpujobs-store-{run_id}", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _put_rest(store: Store, run_id: str, attempt: int, log: Path, offset: int) -> int:
    with log.open("rb") as file:
        file.seek(offset)
        data = file.read(_PIECE_BYTES)
    if data:
        store.put_piece(run_id, attempt, offset, data)
    return len(data)


def folder_of(found: Settings, run: Run) -> Path:
    """Give the folder here that holds the run's logs: its own, or where another host has more, what the store has."""
    own = found.runs / run.id
    try:
        return _fetch_logs(found, run, own) if found.store else own
    except (Unavailable, Missing) as error:
        if not (own / "output.log").exists():
            raise
        _log.warning("%s; showing what is here", error)
        return own


def _fetch_logs(found: Settings, run: Run, own: Path) -> Path:
    store, fetched = Store(found.store), private_folder(found.home / "fetched") / run.id
    if run.state not in ENDED:
        return _fetch_pieces(store, run.id, fetched, own)
    manifest = store.manifest(run.id)
    if manifest is None:
        return own
    for name, kept in manifest.files.items():
        if name.endswith(".log") and "/" not in name and _size(own / name) != kept.size:
            store.fetch(run.id, manifest, name, fetched / name)
    lacking = [name for name in manifest.files if (fetched / name).exists()]
    return fetched if "output.log" in lacking else own


def stored_files(found: Settings, run: Run) -> Mapping[str, Any]:
    """Give the URLs of the `log` and, by name, the `outputs` of an ended run that the store has; else nothing."""
    if not found.store or run.state not in ENDED:
        return {}
    store = Store(found.store)
    manifest = store.manifest(run.id)
    if manifest is None:
        return {}
    outputs = {name: store.where(run.id, f"{OUTPUTS}/{name}") for name in manifest.outputs()}
    return {"log": store.where(run.id, "output.log"), "outputs": outputs}


def fetch_outputs(found: Settings, run: Run, to: Path) -> list[str]:
    """Bring the outputs of an ended run from the store into `to`; give their names."""
    store = Store(found.store)
    manifest = store.manifest(run.id) or Manifest()
    for name in manifest.outputs():
        store.fetch(run.id, manifest, f"{OUTPUTS}/{name}", to / name)
    return manifest.outputs()


def _fetch_pieces(store: Store, run_id: str, fetched: Path, own: Path) -> Path:
    draft = private_folder(fetched) / ".output.log.new"
    with open(draft, "wb", opener=private_opener) as file:
        file.writelines(store.pieces(run_id))
    if _size(draft) <= _size(own / "output.log"):
        with Point("file", "remove draft of", "output.log"):
            draft.unlink()
        return own
    with Point("file", "put in place", "output.log"):
        draft.replace(fetched / "output.log")
    return fetched


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
