"""Open the ledger's database: a private SQLite file or a PostgreSQL server, brought to the newest revision."""

import importlib.util
import os
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError, SQLAlchemyError

from gpujobs.crash import Point
from gpujobs.errors import BadInput, Busy
from gpujobs.ledger_rows import REVISION
from gpujobs.settings import private_folder

_SQLITE = "sqlite:///"
_KNOWN = "sqlite:////folder/ledger.db or postgresql://user@host/name"
_BUSY_TIMEOUT_MS = 30_000
_POOL_TIMEOUT_S = 300.0  # many runs share ten connections, each for a moment
_CONNECT = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "tcp_user_timeout": 30_000}
_MIGRATION_LOCK = 0x676A6C64  # "gjld": PostgreSQL's advisory locks are named by number


def open_engine(url: str) -> Engine:
    """Connect to the ledger at `url` and migrate it where needed; raises BadInput where `url` cannot be one.

    Raises Busy where another process keeps it locked for half a minute.
    """
    parsed = _parsed(url)
    engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)
    try:
        _bring_up_to_date(engine, place(engine))
    except DBAPIError as error:
        engine.dispose()
        if "locked" in str(error.orig):
            raise Busy(f"{place(engine)} is locked by another process; end it, or wait and try again") from error
        raise BadInput(f"{place(engine)} cannot be opened as a ledger: {error.orig}; mend or move it") from error
    except BadInput:
        engine.dispose()
        raise
    return engine


def place(engine: Engine) -> str:
    """Name the database for a message, without its password."""
    url = engine.url
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def _parsed(url: str) -> URL:
    if url.startswith(_SQLITE):  # a path is taken as it stands: a ? or a % in it is a part of a name
        return URL.create("sqlite+pysqlite", database=url.removeprefix(_SQLITE))
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError) as error:
        raise BadInput(f"GPUJOBS_DATABASE_URL is not a URL; write {_KNOWN}") from error
    if parsed.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise BadInput(f"GPUJOBS_DATABASE_URL: {parsed.drivername} is not known; write {_KNOWN}")
    return parsed.set(drivername="postgresql+psycopg")


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise BadInput("GPUJOBS_DATABASE_URL: a ledger in memory dies with its process; name a file")
    _make_private(Path(url.database))
    engine = create_engine(url, connect_args={"check_same_thread": False}, max_overflow=-1)
    event.listen(engine, "connect", _prepare_connection)
    event.listen(engine, "begin", _begin)
    return engine


def _make_private(path: Path) -> None:
    try:
        private_folder(path.parent)
        # Made by os.open, so that no moment has a readable file. An existing one is never opened here: to close any
        # descriptor of a file drops every lock that this process holds on it, SQLite's too.
        with Point("file", "make", path.name):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if not path.is_file():
            raise BadInput(f"{path} is no file, so it cannot be the ledger; set GPUJOBS_DATABASE_URL") from None
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except OSError as error:
        raise BadInput(f"{path} cannot be made: {error.strerror}; set GPUJOBS_HOME to a folder of yours") from error


def _prepare_connection(connection: Any, _record: Any) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes then cannot wait for another writer, so writers say so at once.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _postgresql(url: URL) -> Engine:
    if importlib.util.find_spec("psycopg") is None:
        raise BadInput("a ledger on PostgreSQL needs the package psycopg; install gpujobs[postgres]")
    engine = create_engine(url, pool_pre_ping=True, pool_timeout=_POOL_TIMEOUT_S, connect_args=_CONNECT)
    event.listen(engine, "connect", _bound_transactions)
    return engine


def _bound_transactions(connection: Any, _record: Any) -> None:
    """Have the server end what a frozen or vanished process left open: it may hold the lock on a run."""
    connection.autocommit = True
    with closing(connection.cursor()) as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '15s'; SET lock_timeout = '30s'")
    connection.autocommit = False


def _bring_up_to_date(engine: Engine, where: str) -> None:
    if _revision(engine) == REVISION:
        return
    with (
        Point("ledger", "migrate"),
        engine.connect().execution_options(writes=True) as connection,
        connection.begin(),
    ):
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        _upgrade(connection, where)


def _revision(engine: Engine) -> str | None:
    try:
        with engine.connect() as connection:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except (OperationalError, ProgrammingError):  # no such table: a new ledger, or no ledger at all
        return None


def _upgrade(connection: Connection, where: str) -> None:
    from alembic import command  # noqa: PLC0415 - half a second that only a new or an old ledger pays
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise BadInput(f"{where} was written by a newer gpujobs ({error}); update gpujobs") from error
