"""Reading and writing the ledger's database: one short transaction each, waited for while a server is away."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Executable, Select, Table, event, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.sql.dml import Insert, Update

from gpujobs.clock import Clock
from gpujobs.crash import Point
from gpujobs.errors import BadInput, Busy, GpujobsError, LetGo
from gpujobs.ledger_engine import place
from gpujobs.ledger_tables import runs

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

AWAY_S = 300.0  # so long, a server that does not answer is waited for; then runs are let go, and resumed later
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0
_FULL = "53100"  # PostgreSQL's code of a full disk: an OperationalError too, and no reason to wait
_log = logging.getLogger(__name__)
_Value = TypeVar("_Value")
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Hold:
    """A claim on a run: `token` grows with each claim, so that an older one is known to be stale."""

    run_id: str
    token: int


class Database:
    """The ledger's database; with a hold, every write is refused once another has claimed the run."""

    def __init__(self, engine: Engine, *, clock: Clock, hold: Hold | None = None) -> None:
        """Work on an engine whose database stands at the newest revision."""
        self.engine, self._clock, self.hold = engine, clock, hold
        self._closed = threading.Event()

    def held(self, hold: Hold) -> "Database":
        """Give the same database for the holder of a claim alone."""
        other = Database(self.engine, clock=self._clock, hold=hold)
        other._closed = self._closed  # who waits in it wakes when it is closed
        return other

    def close(self) -> None:
        """Close every connection, one in use as it comes back, and wake who waits for a server; idempotent."""
        self._closed.set()
        event.listen(self.engine.pool, "checkin", _hang_up)
        self.engine.dispose()

    @property
    def place(self) -> str:
        """Name the database for a message, without its password."""
        return place(self.engine)

    def rows(self, kind: type[_Row], query: Select[Any]) -> list[_Row]:
        """Give what a query finds, each row as a `kind`."""

        def read(connection: Connection) -> list[_Row]:
            result = connection.execute(query)
            names = list(result.keys())
            return [kind(**dict(zip(names, row, strict=True))) for row in result]

        return self._read(read)

    def value(self, query: Select[Any]) -> Any:
        """Give the first column of the first row; None where there is none."""
        return self._read(lambda connection: connection.scalar(query))

    def check_hold(self) -> None:
        """Raise Busy where another has claimed the run since."""
        if self.hold is not None:
            hold = self.hold
            self._read(lambda connection: _check(connection, hold, lock=False))

    def write(
        self, statement: Insert | Update, what: str, *columns: str, rows: Sequence[Mapping[str, Any]] | None = None
    ) -> int:
        """Do it, and give the number of rows; raises Busy where `what` is there already, or our hold is stale.

        `columns` tell a crash point apart from others of the same table. With `rows` it is done for each of them.
        """

        def count(connection: Connection) -> int:
            result = connection.execute(statement, rows)
            return result.rowcount if isinstance(result, CursorResult) else 0

        return self._write(count, what, type(statement).__name__.lower(), *columns)

    def write_and_read(self, statement: Executable, what: str, *columns: str) -> Any:
        """Do it, and give the first column that the statement returns; None where it did none; `columns` as above."""
        kind = (type(statement).__name__.lower(), *columns)
        return self._write(lambda connection: connection.scalar(statement), what, *kind)

    def change(self, statement: Update, changes: Mapping[str, Any], what: str) -> None:
        """Change fields of one row; raises BadInput where there is none."""
        if changes and self.write(statement.values(**printable(changes)), what, *changes) != 1:
            raise BadInput(f"the ledger {self.place} has no {what}")

    def upsert(self, table: Table, values: Mapping[str, Any], keys: Sequence[str]) -> Insert:
        """Give the statement that writes a row, over one of the same keys."""
        return (
            self.insert(table)
            .values(**printable(values))
            .on_conflict_do_update(index_elements=keys, set_=printable(values))
        )

    def insert(self, table: Table) -> "sqlite.Insert | postgresql.Insert":
        """Give an insert in the database's own dialect."""
        if self.engine.dialect.name == "sqlite":
            return sqlite.insert(table)
        from sqlalchemy.dialects import postgresql  # noqa: PLC0415 - what SQLite never needs is not paid for

        return postgresql.insert(table)

    def _read(self, act: Callable[[Connection], _Value]) -> _Value:
        def once() -> _Value:
            with self.engine.connect() as connection:
                return act(connection)

        try:
            return self._patiently(once)
        except DBAPIError as error:
            raise GpujobsError(f"the ledger {self.place} cannot be read: {error.orig}") from error

    def _write(self, act: Callable[[Connection], _Value], what: str, *kind: str) -> _Value:
        def once() -> _Value:
            with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
                if self.hold is not None:
                    _check(connection, self.hold, lock=True)
                return act(connection)

        try:
            with Point("ledger", what.partition(" ")[0], *kind):
                return self._patiently(once)
        except IntegrityError as error:
            raise Busy(f"{what} does not go into the ledger ({error.orig}); does another process drive it?") from error
        except DBAPIError as error:
            raise GpujobsError(f"the ledger {self.place} cannot be written: {error.orig}; is its disk full?") from error

    def _patiently(self, act: Callable[[], _Value]) -> _Value:
        """Do it, again and again while the server is away: it may be restarted, and our machines work on meanwhile.

        Raises LetGo where it stays away too long.
        """
        began, wait_s = self._clock.monotonic(), _FIRST_WAIT_S
        while True:
            try:
                return act()
            except (OperationalError, InterfaceError) as error:
                if not self._is_away(error):
                    raise
                away_s = self._clock.monotonic() - began
                if away_s >= AWAY_S or self._closed.is_set():
                    raise LetGo(f"the ledger {self.place} has not answered for {away_s:.0f} s: {error.orig}") from error
                _log.warning("the ledger %s does not answer, and is asked again: %s", self.place, error.orig)
            self._clock.wait(self._closed, wait_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)

    def _is_away(self, error: DBAPIError) -> bool:
        if self.engine.dialect.name == "sqlite":  # kept locked by a process that was frozen in the middle of a write
            return "locked" in str(error.orig)
        return getattr(error.orig, "sqlstate", None) != _FULL


def printable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give the values without NUL characters, which PostgreSQL keeps in no text."""
    return {
        name: value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value
        for name, value in values.items()
    }


def _check(connection: Connection, hold: Hold, *, lock: bool) -> None:
    """Refuse a stale hold; the lock keeps others from claiming the run until our own write is done (SQLite: always)."""
    query = select(runs.c.fence).where(runs.c.id == hold.run_id)
    token = connection.scalar(query.with_for_update(key_share=True) if lock else query)
    if token != hold.token:
        raise Busy(f"run {hold.run_id} was taken over by another process; this one lets go of it")


def _hang_up(_connection: Any, record: Any) -> None:
    record.invalidate()
