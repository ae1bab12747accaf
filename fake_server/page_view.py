"""What the page shows, taken from the world in one moment. No HTTP and no HTML here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from itertools import groupby, islice

from fake_server.matrixdc_types import Instance
from fake_server.rows import CallRow
from fake_server.truth import MachineTruth
from fake_server.wire import CHINA
from fake_server.world import World

_EVENTS = 30
_CALLS = 30
_CALLS_READ = 2000
_GONE = 20
_GONE_STATUS = "gone"
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One machine."""

    provider: str
    name: str
    id: str
    gpu: str
    region: str
    status: str
    tone: str
    age: str
    cny_per_h: float
    cost_cny: float
    powered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """A machine reached a status."""

    at: str
    machine: str
    status: str
    tone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLine:
    """API calls of one kind in a row: `what` is the published name, `call` the latest one's method and path."""

    at: str
    what: str
    call: str
    answer: str
    tone: str
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that the page shows of the world."""

    now: str
    speed: float
    isolation: str
    alive: Sequence[Row]
    gone: Sequence[Row]
    gone_count: int
    waiting: Sequence[str]
    events: Sequence[Happening]
    calls: Sequence[CallLine]
    call_count: int
    running_cny_per_h: float
    spent_cny: float
    stock: Sequence[tuple[str, str, str]]


def view(world: World) -> View:
    """Look at the world."""
    ground = world.ground
    isolation = ground.containers.isolation
    with ground.lock:
        now = ground.timeline.now()
        rows = [_row(machine, world, now) for machine in ground.truth.machines.values()]
        alive = [row for row in rows if row.status != _GONE_STATUS]
        gone = [row for row in rows if row.status == _GONE_STATUS]
        return View(
            now=_clock(now, with_day=True),
            speed=ground.timeline.speed,
            isolation=isolation,
            alive=alive,
            gone=gone[: -_GONE - 1 : -1],
            gone_count=len(gone),
            waiting=list(_waiting(world)),
            events=[*_events(world)],
            calls=list(_calls(ground.call_log.calls)),
            call_count=ground.call_log.total,
            running_cny_per_h=sum(row.cny_per_h for row in alive if row.powered),
            spent_cny=sum(row.cost_cny for row in rows),
            stock=list(_stock(world)),
        )


def _row(machine: MachineTruth, world: World, now: float) -> Row:
    truth, status = machine.as_json(now), _status(machine, world)
    until = now if machine.gone_at is None else machine.gone_at
    return Row(
        provider="AutoDL" if machine.provider == "autodl" else "MatrixDC",
        name=machine.name,
        id=machine.id,
        gpu=f"{machine.gpu} × {machine.gpu_count}",
        region=machine.region,
        status=status,
        tone=_tone(status),
        age=_span(until - machine.made_at),
        cny_per_h=machine.price_cny_per_h,
        cost_cny=truth["cost_cny"],
        powered=truth["powered"],
    )


def _status(machine: MachineTruth, world: World) -> str:
    if machine.gone_at is not None:
        return _GONE_STATUS
    if machine.provider == "autodl" and machine.id in world.autodl.containers:
        return world.autodl.containers[machine.id].status
    if machine.id in world.matrixdc.instances:
        return world.matrixdc.instances[machine.id].status
    return "ending"


def _tone(status: str) -> str:
    word = status.lower()
    if word == "running":
        return "good"
    if word == "failed":
        return "bad"
    if word in {"shutdown", _GONE_STATUS, "in_cache"}:
        return "quiet"
    return "busy"


def _waiting(world: World) -> Iterator[str]:
    busy = {each.deployment.uuid for each in world.autodl.containers.values() if not each.ended}
    for deployment in world.autodl.deployments.values():
        if deployment.status == "running" and deployment.uuid not in busy:
            gpus = " or ".join(deployment.template.gpu_names)
            yield f"{deployment.name} ({deployment.kind}, {gpus}) has no container"


def _events(world: World) -> Iterator[Happening]:
    newest = reversed(world.autodl.events[-_EVENTS:])
    found: list[tuple[float, str, str]] = [(each.at, each.container_uuid, each.status) for each in newest]
    found += [(_touched_at(box), box.name, box.status) for box in world.matrixdc.instances.values()]
    names = world.ground.truth.machines
    for at, machine_id, status in sorted(found, key=lambda each: each[0], reverse=True)[:_EVENTS]:
        name = names[machine_id].name if machine_id in names else machine_id
        yield Happening(at=_clock(at), machine=name, status=status, tone=_tone(status))


def _touched_at(box: Instance) -> float:
    return box.created_at if box.updated_at is None else box.updated_at


def _calls(calls: Sequence[CallRow]) -> Iterator[CallLine]:
    """Tell the latest calls, newest first; polls that were answered alike are one row."""
    alike = groupby(islice(reversed(calls), _CALLS_READ), key=lambda each: (each["endpoint"], _answer(each)))
    for (_, answer), group in islice(alike, _CALLS):
        latest, *others = group
        call = f"{latest['method']} {latest['path']}"
        yield CallLine(
            at=_clock(latest["at"]),
            what=latest["endpoint"] or call,
            call=call,
            answer=answer,
            tone="bad" if _refused(latest) else "good",
            times=1 + len(others),
        )


def _answer(each: CallRow) -> str:
    answer = "no reply" if each["cut"] else " ".join(filter(None, (str(each["status"]), each["code"])))
    return f"{answer}, fault: {each['fault']}" if each["fault"] else answer


def _refused(each: CallRow) -> bool:
    return each["cut"] or each["status"] >= HTTPStatus.BAD_REQUEST or each["code"] not in {"", "Success"}


def _stock(world: World) -> Iterator[tuple[str, str, str]]:
    for region, gpus in world.autodl.fleet.idle_by_region().items():
        yield "AutoDL", region, ", ".join(f"{gpu} {idle}" for gpu, idle in gpus.items())
    yield "MatrixDC", "", ", ".join(f"{gpu} {idle}" for gpu, idle in world.matrixdc.idle.items())


def _clock(at: float, *, with_day: bool = False) -> str:
    return datetime.fromtimestamp(at, tz=CHINA).strftime("%Y-%m-%d %H:%M:%S" if with_day else "%H:%M:%S")


def _span(seconds: float) -> str:
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < 2 * _DAY_S:
        return f"{seconds / _HOUR_S:.1f} h"
    return f"{seconds / _DAY_S:.1f} d"
