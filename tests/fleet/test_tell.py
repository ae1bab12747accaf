"""Futures end in order on one thread, and on others where a callback stays; whatever one does, the next come."""

import threading
from functools import partial

import pytest

from gpujobs.fleet_tell import Teller
from tests.clocks import eventually

LIMIT_S = 60


def test_calls_come_in_order_on_one_thread() -> None:
    teller, came = Teller("tell", stays_s=LIMIT_S), list[tuple[int, int]]()

    def call(number: int) -> None:
        came.append((number, threading.get_ident()))

    for first in range(0, 300, 3):
        teller.tell(partial(call, number) for number in range(first, first + 3))
    teller.close()
    assert [number for number, _ in came] == list(range(300))
    assert len({thread for _, thread in came}) == 1


def test_behind_calls_that_stay_the_next_get_other_threads_and_close_waits_for_all() -> None:
    teller, let_go, came = Teller("tell"), threading.Event(), list[bool]()
    for _ in range(2):
        teller.tell([lambda: came.append(let_go.wait(LIMIT_S))])
    done = threading.Event()
    teller.tell([done.set])
    eventually(lambda: teller.look() or done.is_set(), what="the third is called")
    assert came == []
    teller.tell([let_go.set])
    teller.close()
    assert came == [True, True]
    assert not teller.is_here


def test_a_callback_that_ends_its_thread_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    teller, came, threads = Teller("tell"), list[int](), list[threading.Thread]()

    def leave() -> None:
        threads.append(threading.current_thread())
        raise SystemExit

    teller.tell([leave, lambda: came.append(1)])
    teller.close()
    assert came == [1]
    threads[0].join(LIMIT_S)  # it has met the hook above
    assert not threads[0].is_alive()
