"""The ledger's database: private, durable, at the newest revision, whoever else opens it or dies over it."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateTable

from gpujobs import ledger_engine, ledger_glance
from gpujobs.clock import SystemClock
from gpujobs.errors import BadInput, Busy, GpujobsError
from gpujobs.ledger import Ledger, open_ledger
from gpujobs.ledger_database import Database
from gpujobs.ledger_rows import REVISION
from gpujobs.ledger_tables import metadata
from tests.clocks import eventually
from tests.ledger_values import a_bill, a_run


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/home/ledger.db"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with open_ledger(url) as opened:
        yield opened


# The file


def test_the_file_and_its_side_files_are_private_from_the_start(url: str, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with open_ledger(url) as ledger:
            ledger.add_run(a_run())
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "home").iterdir()}
    finally:
        os.umask(old)
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/why? 50%20 &c=#1 中/ledger.db"
    with open_ledger(url) as ledger:
        ledger.add_run(a_run())
    assert ledger_glance.list_runs(url) == [a_run()]
    assert [file.name for file in tmp_path.iterdir()] == ["why? 50%20 &c=#1 中"]


def test_a_readable_file_from_before_is_closed_to_others(url: str, tmp_path: Path) -> None:
    open_ledger(url).close()
    (tmp_path / "home/ledger.db").chmod(0o644)
    open_ledger(url).close()
    assert stat.S_IMODE((tmp_path / "home/ledger.db").stat().st_mode) == 0o600


def test_every_connection_is_durable_and_checks_its_keys(ledger: Ledger) -> None:
    with ledger._database.engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "is not a URL"),
        ("mysql://root:hunter2@db/x", "mysql is not known"),
        ("sqlite://", "sqlite is not known; write sqlite:////folder"),
        ("sqlite:///", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:////proc/nowhere/ledger.db", "cannot be made"),
        ("postgresql://ada:hunter2@nowhere.invalid/ledger", "cannot be opened as a ledger"),
    ],
)
def test_a_url_that_cannot_be_a_ledger_is_refused_without_its_password(url: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        open_ledger(url)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_ledger_on_postgresql_wants_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(BadInput, match=r"install gpujobs\[postgres\]"):
        open_ledger("postgresql://ada@db/ledger")


def test_a_servers_name_is_shown_without_its_password() -> None:
    engine = create_engine("sqlite://")
    engine.url = make_url("postgresql://ada:hunter2@db/ledger")
    assert ledger_engine.place(engine) == "postgresql://ada:***@db/ledger"


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("this is not a database, it is a letter to a friend\n" * 40)
    with pytest.raises(BadInput, match=r"ledger\.db cannot be opened as a ledger: file is not a database"):
        open_ledger(f"sqlite:///{tmp_path}/ledger.db")


def test_a_file_that_another_keeps_locked_is_told_from_one_that_is_broken(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_engine, "_BUSY_TIMEOUT_MS", 20)
    (tmp_path / "home").mkdir()
    with closing(sqlite3.connect(tmp_path / "home/ledger.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Busy, match=r"ledger\.db is locked by another process"):
            open_ledger(url)
    open_ledger(url).close()


def test_a_write_waits_for_a_process_that_was_frozen_in_the_middle_of_its_own(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_engine, "_BUSY_TIMEOUT_MS", 20)
    with open_ledger(url) as ledger, closing(sqlite3.connect(tmp_path / "home/ledger.db")) as frozen:
        frozen.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(ledger.add_run, a_run())
            eventually(lambda: caplog.records, what="a try that failed")
            frozen.rollback()
            written.result(timeout=30)
        assert ledger.list_runs() == [a_run()]


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no file"):
        open_ledger(f"sqlite:///{tmp_path}")


# Migrations


def test_the_migrations_make_exactly_the_tables_that_the_code_knows(ledger: Ledger) -> None:
    with ledger._database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == REVISION


def test_opening_an_up_to_date_ledger_does_not_load_alembic(url: str) -> None:
    open_ledger(url).close()
    code = f"import sys; from gpujobs.ledger import open_ledger; open_ledger({url!r}); print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_ledger_loads_no_pydantic(url: str) -> None:
    code = f"import sys; from gpujobs.ledger import open_ledger; open_ledger({url!r}); print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_ledger_of_a_newer_gpujobs_is_refused(url: str, tmp_path: Path) -> None:
    open_ledger(url).close()
    with sqlite3.connect(tmp_path / "home/ledger.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(BadInput, match="newer gpujobs"):
        open_ledger(url)


def test_many_processes_that_open_a_new_ledger_at_once_all_succeed(url: str) -> None:
    code = (
        "import sys\n"
        "from datetime import UTC, datetime\n"
        "from gpujobs.ledger import open_ledger\n"
        "from gpujobs.ledger_rows import Run\n"
        "sys.stdin.read(1)\n"
        f"with open_ledger({url!r}) as ledger:\n"
        "    ledger.add_run(Run(id=sys.argv[1], name='digits', owner='ada', recipe_json='{}', state='new',\n"
        "                       created_at=datetime.now(UTC)))\n"
    )
    ids = [f"run{number}" for number in range(6)]
    started = [
        subprocess.Popen([sys.executable, "-c", code, run], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for run in ids
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("g")
        process.stdin.flush()
    assert [process.communicate()[1] for process in started] == [""] * len(ids)
    with open_ledger(url) as ledger:
        assert sorted(run.id for run in ledger.list_runs()) == ids


def test_threads_that_open_a_new_ledger_at_once_all_succeed(url: str) -> None:
    barrier = threading.Barrier(6)

    def opened() -> int:
        barrier.wait()
        with open_ledger(url) as ledger:
            return len(ledger.list_runs())

    with ThreadPoolExecutor(6) as pool:
        assert [call.result() for call in [pool.submit(opened) for _ in range(6)]] == [0] * 6


def test_a_migration_that_is_cut_off_leaves_nothing_behind(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ledger_engine._upgrade

    def cut(*args: object) -> None:
        whole(*args)  # type: ignore[arg-type]
        raise BadInput("the power went")

    monkeypatch.setattr(ledger_engine, "_upgrade", cut)
    with pytest.raises(BadInput, match="the power went"):
        open_ledger(url)
    monkeypatch.undo()
    with open_ledger(url) as ledger:
        assert ledger.list_runs() == []


def test_every_table_can_be_made_on_postgresql() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    made = [str(CreateTable(table).compile(dialect=dialect)) for table in metadata.sorted_tables]
    assert len(made) == 7
    assert all("TIMESTAMP WITH TIME ZONE" in text for text in made)


def test_upserts_are_written_in_postgresqls_words() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    engine = create_engine("sqlite://")
    engine.dialect = dialect
    statement = Database(engine, clock=SystemClock()).upsert(
        metadata.tables["bills"], {"run_id": "a", "attempt": 1}, ["run_id", "attempt"]
    )
    assert "ON CONFLICT (run_id, attempt) DO UPDATE SET" in str(statement.compile(dialect=dialect))


# Many at once, and when it goes wrong


def test_threads_and_connections_write_together_and_lose_nothing(ledger: Ledger, url: str) -> None:
    def write(number: int) -> None:
        with open_ledger(url) as own:
            for step in range(10):
                own.add_run(a_run(f"r{number}x{step}"))
                own.update_run(f"r{number}x{step}", state="done")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(ledger.list_runs(states={"done"})) == 40


def test_a_ledger_that_cannot_be_written_says_where(ledger: Ledger) -> None:
    with ledger._database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE bills")
    with pytest.raises(GpujobsError, match=r"the ledger /.*/ledger\.db cannot be written: no such table"):
        ledger.put_bill(a_bill(1, 1.0))
    with pytest.raises(GpujobsError, match=r"the ledger /.*/ledger\.db cannot be read: no such table"):
        ledger.bills("k3x9")


def test_what_was_written_survives_a_kill(url: str) -> None:
    code = (
        "import os, signal\n"
        "from datetime import UTC, datetime\n"
        "from gpujobs.ledger import open_ledger\n"
        "from gpujobs.ledger_rows import Run\n"
        f"ledger = open_ledger({url!r})\n"
        "ledger.add_run(Run(id='k3x9', name='d', owner='a', recipe_json='', state='n', created_at=datetime.now(UTC)))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with open_ledger(url) as ledger:
        assert [run.id for run in ledger.list_runs()] == ["k3x9"]
