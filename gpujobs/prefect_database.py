"""The empty database of a new Prefect server, laid out at one blow.

Prefect's own way, 112 migrations of an empty SQLite file, takes 7 s of a new controller's start. What they come to is
kept in `prefect_schema.sql`, as `dump` gives it; a test holds the two together. A Prefect of another version than the
file's migrates by itself, as ever.
"""

import sqlite3
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from gpujobs.settings import private_opener

_SCHEMA = Path(__file__).with_name("prefect_schema.sql")
_HEAD = "-- prefect "


def lay_out(path: Path) -> bool:
    """Make the database at `path`, 0600; False where there is one, or where our layout is not this Prefect's."""
    head, _, script = _SCHEMA.read_text(encoding="utf-8").partition("\n")
    if path.exists() or head != _HEAD + version("prefect"):
        return False
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with open(draft, "wb", opener=private_opener):
        pass
    try:
        with closing(sqlite3.connect(draft)) as database:
            database.executescript(f"BEGIN;\n{script}\nCOMMIT;")
        draft.rename(path)
    except sqlite3.Error:  # an SQLite too old for it: Prefect says so better than we could
        return False
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
    return True


def dump(path: Path) -> str:
    """Give the layout of the Prefect database at `path`, and the revision that it stands at."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type != 'table', type, name"
        ).fetchall()
        [(revision,)] = database.execute("SELECT version_num FROM alembic_version").fetchall()
    body = ";\n".join(sql for (sql,) in rows)
    return f"{_HEAD}{version('prefect')}\n{body};\nINSERT INTO alembic_version VALUES ('{revision}');\n"
