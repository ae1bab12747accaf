"""What the ledger remembers of attempts, machines, events, money, snapshots and tasks."""

from dataclasses import asdict, replace

import pytest

from gpujobs.errors import BadInput, Busy
from gpujobs.ledger import Ledger
from gpujobs.ledger_rows import EventRecord, SnapshotRecord, TaskRecord
from gpujobs.models import Event, MachineStatus
from tests.ledger_values import MINUTE, NOW, a_bill, a_machine, a_run, an_attempt

# Attempts and machines


def test_a_text_with_a_nul_is_kept_without_it(rented: Ledger) -> None:
    rented.update_attempt("gj-ada-k3x9-1", error="what\0ever")
    assert rented.attempts("k3x9")[0].error == "what\N{REPLACEMENT CHARACTER}ever"


def test_an_attempt_comes_back_with_its_changes(ledger: Ledger) -> None:
    ledger.add_run(a_run())
    ledger.add_attempt(an_attempt(number=2))
    ledger.add_attempt(an_attempt())
    ledger.update_attempt("gj-ada-k3x9-1", state="ended", exit_code=0, log_sha256="ab", rented_from=NOW)
    first = replace(an_attempt(), state="ended", exit_code=0, log_sha256="ab", rented_from=NOW)
    assert ledger.attempts("k3x9") == [first, an_attempt(number=2)]


def test_an_attempt_of_no_run_and_a_second_one_of_the_same_number_are_refused(ledger: Ledger) -> None:
    with pytest.raises(Busy, match=r"(?i)foreign key"):
        ledger.add_attempt(an_attempt())
    ledger.add_run(a_run())
    ledger.add_attempt(an_attempt())
    with pytest.raises(Busy, match="gj-ada-k3x9-1"):
        ledger.add_attempt(an_attempt())


def test_an_open_intent_counts_as_alive_until_it_is_settled(rented: Ledger) -> None:
    assert rented.machines_alive() == [a_machine()]
    rented.settle_never_made("gj-ada-k3x9-1")
    assert rented.machines_alive() == []


def test_a_made_machine_is_alive_until_it_is_gone_and_the_first_time_stays(rented: Ledger) -> None:
    rented.record_created("gj-ada-k3x9-1", "uuid-1", unit="c-1", price_cny_per_h=2.0)
    made = a_machine(id="uuid-1", unit="c-1", price_cny_per_h=2.0, settled=True)
    assert rented.machines_alive() == [made]
    rented.update_machine("gj-ada-k3x9-1", released_at=NOW)
    assert [machine.alive for machine in rented.machines_alive()] == [True]
    rented.mark_gone("gj-ada-k3x9-1", NOW)
    rented.mark_gone("gj-ada-k3x9-1", NOW + MINUTE)
    gone = replace(made, released_at=NOW, gone_at=NOW, status="gone")
    assert (rented.machine("gj-ada-k3x9-1"), rented.machines_alive()) == (gone, [])


def test_machines_alive_can_be_asked_for_one_owner(rented: Ledger) -> None:
    assert [machine.name for machine in rented.machines_alive("ada")] == ["gj-ada-k3x9-1"]
    assert rented.machines_alive("bob") == []
    assert rented.machine("gj-bob-k3x9-1") is None


def test_the_python_and_the_sql_view_of_alive_agree(ledger: Ledger) -> None:
    ledger.add_run(a_run())
    shapes = [(made, settled, gone) for made in (None, "id") for settled in (False, True) for gone in (None, NOW)]
    for number, (made, settled, gone) in enumerate(shapes, start=1):
        ledger.add_attempt(an_attempt(number=number))
        ledger.intend(a_machine(number=number, id=made, settled=settled, gone_at=gone))
    alive = [machine for machine in ledger.machines("k3x9") if machine.alive]
    assert list(ledger.machines_alive()) == alive
    assert len(alive) == 3


# Events


def test_an_event_is_kept_once_and_in_the_order_heard(rented: Ledger) -> None:
    later = Event(machine_id="m", unit="", status=MachineStatus.RUNNING, raw_status="running", at=NOW + MINUTE)
    first = Event(machine_id="m", unit="", status=MachineStatus.BOOTING, raw_status="starting", at=None)
    heard = [rented.add_event("gj-ada-k3x9-1", event, seen_at=NOW) for event in (later, first, later)]
    assert heard == [True, True, False]
    assert rented.events("k3x9") == [
        EventRecord(
            machine="gj-ada-k3x9-1",
            key='["m", "", "running", "2026-11-21T10:01:00.123456+00:00"]',
            status="running",
            raw="running",
            at=NOW + MINUTE,
            seen_at=NOW,
        ),
        EventRecord(
            machine="gj-ada-k3x9-1",
            key='["m", "", "starting", ""]',
            status="booting",
            raw="starting",
            at=None,
            seen_at=NOW,
        ),
    ]


def test_an_event_of_a_machine_that_was_never_intended_is_refused(rented: Ledger) -> None:
    event = Event(machine_id="m", unit="", status=MachineStatus.RUNNING, raw_status="running", at=NOW)
    with pytest.raises(Busy, match="event of gj-ada-zzzz-1"):
        rented.add_event("gj-ada-zzzz-1", event, seen_at=NOW)


def test_events_of_two_machines_are_told_in_the_order_heard(rented: Ledger) -> None:
    rented.add_attempt(an_attempt(number=2))
    rented.intend(a_machine(number=2))
    for number in (2, 1, 2, 1):
        at = NOW + len(rented.events("k3x9")) * MINUTE
        event = Event(machine_id="m", unit="", status=MachineStatus.RUNNING, raw_status="running", at=at)
        rented.add_event(f"gj-ada-k3x9-{number}", event, seen_at=NOW)
    assert [event.machine[-1] for event in rented.events("k3x9")] == ["2", "1", "2", "1"]


def test_the_same_event_of_two_machines_is_two_events(rented: Ledger) -> None:
    rented.add_attempt(an_attempt(number=2))
    rented.intend(a_machine(number=2))
    event = Event(machine_id="m", unit="", status=MachineStatus.RUNNING, raw_status="running", at=NOW)
    assert rented.add_event("gj-ada-k3x9-1", event, seen_at=NOW)
    assert rented.add_event("gj-ada-k3x9-2", event, seen_at=NOW)


# Money


def test_a_run_that_rented_nothing_costs_nothing(ledger: Ledger) -> None:
    ledger.add_run(a_run())
    assert ledger.cost_cny("k3x9") == 0.0


def test_bills_are_summed_and_replaced_by_attempt(rented: Ledger) -> None:
    rented.add_attempt(an_attempt(number=2))
    rented.put_bill(a_bill(1, 1.0))
    rented.put_bill(a_bill(2, 0.5))
    rented.put_bill(a_bill(1, 2.0))
    assert rented.bills("k3x9") == [a_bill(1, 2.0), a_bill(2, 0.5)]
    assert rented.cost_cny("k3x9") == 2.5


def test_an_unknown_part_makes_the_cost_unknown_never_zero(rented: Ledger) -> None:
    assert rented.cost_cny("k3x9") is None  # an open intent, not billed yet
    rented.put_bill(a_bill(1, None))
    assert rented.cost_cny("k3x9") is None
    rented.put_bill(a_bill(1, 1.0))
    assert rented.cost_cny("k3x9") == 1.0


def test_an_intent_that_came_to_nothing_adds_nothing(rented: Ledger) -> None:
    rented.settle_never_made("gj-ada-k3x9-1")
    assert rented.cost_cny("k3x9") == 0.0


# Snapshots


def test_a_snapshot_is_found_by_tag_or_as_the_latest_of_its_name(rented: Ledger) -> None:
    old = SnapshotRecord(
        name="env", tag="v1", backend="matrixdc", region="r", image="i:v1", run_id="k3x9", made_at=NOW, state="saved"
    )
    new = replace(old, tag="v2", image="i:v2", made_at=NOW + MINUTE)
    rented.add_snapshot(new)
    rented.add_snapshot(replace(old, state="saving"))
    rented.add_snapshot(old)
    assert rented.find_snapshot("env") == new
    assert rented.find_snapshot("env", "v1") == old
    assert rented.find_snapshot("env", backend="autodl") is None
    assert rented.find_snapshot("nope") is None
    assert rented.snapshots() == [new, old]


# Tasks


def test_tasks_are_written_once_and_told_by_their_indices(rented: Ledger) -> None:
    found = [TaskRecord(run_id="k3x9", number=number, parameters='{"LR": "1"}') for number in range(250)]
    rented.add_tasks(found[::-1])
    ended = replace(
        found[3],
        state="succeeded",
        tries=2,
        machine="gj-ada-k3x9-1",
        exit_code=0,
        metrics='{"a": 1}',
        began_at=NOW,
        ended_at=NOW + MINUTE,
    )
    changes = {name: value for name, value in asdict(ended).items() if value != getattr(found[3], name)}
    rented.update_task("k3x9", 3, **changes)  # type: ignore[arg-type] # they are of the record
    rented.add_tasks(found)
    assert rented.tasks("k3x9") == [*found[:3], ended, *found[4:]]
    assert rented.tasks("other") == []
    with pytest.raises(BadInput, match="no task 250 of k3x9"):
        rented.update_task("k3x9", 250, state="running")


def test_tasks_are_written_over_those_of_their_numbers_many_at_once(rented: Ledger) -> None:
    found = [TaskRecord(run_id="k3x9", number=number, parameters='{"f": "\\u0000"}') for number in range(600)]
    rented.put_tasks(found)
    ended = [replace(one, state="failed", tries=1, error="x", began_at=NOW, ended_at=NOW) for one in found[::2]]
    rented.put_tasks(ended)
    assert rented.tasks("k3x9") == sorted([*found[1::2], *ended], key=lambda one: one.number)
    rented.put_tasks([])


def test_who_lost_the_run_writes_no_task(rented: Ledger) -> None:
    rented.add_tasks([TaskRecord(run_id="k3x9", number=0)])
    token = rented.claim_run("k3x9", "a", lease_s=-1, now=NOW)
    assert token is not None
    rented.claim_run("k3x9", "b", lease_s=60, now=NOW)
    with pytest.raises(Busy):
        rented.held("k3x9", token).update_task("k3x9", 0, state="succeeded")
    with pytest.raises(Busy):
        rented.held("k3x9", token).put_tasks([TaskRecord(run_id="k3x9", number=0, state="succeeded")])
    assert rented.tasks("k3x9")[0].state == "waiting"
