"""The state folder's database: what the world was when it last answered anybody.

SQLite in WAL mode: what was written stays when the fake's process is killed. Commands and calls are only ever appended,
which the database itself sees to.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

Key = tuple[str, str]
"""Kind and id of a saved thing."""

FORMAT = '"1"'
_NAME = "world.sqlite3"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS thing (n INTEGER PRIMARY KEY, kind TEXT, id TEXT, body TEXT, UNIQUE (kind, id));
CREATE TABLE IF NOT EXISTS command (n INTEGER PRIMARY KEY, machine TEXT, body TEXT);
CREATE TABLE IF NOT EXISTS call (n INTEGER PRIMARY KEY, body TEXT);
CREATE TRIGGER IF NOT EXISTS command_stays BEFORE UPDATE ON command BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS command_kept BEFORE DELETE ON command BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS call_stays BEFORE UPDATE ON call BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS call_kept BEFORE DELETE ON call BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""


class StateError(OSError):
    """A state folder that cannot be used, and why."""


class FolderLock:
    """Keeps a second fake out of a state folder; the kernel lets go of it when this process ends, however it does."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise StateError(
                f"another fake uses the state folder {folder}; stop it or choose another --state"
            ) from error

    def release(self) -> None:
        """Let another fake have the folder."""
        os.close(self._fd)


class Store:
    """Saved things by kind and id, and the two lists that only grow. The world's lock guards it."""

    def __init__(self, folder: Path) -> None:
        path = folder / _NAME
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._saved: dict[Key, str] = {}
        try:
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_SCHEMA)
            self._saved = {
                (kind, key): body for kind, key, body in self._rows("SELECT kind, id, body FROM thing ORDER BY n")
            }
        except sqlite3.Error as error:
            raise StateError(f"{path} is not a state of this fake ({error}); move it away to begin anew") from error
        if self._saved.get(("meta", "format"), FORMAT) != FORMAT:
            self._database.close()
            raise StateError(f"{path} was written by another version of this fake; move it away to begin anew")

    @classmethod
    def anew(cls, folder: Path) -> Self:
        """Return an empty store, whatever the folder held before."""
        for path in folder.glob(f"{_NAME}*"):
            path.unlink()
        return cls(folder)

    def things(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Yield id and body of everything saved of a kind, in the order it first came."""
        for (each_kind, key), body in self._saved.items():
            if each_kind == kind:
                yield key, json.loads(body)

    def commands(self) -> Iterator[tuple[str, Any]]:
        """Yield machine and command, in order."""
        for machine, body in self._rows("SELECT machine, body FROM command ORDER BY n"):
            yield machine, json.loads(body)

    def calls(self, *, latest: int) -> list[Any]:
        """Return the latest calls, oldest first."""
        rows = list(self._rows("SELECT body FROM call ORDER BY n DESC LIMIT ?", latest))
        return [json.loads(body) for (body,) in reversed(rows)]

    def save(self, things: Mapping[Key, str], *, commands: Iterable[tuple[str, str]], calls: Iterable[str]) -> None:
        """Write what differs from what was saved, what is new in the lists, and drop what is gone; all or nothing."""
        changed = [(*key, body) for key, body in things.items() if self._saved.get(key) != body]
        gone = [key for key in self._saved if key not in things]
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany(
                "INSERT INTO thing (kind, id, body) VALUES (?, ?, ?) "
                "ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body",
                changed,
            )
            self._database.executemany("DELETE FROM thing WHERE kind = ? AND id = ?", gone)
            self._database.executemany("INSERT INTO command (machine, body) VALUES (?, ?)", commands)
            self._database.executemany("INSERT INTO call (body) VALUES (?)", [(body,) for body in calls])
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        for key in gone:
            del self._saved[key]
        self._saved.update((key, things[key]) for key in ((kind, key) for kind, key, _ in changed))

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _rows(self, query: str, *values: object) -> Iterator[Any]:
        return iter(self._database.execute(query, values).fetchall())
