"""The layout of a new Prefect server's database that we keep is what its own migrations come to."""

import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gpujobs import prefect_database

MIGRATE = """
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""


def parts(layout: str) -> Sequence[Sequence[str]]:
    """Each statement as its sorted lines: in what order a table's constraints stand differs from time to time."""
    return [sorted(line.strip(" \t,") for line in statement.splitlines()) for statement in layout.split(";\n")]


def test_kept_layout_is_what_prefects_migrations_make(tmp_path: Path) -> None:
    """Where this fails: write the dump below into gpujobs/prefect_schema.sql."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**kept, "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    subprocess.run([sys.executable, "-c", MIGRATE], env=environment, check=True, cwd=tmp_path, timeout=100)
    migrated = prefect_database.dump(tmp_path / "prefect.db")
    assert prefect_database.lay_out(tmp_path / "ours.db")
    assert parts(prefect_database.dump(tmp_path / "ours.db")) == parts(migrated), migrated
    assert stat.S_IMODE((tmp_path / "ours.db").stat().st_mode) == 0o600


def test_database_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_text("precious")
    assert not prefect_database.lay_out(tmp_path / "prefect.db")
    assert (tmp_path / "prefect.db").read_text() == "precious"


def test_another_prefect_migrates_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_database, "version", lambda _: "3.9.0")
    assert not prefect_database.lay_out(tmp_path / "prefect.db")
    assert list(tmp_path.iterdir()) == []
