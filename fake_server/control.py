"""The control room under /_fake/: what is going on, what really happened, and faults on demand."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Self

from flask import Blueprint, Response, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fake_server.faults import FaultRule
from fake_server.recorder import Recorder
from fake_server.refusal import Refused
from fake_server.wire import Wire, json_reply, same_secret
from fake_server.world import World

_YEAR_S = 366 * 86400


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class ClockOrder(_Body):
    """POST clock: move forward by `advance` seconds, or run at `speed`."""

    advance: Annotated[float, Field(ge=0, le=_YEAR_S)] | None = None
    speed: Annotated[float, Field(ge=0, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.advance is None and self.speed is None:
            raise ValueError("give advance or speed")
        return self


class AdvanceOrder(_Body):
    """POST advance: let machines that wait in a stage go on; patterns for id or name, and for the stage."""

    machine: str = "*"
    stage: str = "*"


class StockOrder(_Body):
    """POST stock: let other tenants take or leave AutoDL's GPUs until `idle` are free on each host of that kind."""

    gpu: str
    idle: Annotated[int, Field(ge=0)]
    region: str = ""


class RenewOrder(_Body):
    """POST renew: lengthen a MatrixDC instance that was paid ahead, as its console does; "+3D" is three days more."""

    instance: str
    cost_time: str


@dataclass(frozen=True, slots=True)
class _Room:
    wire: Wire
    reset: Callable[[], None]
    recorder: Recorder

    @property
    def world(self) -> World:
        return self.wire.world()


def blueprint(wire: Wire, reset: Callable[[], None], recorder: Recorder) -> Blueprint:
    """Return the control room, to be mounted under /_fake. Every call needs the header X-Fake-Control."""
    room = _Room(wire, reset, recorder)
    control = Blueprint("control", __name__)

    def serve(name: str, call: str, answer: Callable[..., Any]) -> None:
        method, path = call.split()
        control.add_url_rule(path, endpoint=name, view_func=_view(room, answer), methods=[method])

    serve("state", "GET /state", _state)
    serve("ledger", "GET /ledger", _ledger)
    serve("calls", "GET /calls", _calls)
    serve("reset", "POST /reset", _reset)
    serve("clock", "POST /clock", _clock)
    serve("timings", "POST /timings", _timings)
    serve("advance", "POST /advance", _advance)
    serve("stock", "POST /stock", _stock)
    serve("renew", "POST /renew", _renew)
    serve("recording", "GET /record", lambda room: room.recorder.calls())
    serve("record", "POST /record", _record)
    serve("list_faults", "GET /faults", _list_faults)
    serve("add_fault", "POST /faults", _add_fault)
    serve("remove_faults", "DELETE /faults", _remove_faults)
    serve("remove_fault", "DELETE /faults/<int:rule_id>", _remove_faults)
    return control


def _view(room: _Room, answer: Callable[..., Any]) -> Callable[..., Response]:
    def view(**values: int) -> Response:
        if not same_secret(request.headers.get("X-Fake-Control", ""), room.wire.control_token):
            return json_reply({"message": "X-Fake-Control is missing or wrong"}, 403)
        try:
            return json_reply(answer(room, **values))
        except ValidationError as wrong:
            faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in wrong.errors(include_url=False)]
            return json_reply({"message": "; ".join(faults)}, 400)
        except ValueError as wrong:
            return json_reply({"message": str(wrong)}, 400)

    return view


def _state(room: _Room) -> Any:
    return room.world.state()


def _ledger(room: _Room) -> Any:
    return room.world.ledger()


def _calls(room: _Room) -> Any:
    limit = request.args.get("limit", "1000")
    if not limit.isascii() or not limit.isdigit():
        raise ValueError("limit is a number of calls")
    ground = room.world.ground
    with ground.lock:
        return {"total": ground.call_log.total, "calls": ground.call_log.latest(int(limit))}


def _reset(room: _Room) -> Any:
    room.reset()
    return room.world.state()


def _clock(room: _Room) -> Any:
    order = ClockOrder.model_validate_json(request.get_data())
    timeline = room.world.ground.timeline
    if order.speed is not None:
        timeline.set_speed(order.speed)
    if order.advance is not None:
        timeline.advance(order.advance)
    return {"now": timeline.now(), "speed": timeline.speed}


def _timings(room: _Room) -> Any:
    changes = json.loads(request.get_data())
    if not isinstance(changes, dict):
        raise ValueError("give timings by name, as seconds or manual")  # noqa: TRY004 -- it is what was sent that is wrong
    return room.world.set_timings(changes)


def _advance(room: _Room) -> Any:
    order = AdvanceOrder.model_validate_json(request.get_data() or b"{}")
    with room.world.ground.lock:
        return {"advanced": room.world.ground.stages.advance(order.machine, order.stage)}


def _stock(room: _Room) -> Any:
    order = StockOrder.model_validate_json(request.get_data())
    world = room.world
    with world.ground.lock:
        world.autodl.set_idle(order.gpu, order.region, order.idle)
        return world.autodl.fleet.idle_by_region()


def _renew(room: _Room) -> Any:
    order = RenewOrder.model_validate_json(request.get_data())
    world = room.world
    try:
        with world.ground.lock:
            instance = world.matrixdc.instance(order.instance)
            world.matrixdc.renew(instance, order.cost_time)
            return {"instance": instance.name, "stops_at": instance.stops_at}
    except Refused as no:
        raise ValueError(no.message) from no


def _record(room: _Room) -> Any:
    room.recorder.begin()
    return {"recording": True}


def _list_faults(room: _Room) -> Any:
    return room.wire.faults.as_json()


def _add_fault(room: _Room) -> Any:
    return {"id": room.wire.faults.add(FaultRule.model_validate_json(request.get_data()))}


def _remove_faults(room: _Room, rule_id: int | None = None) -> Any:
    room.wire.faults.remove(rule_id)
    return room.wire.faults.as_json()
