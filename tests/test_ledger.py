"""What the ledger remembers of runs, and who may drive one."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from gpujobs import ledger_glance
from gpujobs.errors import BadInput, Busy
from gpujobs.ledger import Ledger, open_ledger
from gpujobs.ledger_rows import ENDED, SnapshotRecord
from gpujobs.models import Event, MachineStatus
from tests.ledger_values import MINUTE, NOW, a_bill, a_machine, a_run, an_attempt


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


def test_a_connection_that_is_in_use_when_the_ledger_closes_is_closed_as_it_comes_back(url: str) -> None:
    ledger = open_ledger(url)
    with ledger._database.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        ledger.close()
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    with pytest.raises(Exception, match="closed"):
        raw.cursor()


# Runs


def test_a_run_comes_back_as_it_was_written(ledger: Ledger) -> None:
    run = a_run(
        started_at=NOW,
        ended_at=NOW + MINUTE,
        exit_code=137,
        error="killed, 被杀",
        cost_cny=1.25,
        estimate_cny=2.5,
        flow_run_id="f",
        workdir="/home/ada/digits",
    )
    ledger.add_run(run)
    assert ledger.get_run(run.id) == run


def test_times_come_back_in_utc_whatever_zone_they_were_written_in(ledger: Ledger) -> None:
    ledger.add_run(a_run())
    shanghai = NOW.astimezone(timezone(timedelta(hours=8)))
    ledger.update_run("k3x9", started_at=shanghai)
    ledger.request_cancel("k3x9", shanghai)
    run = ledger.get_run("k3x9")
    assert (run.started_at, run.cancel_requested_at) == (NOW, NOW)
    assert run.started_at is not None
    assert run.started_at.tzinfo is UTC


def test_a_time_without_a_zone_is_refused(ledger: Ledger) -> None:
    with pytest.raises(Exception, match="has no time zone"):
        ledger.add_run(a_run(created_at=NOW.replace(tzinfo=None)))


def test_a_run_is_found_by_id_by_latest_name_and_by_prefix(ledger: Ledger) -> None:
    for run in (a_run("aaaa1"), a_run("aaab2", created_at=NOW + MINUTE), a_run("cccc3", name="aaaa")):
        ledger.add_run(run)
    found = {ref: ledger.get_run(ref).id for ref in ("aaaa1", "digits", "aaab", "aaaa", "c")}
    assert found == {"aaaa1": "aaaa1", "digits": "aaab2", "aaab": "aaab2", "aaaa": "cccc3", "c": "cccc3"}


def test_a_prefix_of_several_runs_names_them(ledger: Ledger) -> None:
    ledger.add_run(a_run("aaaa1"))
    ledger.add_run(a_run("aaab2", created_at=NOW + MINUTE))
    with pytest.raises(BadInput, match="aaa is the beginning of several runs: aaab2, aaaa1"):
        ledger.get_run("aaa")


@pytest.mark.parametrize(("ref", "words"), [("digitz", "the nearest: digits"), ("", "gpujobs ls"), ("%", "gpujobs ls")])
def test_a_run_that_is_not_there_names_the_nearest(ledger: Ledger, ref: str, words: str) -> None:
    ledger.add_run(a_run())
    with pytest.raises(BadInput, match=words):
        ledger.get_run(ref)


def test_runs_are_listed_newest_first_and_by_state_and_owner(ledger: Ledger) -> None:
    for number, (state, owner) in enumerate([("new", "ada"), ("done", "ada"), ("new", "bob")]):
        ledger.add_run(a_run(f"run{number}", state=state, owner=owner, created_at=NOW + number * MINUTE))
    assert [run.id for run in ledger.list_runs()] == ["run2", "run1", "run0"]
    assert [run.id for run in ledger.list_runs(limit=1)] == ["run2"]
    assert [run.id for run in ledger.list_runs(states={"new"})] == ["run2", "run0"]
    assert [run.id for run in ledger.list_runs(states={"new"}, owner="ada")] == ["run0"]


@pytest.mark.parametrize("question", [{}, {"limit": 2}, {"states": ["new", "done"]}, {"owner": "ada", "limit": 1}])
def test_the_quick_list_gives_what_the_ledger_gives(ledger: Ledger, url: str, question: dict[str, Any]) -> None:
    ledger.add_run(a_run("run0", started_at=NOW, lease_until=NOW + MINUTE, cost_cny=0.1, state="done"))
    ledger.add_run(a_run("run1", owner="bob", ended_at=NOW, cancel_requested_at=NOW))
    ledger.add_run(a_run("run2", created_at=NOW.replace(microsecond=0) + MINUTE, state="lost"))
    listed = ledger.list_runs(**question)
    assert listed
    assert ledger_glance.list_runs(url, **question) == listed


def test_the_quick_list_loads_no_sqlalchemy(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/home/ledger.db"
    open_ledger(url).close()
    code = (
        f"import sys; from gpujobs.ledger_glance import list_runs as f; print(f({url!r}), 'sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n"


def test_the_quick_list_leaves_another_revision_to_the_ledger(ledger: Ledger, url: str) -> None:
    with ledger._database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BadInput, match="newer gpujobs"):
        ledger_glance.list_runs(url)


def test_the_quick_list_makes_an_absent_ledger_and_refuses_what_is_none(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/home/ledger.db"
    assert ledger_glance.list_runs(url) == []
    assert (tmp_path / "home/ledger.db").exists()
    (tmp_path / "letter").write_text("not a database, but a letter to a friend\n" * 40)
    with pytest.raises(BadInput, match="cannot be opened as a ledger"):
        ledger_glance.list_runs(f"sqlite:///{tmp_path}/letter")


def test_an_id_that_is_taken_is_refused(ledger: Ledger) -> None:
    ledger.add_run(a_run())
    with pytest.raises(Busy, match="run k3x9"):
        ledger.add_run(a_run())


def test_a_change_to_what_is_not_there_is_refused(ledger: Ledger) -> None:
    with pytest.raises(BadInput, match="has no run nope"):
        ledger.update_run("nope", state="done")
    with pytest.raises(BadInput, match="has no machine nope"):
        ledger.mark_gone("nope", NOW)


# Who drives a run


def claim(ledger: Ledger, driver: str, *, at: datetime = NOW, unended: bool = False) -> int | None:
    return ledger.claim_run("k3x9", driver, lease_s=60, now=at, unended=unended)


def test_one_driver_at_a_time_holds_a_run(ledger: Ledger) -> None:
    ledger.add_run(a_run())
    assert [claim(ledger, driver) for driver in ("a", "a", "b")] == [1, 2, None]
    assert not ledger.renew("k3x9", 1, lease_s=60, now=NOW)
    ledger.release_claim("k3x9", "b")
    ledger.release_claim("k3x9", "a", token=1)
    assert ledger.renew("k3x9", 2, lease_s=60, now=NOW)
    ledger.release_claim("k3x9", "a", token=2)
    assert not ledger.renew("k3x9", 2, lease_s=60, now=NOW)
    assert claim(ledger, "b") == 3


def test_an_expired_lease_can_be_taken_and_the_old_driver_notices(ledger: Ledger) -> None:
    ledger.add_run(a_run())
    assert claim(ledger, "a") == 1
    assert claim(ledger, "b", at=NOW + timedelta(seconds=59)) is None
    assert claim(ledger, "b", at=NOW + timedelta(seconds=61)) == 2
    assert not ledger.renew("k3x9", 1, lease_s=60, now=NOW + timedelta(seconds=61))


@pytest.mark.parametrize("state", sorted(ENDED))
def test_a_run_that_is_over_is_taken_only_by_who_would_begin_it_anew(ledger: Ledger, state: str) -> None:
    ledger.add_run(a_run(state=state))
    assert claim(ledger, "reaper", unended=True) is None
    assert claim(ledger, "retry") == 1


def every_write(ledger: Ledger) -> dict[str, Callable[[], object]]:
    name = "gj-ada-k3x9-1"
    event = Event(machine_id="m", unit="", status=MachineStatus.RUNNING, raw_status="running", at=NOW)
    saved = SnapshotRecord(
        name="e", tag="v", backend="autodl", region="r", image="i", run_id="k3x9", made_at=NOW, state="saved"
    )
    return {
        "update_run": lambda: ledger.update_run("k3x9", state="running"),
        "add_attempt": lambda: ledger.add_attempt(an_attempt(number=2)),
        "update_attempt": lambda: ledger.update_attempt(name, state="working"),
        "intend": lambda: ledger.intend(a_machine(number=2)),
        "record_created": lambda: ledger.record_created(name, "uuid-1"),
        "settle_never_made": lambda: ledger.settle_never_made(name),
        "update_machine": lambda: ledger.update_machine(name, unit="c-1"),
        "mark_gone": lambda: ledger.mark_gone(name, NOW),
        "add_event": lambda: ledger.add_event(name, event, seen_at=NOW),
        "put_bill": lambda: ledger.put_bill(a_bill(1, 1.0)),
        "add_snapshot": lambda: ledger.add_snapshot(saved),
        "check_hold": ledger.check_hold,
    }


def test_every_write_of_a_driver_is_refused_once_another_has_claimed_the_run(rented: Ledger) -> None:
    held = rented.held("k3x9", claim(rented, "frozen") or 0)
    for write in every_write(held).values():
        write()
    claim(rented, "next", at=NOW + timedelta(seconds=61))
    before = everything(rented)
    for write in every_write(held).values():
        with pytest.raises(Busy, match="run k3x9 was taken over by another process"):
            write()
    assert everything(rented) == before


def everything(ledger: Ledger) -> list[object]:
    run = "k3x9"
    return [
        ledger.get_run(run),
        ledger.attempts(run),
        ledger.machines(run),
        ledger.events(run),
        ledger.bills(run),
        ledger.snapshots(),
    ]


def test_a_claim_waits_for_the_write_that_it_makes_stale(rented: Ledger, url: str) -> None:
    """Else the write would be seen after the claim: checked before it, and done after it."""
    held = rented.held("k3x9", claim(rented, "frozen") or 0)
    checked, claimed, order = threading.Event(), threading.Event(), list[str]()

    def write_slowly() -> None:
        def slowly(connection: Connection) -> None:
            checked.set()
            claimed.wait(0.5)  # a claim that does not wait is done within
            order.append("written")
            connection.exec_driver_sql("UPDATE runs SET detail = 'slow' WHERE id = 'k3x9'")

        held._database._write(slowly, "run k3x9")

    with ThreadPoolExecutor(1) as pool, open_ledger(url) as other:
        writing = pool.submit(write_slowly)
        assert checked.wait(30)
        assert claim(other, "next", at=NOW + timedelta(seconds=61)) == 2
        order.append("claimed")
        claimed.set()
        writing.result()
    assert order == ["written", "claimed"]


def test_of_many_that_claim_a_run_at_once_one_gets_it(ledger: Ledger) -> None:
    ledger.add_run(a_run())
    barrier = threading.Barrier(8)

    def try_it(driver: str) -> int | None:
        barrier.wait()
        return claim(ledger, driver)

    with ThreadPoolExecutor(8) as pool:
        tokens = list(pool.map(try_it, [f"driver{number}" for number in range(8)]))
    assert sorted(tokens, key=bool) == [None] * 7 + [1]


def test_a_cancel_is_seen_by_another_process_and_its_first_time_stays(ledger: Ledger, url: str) -> None:
    ledger.add_run(a_run())
    assert not ledger.cancel_requested("k3x9")
    with open_ledger(url) as other:
        other.request_cancel("k3x9", NOW)
        other.request_cancel("k3x9", NOW + MINUTE)
    assert ledger.cancel_requested("k3x9")
    assert ledger.get_run("k3x9").cancel_requested_at == NOW


# Kinds


def test_runs_of_an_older_ledger_get_the_kind_that_their_recipes_tell(ledger: Ledger, url: str) -> None:
    recipes = {
        "job": r"""{"run": "echo \"matrix\":{\"a", "matrix":{},"tasks":[]}""",
        "fleet": r"""{"run":"# the machines of a fleet of gpujobs: tasks come to them over SSH\ngj_refuse"}""",
        "tasks": r"""{"matrix":{},"tasks":[{"LR":"1"}],"run":"true"}""",
        "matrix": r"""{"matrix":{"LR":["1"]},"tasks":[],"run":"true"}""",
    }
    for name, text in recipes.items():
        ledger.add_run(a_run(name, recipe_json=text, kind="fleet"))
    with ledger._database.engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.exec_driver_sql("ALTER TABLE runs DROP COLUMN kind")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0003'")
    with open_ledger(url) as migrated:
        kinds = {run.id: run.kind for run in migrated.list_runs()}
    assert kinds == {"job": "job", "fleet": "fleet", "tasks": "tasks", "matrix": "tasks"}
