"""Finding out what an unclear create made, ending what was rented, and the bill. Used by a run and by the reaper."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from gpujobs.backends import Backend
from gpujobs.clock import StopToken, backoff
from gpujobs.errors import MachineLost, NotFound, Refused, Unavailable
from gpujobs.host import Host
from gpujobs.ledger_rows import Bill, MachineRecord
from gpujobs.models import Machine, MachineStatus
from gpujobs.plan import price_bound
from gpujobs.recipe import Recipe

_log = logging.getLogger(__name__)
COSTS_NOTHING = frozenset({MachineStatus.ENDED, MachineStatus.GONE})


def settle(host: Host, backend: Backend, name: str, *, window_s: float, stop: StopToken) -> Machine | None:
    """Look for what an unclear create made, until it shows up or the window has passed.

    One machine is adopted: the first that shows up. Surplus ones of the same name are released.
    The answer None needs one look that succeeded after the window's end. Raises Unavailable when none did.
    """
    started = host.clock.monotonic()
    for wait_s in backoff(0.5, 3.0, dice=host.dice):
        past = host.clock.monotonic() - started >= window_s
        try:
            found = named(backend, name)
        except Unavailable as error:
            if past:
                raise Unavailable(f"{error}; whether {name} was made is not known yet, the reaper will see") from error
        else:
            if found:
                return _adopt_one(backend, found)
            if past:
                return None
        stop.sleep(host.clock, wait_s)
    raise AssertionError("backoff never ends")  # for the type checker


def named(backend: Backend, name: str) -> Sequence[Machine]:
    """List the machines of exactly this name that may cost money."""
    found = [machine for machine in backend.find(name) if machine.name == name and machine.status not in COSTS_NOTHING]
    return sorted(found, key=lambda machine: (machine.created_at is None, machine.created_at, machine.id))


def _adopt_one(backend: Backend, found: Sequence[Machine]) -> Machine:
    for surplus in found[1:]:
        _log.warning("%s made %s twice; releasing %s", backend.name, surplus.name, surplus.id)
        backend.release(surplus)
    return found[0]


def release(host: Host, backend: Backend, machine: Machine, *, within_s: float) -> None:
    """Release `machine` and wait until the provider's own list has it no longer; then write that down, and the bill.

    Raises:
        MachineLost: it is still listed after `within_s`, or the provider could not be asked. The ledger
            still holds it, so that the reaper goes on.
    """
    if host.ledger.machine(machine.name) is not None:  # the reaper also releases what this ledger never knew
        host.ledger.update_machine(machine.name, released_at=host.clock.now())
    deadline = host.clock.monotonic() + within_s
    trouble = "it is still listed"
    for wait_s in backoff(0.3, 5.0, dice=host.dice):
        try:
            _ask_for_the_end(host, backend, machine, deadline)
            if not named(backend, machine.name):
                mark_gone(host, machine.name)
                return
            trouble = "it is still listed"
        except (Unavailable, Refused) as error:
            trouble = str(error)
        if host.clock.monotonic() >= deadline:
            break
        StopToken().sleep(host.clock, max(0.1, wait_s))
    raise MachineLost(
        f"{machine.name} ({backend.name} {machine.id}) could not be confirmed gone: {trouble}; "
        "it may still cost money. Run: gpujobs reap"
    )


def _ask_for_the_end(host: Host, backend: Backend, machine: Machine, deadline: float) -> None:
    """Release; where a provider wants a machine switched off first, switch it off first."""
    try:
        backend.release(machine)
    except NotFound:
        return
    except Refused as refused:
        _log.info("%s would not release %s yet: %s", backend.name, machine.id, refused)
        backend.power_off(machine)
        wait_off(host, backend, machine, deadline=deadline)
        backend.release(machine)


def wait_off(
    host: Host,
    backend: Backend,
    machine: Machine,
    *,
    deadline: float,
    tick: Callable[[Machine], None] | None = None,
    stop: StopToken | None = None,
) -> None:
    """Wait until the provider says that the machine is off, or until `stop` raises its reason.

    Raises Unavailable past the deadline (on the host's monotonic clock), MachineLost when it is gone.
    """
    stop = stop or StopToken()
    for wait_s in backoff(0.5, 5.0, dice=host.dice):
        try:
            seen = backend.refresh(machine)
        except NotFound as error:
            raise MachineLost(f"{machine.name} vanished while it was switched off") from error
        except Unavailable as error:
            _log.info("waiting for %s to be off: %s", machine.name, error)
        else:
            if seen.status in {MachineStatus.OFF, MachineStatus.ENDED}:
                return
            if tick:
                tick(seen)
        if host.clock.monotonic() >= deadline:
            raise Unavailable(f"{backend.name} did not switch {machine.name} off in time")
        stop.sleep(host.clock, max(0.2, wait_s))


def mark_gone(host: Host, name: str) -> None:
    """Write down that the provider lists a machine no longer, and what it cost until now."""
    record, now = host.ledger.machine(name), host.clock.now()
    if record is not None:
        host.ledger.mark_gone(name, at=now)
        bill(host, record, until_at=now)


def spent_cny(host: Host, recipe: Recipe, run_id: str) -> float:
    """Give what a run has cost until now: its bills, and what its machines without one have cost at the most."""
    billed = {one.attempt: one.cost_cny or 0.0 for one in host.ledger.bills(run_id)}
    now, spent = host.clock.now(), sum(billed.values())
    for row in host.ledger.machines(run_id):
        if row.alive and row.id is not None and row.attempt not in billed:
            since = row.running_at or row.created_at or row.intent_at
            price = price_bound(recipe, row.price_cny_per_h) or 0.0
            spent += max(0.0, (now - since).total_seconds()) / 3600 * price
    return spent


def bill(host: Host, row: MachineRecord, *, until_at: datetime) -> None:
    """Write what the machine cost as far as we know: seconds from its creation × price; unknown stays unknown."""
    from_at = row.running_at or row.created_at
    seconds = (until_at - from_at).total_seconds() if from_at else 0.0 if row.id is None else None
    price = row.price_cny_per_h
    cost = 0.0 if seconds == 0 else None if price is None or seconds is None else seconds / 3600 * price
    host.ledger.put_bill(
        Bill(
            run_id=row.run_id,
            attempt=row.attempt,
            seconds=seconds,
            price_cny_per_h=price,
            cost_cny=cost,
            from_at=from_at,
            until_at=until_at,
        )
    )
