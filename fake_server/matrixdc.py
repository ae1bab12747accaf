"""MatrixDC's wire dialect: paths, checks, bare replies. Source: the provider's API document.

The document shows no error: 400, 401, 404 and 409 with {"message": …} are this fake's guess.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Blueprint, Response, request
from pydantic import BaseModel, ValidationError

from fake_server import matrixdc_replies as replies
from fake_server.catalog import MATRIXDC_REGION, MATRIXDC_SKUS
from fake_server.matrixdc_requests import CreateInstance, PowerOff
from fake_server.matrixdc_rules import MatrixdcCloud
from fake_server.refusal import Reason, Refused
from fake_server.timings import Guesses
from fake_server.wire import Wire, add, extra_fields, json_reply, same_secret

_Body = TypeVar("_Body", bound=BaseModel)
_PARAMETERS = {"_skus": ("region_id",), "_delete": ("name",)}
_SERVER_ERROR = {"message": "internal error"}
_INSTANCES = "/clusters/<cluster>/instances"


def blueprint(wire: Wire) -> Blueprint:
    """Return MatrixDC's API, to be mounted under /mdc/api/v1."""
    api = Blueprint("matrixdc", __name__)

    def serve(name: str, call: str, answer: Callable[..., Any]) -> None:
        add(api, wire, f"matrixdc.{name}", call, _view(wire, answer), envelope=_SERVER_ERROR)

    serve("list_regions", "GET /regions", _regions)
    serve("list_skus", "GET /skus/computings", _skus)
    serve("create_instance", f"POST {_INSTANCES}", _create)
    serve("list_instances", f"GET {_INSTANCES}", _list)
    serve("delete_instance", f"DELETE {_INSTANCES}", _delete)
    serve("get_instance", f"GET {_INSTANCES}/<name>", _get)
    serve("power_off", f"POST {_INSTANCES}/<name>/power_off", _power_off)
    serve("power_on", f"POST {_INSTANCES}/<name>/power_on", _power_on)
    return api


def _view(wire: Wire, answer: Callable[..., Any]) -> Callable[..., Response]:
    def view(cluster: str = MATRIXDC_REGION.cluster_name, **values: str) -> Response:
        world = wire.world()
        guesses = world.ground.guesses
        if not same_secret(request.headers.get("Authorization", ""), f"bearer {wire.token}"):
            return _error(guesses, guesses.matrixdc_unauthorized_status, "token 无效或已过期")
        if not same_secret(request.headers.get("namespace", ""), wire.namespace):
            return _error(guesses, guesses.matrixdc_unauthorized_status, "namespace 与 token 不符")
        if cluster != MATRIXDC_REGION.cluster_name:
            return _error(guesses, guesses.matrixdc_not_found_status, f"集群不存在: {cluster}")
        try:
            with world.ground.lock:
                _refuse_other_parameters(guesses, *_PARAMETERS.get(answer.__name__, ()))
                return json_reply(answer(world.matrixdc, **values))
        except ValidationError as wrong:
            return _error(guesses, guesses.matrixdc_bad_request_status, _first_fault(wrong))
        except Refused as no:
            return _error(guesses, _status(no.reason, guesses), no.message)

    return view


def _status(reason: Reason, guesses: Guesses) -> int:
    match reason:
        case Reason.BAD_REQUEST:
            return guesses.matrixdc_bad_request_status
        case Reason.NOT_FOUND:
            return guesses.matrixdc_not_found_status
        case Reason.CONFLICT:
            return guesses.matrixdc_conflict_status
        case Reason.NO_STOCK:
            return guesses.matrixdc_no_stock_status


def _error(guesses: Guesses, status: int, message: str) -> Response:
    bodies: dict[str, dict[str, Any]] = {
        "message": {"message": message},
        "code_msg": {"code": status, "msg": message, "data": None},
        "error": {"error": message},
        "kubernetes": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status},
    }
    return json_reply(bodies[guesses.matrixdc_error_body], status)


def _first_fault(wrong: ValidationError) -> str:
    first = wrong.errors(include_url=False, include_input=False)[0]
    return f"参数错误: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _read(model: type[_Body], guesses: Guesses) -> _Body:
    return model.model_validate_json(request.get_data(), extra=extra_fields(guesses))


def _refuse_other_parameters(guesses: Guesses, *known: str) -> None:
    other = sorted(set(request.args) - set(known))
    if other and guesses.unknown_fields == "refuse":
        raise Refused(Reason.BAD_REQUEST, f"未知参数: {', '.join(other)}")


def _regions(_cloud: MatrixdcCloud) -> Any:
    return [replies.region()]


def _skus(cloud: MatrixdcCloud) -> Any:
    region_id = request.args.get("region_id", "")
    if not region_id:
        raise Refused(Reason.BAD_REQUEST, "缺少参数 region_id")
    if region_id != MATRIXDC_REGION.id:
        return []
    return [replies.sku(sku, cloud.idle[sku.gpu], cloud.guesses) for sku in MATRIXDC_SKUS]


def _create(cloud: MatrixdcCloud) -> Any:
    asked = _read(CreateInstance, cloud.guesses)
    if asked.namespace != cloud.namespace:
        raise Refused(Reason.BAD_REQUEST, "namespace 与请求头不一致")
    return replies.instance(cloud.create(asked.order(cloud.sku(asked.Cost.GPUSKUID))), cloud)


def _list(cloud: MatrixdcCloud) -> Any:
    found = list(cloud.listed())
    limit = cloud.guesses.matrixdc_list_limit or len(found)
    nodes = [replies.instance(each, cloud) for each in found[:limit]]
    return {"hasNextPage": len(found) > limit, "nodes": nodes, "totalCount": len(found)}


def _get(cloud: MatrixdcCloud, name: str) -> Any:
    return replies.instance(cloud.instance(name), cloud)


def _delete(cloud: MatrixdcCloud) -> Any:
    name = request.args.get("name", "")
    if not name:
        raise Refused(Reason.BAD_REQUEST, "缺少参数 name")
    cloud.delete(cloud.instance(name))
    return "ok"


def _power_off(cloud: MatrixdcCloud, name: str) -> Any:
    asked = _read(PowerOff, cloud.guesses) if request.get_data() else PowerOff()
    snapshot = (asked.imageName, asked.tag) if asked.needSnapshot else None
    cloud.power_off(cloud.instance(name), grace_s=asked.gracePeriodSeconds, snapshot=snapshot)
    return "ok"


def _power_on(cloud: MatrixdcCloud, name: str) -> Any:
    cloud.power_on(cloud.instance(name))
    return cloud.guesses.matrixdc_power_on_reply
