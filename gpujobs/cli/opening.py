"""Opening what commands need: the settings, the ledger, and the run that a word on the command line means."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from gpujobs import settings
from gpujobs.errors import BadInput
from gpujobs.ledger_rows import Run
from gpujobs.prefect_blocks import PrefectBlocks
from gpujobs.settings import Settings

if TYPE_CHECKING:
    from gpujobs.ledger import Ledger


def load_settings() -> Settings:
    """Read the settings; raises BadInput also where the home cannot be made."""
    try:
        found = settings.load()
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; set GPUJOBS_HOME to a folder of yours") from error
    return replace(found, blocks=PrefectBlocks(found))


@contextmanager
def ledger_of(found: Settings) -> Iterator["Ledger"]:
    """Open the ledger for a block."""
    from gpujobs.ledger import open_ledger  # noqa: PLC0415 - brings SQLAlchemy

    with open_ledger(found.database_url) as ledger:
        yield ledger


def find_run(ledger: "Ledger", word: str) -> Run:
    """Give the run that `word` means: an id or its start, a name (the latest so called), or - for the latest of all."""
    if word != "-":
        try:
            return ledger.get_run(word)
        except BadInput as error:
            if _is_fake(word):
                raise BadInput(f"run {word} is on the fake cloud; say it with --fake") from error
            raise
    latest = ledger.list_runs(limit=1)
    if not latest:
        raise BadInput("there are no runs yet; start one with: gpujobs submit recipe.yaml")
    return latest[0]


def _is_fake(word: str) -> bool:
    """Say whether the home that --fake has within ours knows a run of that id."""
    runs = settings.load().home / "fake" / "runs"
    return runs.is_dir() and word in (run.name for run in runs.iterdir())
