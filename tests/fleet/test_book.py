"""A fleet's calls stand in the ledger's table of tasks, many written at once, and no text of theirs among them."""

import functools
import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from gpujobs import Fleet, fleet_book
from gpujobs.cli.output import Output
from gpujobs.cli.tasks import failed_tasks, show_tasks
from gpujobs.errors import BadInput, Cancelled, GpujobsError, MachineLost, RemoteError
from gpujobs.fleet_book import Book, parameters_of
from gpujobs.ledger import Ledger, open_ledger
from gpujobs.ledger_rows import TaskRecord
from gpujobs.settings import Settings
from tests.clocks import eventually
from tests.cloud import GPUS, Control
from tests.ledger_values import a_run

LIMIT_S = 60
SECRET = "canary-71c"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(f"sqlite:///{tmp_path}/ledger.db") as opened:
        opened.add_run(a_run(kind="fleet"))
        yield opened


def booked(count: int) -> Book:
    book = Book("k3x9")
    for number in range(count):
        book.add(number, "{}")
    return book


def states(ledger: Ledger) -> list[tuple[str, str]]:
    return [(row.state, row.error) for row in ledger.tasks("k3x9")]


def test_each_state_of_a_call_is_written_and_no_text_of_its_own_error(ledger: Ledger) -> None:
    book = booked(7)
    book.began(1, "gj-ada-k3x9-1", 1)
    book.began(2, "gj-ada-k3x9-1", 1)
    book.waits(2)
    book.succeeded(3)
    for number, error in ((4, ValueError(SECRET)), (5, RemoteError(SECRET)), (6, MachineLost("it is gone"))):
        book.failed(number, error)
    book.write(ledger)
    assert states(ledger) == [
        ("waiting", ""),
        ("running", ""),
        ("waiting", ""),
        ("succeeded", ""),
        ("failed", "ValueError"),
        ("failed", "RemoteError"),
        ("lost", "it is gone"),
    ]
    book.failed(1, Cancelled("by its program"))
    book.dropped(0)
    book.write(ledger)
    assert states(ledger)[:2] == [("cancelled", ""), ("cancelled", "by its program")]


def test_what_the_ledger_refuses_is_written_the_next_time(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    book = booked(2)

    def refuse(*_: object) -> None:
        book.succeeded(1)  # meanwhile
        raise GpujobsError("its disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "put_tasks", refuse)
        with pytest.raises(GpujobsError, match="full"):
            book.write(ledger)
    book.write(ledger)
    assert states(ledger) == [("waiting", ""), ("succeeded", "")]


def test_the_thread_writes_on_and_at_the_end_whatever_the_ledger_says(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fleet_book, "EVERY_S", 0.01)
    book = booked(1)
    with book.kept(ledger):
        eventually(lambda: states(ledger) == [("waiting", "")], what="the first is written")
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "put_tasks", lambda *_: (_ for _ in ()).throw(GpujobsError("full")))
            book.began(0, "m", 1)
            eventually(lambda: "not up to date" in caplog.text, what="the trouble is told")
        book.succeeded(0)
    assert states(ledger) == [("succeeded", "")]


def test_calls_past_the_most_cost_nothing_and_stand_nowhere(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_book, "MOST", 2)
    book = booked(5)
    book.began(4, "m", 1)
    book.write(ledger)
    assert [row.number for row in ledger.tasks("k3x9")] == [0, 1]


def test_a_thousand_calls_that_wait_take_little_memory_and_none_once_they_are_written(ledger: Ledger) -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        book = booked(1000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2 * 2**20
    for number in range(1000):
        book.succeeded(number)
    book.write(ledger)
    assert {row.state for row in ledger.tasks("k3x9")} == {"succeeded"}
    assert book._rows == {}


class Model:
    def fit(self, lr: float, token: str, *, seed: int = 0) -> None: ...


def test_numbers_alone_are_shown_of_the_arguments() -> None:
    shown = json.loads(parameters_of(Model().fit, [1e-3, SECRET], {"seed": 7, "key": b"x", "big": 2**40}))
    assert shown == {"call": "Model.fit", "lr": 1e-3, "seed": 7}
    assert json.loads(parameters_of(max, [1, float("nan")], {"call": 3})) == {"call": "max"}
    assert json.loads(parameters_of(functools.partial(max, 1), [2], {})) == {"call": "partial"}
    assert json.loads(parameters_of(max, [[(1,)] * 9], {}, calls=9)) == {"call": "max", "calls": 9}


def test_a_long_table_shows_its_counts_and_what_is_at_work_or_went_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = TaskRecord(run_id="k3x9", number=0, state="succeeded")
    rows = [replace(base, number=number) for number in range(300)]
    rows[7] = replace(rows[7], state="failed", error="ValueError")
    show_tasks(rows, Output(json=False))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "300 tasks: 299 succeeded, 1 failed"
    assert [line.split()[:2] for line in told[1:]] == [["TASK", "STATE"], ["7", "failed"]]


def test_a_fleet_is_refused_where_its_tasks_are_to_be_done_again(ledger: Ledger) -> None:
    with pytest.raises(BadInput, match="whose tasks its program knows"):
        failed_tasks(ledger, ledger.get_run("k3x9"))


@pytest.mark.usefixtures("control")
def test_the_calls_of_a_fleet_stand_in_its_table(work: ModuleType, cloud_settings: Settings, control: Control) -> None:
    with Fleet({"accelerators": GPUS["matrixdc"], "infra": "matrixdc"}, machines=1) as pool:
        futures = [pool.submit(work.square, 3), pool.submit(work.fail, SECRET), pool.submit(work.wait_for, SECRET)]
        dropped = pool.submit(work.square, 4)
        assert dropped.cancel()
        eventually(futures[2].running, what="the third is at work")
        wanted = ["succeeded", "failed", "running"]
        with open_ledger(cloud_settings.database_url) as ledger:
            eventually(
                lambda: wanted == [one.state for one in ledger.tasks(pool.run_id)][:3],
                what="it is written while the fleet works",
            )
        pool.cancel()
    with open_ledger(cloud_settings.database_url) as ledger:
        rows = ledger.tasks(pool.run_id)
        kind = ledger.get_run(pool.run_id).kind
    assert (kind, [row.state for row in rows]) == ("fleet", ["succeeded", "failed", "cancelled", "cancelled"])
    assert [json.loads(row.parameters) for row in rows] == [
        {"call": "square", "x": 3},
        {"call": "fail"},
        {"call": "wait_for"},
        {"call": "square", "x": 4},
    ]
    assert (rows[1].error, rows[0].machine, rows[0].tries) == ("Odd", control.machines()[0]["name"], 1)
    assert all(row.began_at and row.ended_at and row.began_at <= row.ended_at for row in rows[:3])
    assert SECRET not in repr(rows)
    assert control.left() == []
