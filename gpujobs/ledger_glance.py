"""List the runs without the price of SQLAlchemy's import (a third of a second), which `gpujobs ls` cannot afford.

Only reads, only SQLite, and only a ledger at the newest revision: everything else goes through `open_ledger`.
"""

import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpujobs.ledger_rows import REVISION, Run

_SQLITE = "sqlite:///"
_NAMES = [field.name for field in fields(Run)]
_TIMES = [number for number, name in enumerate(_NAMES) if name.endswith("_at") or name == "lease_until"]
_BUSY_TIMEOUT_S = 30.0


def list_runs(
    url: str, *, limit: int | None = None, states: Collection[str] = (), owner: str | None = None
) -> Sequence[Run]:
    """Give what `open_ledger(url).list_runs` gives, newest first; an absent or old ledger is made or migrated by it."""
    path = url.removeprefix(_SQLITE)
    if url.startswith(_SQLITE) and Path(path).is_file():
        try:
            with closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S)) as connection:
                if connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(REVISION,)]:
                    return _read(connection, limit, states, owner)
        except sqlite3.Error:
            pass  # whatever it is, open_ledger says it better
    return _by_ledger(url, limit, states, owner)


def _by_ledger(url: str, limit: int | None, states: Collection[str], owner: str | None) -> Sequence[Run]:
    from gpujobs.ledger import open_ledger  # noqa: PLC0415 - the import that this module exists to avoid

    with open_ledger(url) as ledger:
        return ledger.list_runs(limit=limit, states=states, owner=owner)


def _read(
    connection: sqlite3.Connection, limit: int | None, states: Collection[str], owner: str | None
) -> Sequence[Run]:
    tests, values = ["1"], list[Any]()
    if states:
        tests.append(f"state IN ({', '.join('?' * len(states))})")
        values.extend(states)
    if owner is not None:
        tests.append("owner = ?")
        values.append(owner)
    query = (
        f"SELECT {', '.join(_NAMES)} FROM runs WHERE {' AND '.join(tests)} "  # noqa: S608 - our own names; values are bound
        "ORDER BY created_at DESC, id DESC LIMIT ?"
    )
    return [_run(row) for row in connection.execute(query, [*values, -1 if limit is None else limit])]


def _run(row: Sequence[Any]) -> Run:
    values = list(row)
    for number in _TIMES:
        if values[number] is not None:
            values[number] = datetime.fromisoformat(values[number]).replace(tzinfo=UTC)
    return Run(**dict(zip(_NAMES, values, strict=True)))
