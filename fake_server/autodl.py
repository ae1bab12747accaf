"""AutoDL's wire dialect: paths, checks, envelope. Source: the provider's elastic deployment API document.

Business errors are HTTP 200 with another `code`, as was seen live.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Blueprint, Response, request
from pydantic import BaseModel, ValidationError

from fake_server import autodl_replies as replies
from fake_server.autodl_requests import (
    BanRequest,
    ContainerList,
    CreateDeployment,
    DeploymentList,
    DeploymentRef,
    EventList,
    ImageList,
    Nothing,
    OperateRequest,
    ScaleRequest,
    StockRequest,
    StopContainer,
)
from fake_server.autodl_rules import AutodlCloud
from fake_server.catalog import AUTODL_PRIVATE_IMAGES
from fake_server.refusal import Reason, Refused
from fake_server.timings import Guesses
from fake_server.wire import View, Wire, add, extra_fields, json_reply, same_secret

_Request = TypeVar("_Request", bound=BaseModel)
_SERVER_ERROR = {"code": "InternalError", "msg": "服务器内部错误", "data": None}


def blueprint(wire: Wire) -> Blueprint:
    """Return AutoDL's API, to be mounted under /api/v1/dev."""
    api = Blueprint("autodl", __name__)

    def serve(name: str, call: str, model: type[_Request], answer: Callable[[AutodlCloud, _Request], Any]) -> None:
        add(api, wire, f"autodl.{name}", call, _view(wire, model, answer), envelope=_SERVER_ERROR)

    serve("list_images", "POST /image/private/list", ImageList, _list_images)
    serve("create_deployment", "POST /deployment", CreateDeployment, _create)
    serve("list_deployments", "POST /deployment/list", DeploymentList, _list_deployments)
    serve("list_events", "POST /deployment/container/event/list", EventList, _list_events)
    serve("list_containers", "POST /deployment/container/list", ContainerList, _list_containers)
    serve("stop_container", "PUT /deployment/container/stop", StopContainer, _stop_container)
    serve("set_replica_num", "PUT /deployment/replica_num", ScaleRequest, _scale)
    serve("operate_deployment", "PUT /deployment/operate", OperateRequest, _operate)
    serve("delete_deployment", "DELETE /deployment", DeploymentRef, _delete)
    serve("add_blacklist", "POST /deployment/blacklist", BanRequest, _ban)
    serve("list_blacklist", "GET /deployment/blacklist", Nothing, _list_bans)
    serve("gpu_stock", "POST /machine/region/gpu_stock", StockRequest, _stock)
    serve("ddp_overview", "GET /deployment/ddp/overview", DeploymentRef, _prepaid)
    return api


def _view(wire: Wire, model: type[_Request], answer: Callable[[AutodlCloud, _Request], Any]) -> View:
    def view() -> Response:
        world = wire.world()
        guesses = world.ground.guesses
        if not same_secret(request.headers.get("Authorization", ""), wire.token):
            return _refusal(guesses.autodl_unauthorized_code, "登录超时", guesses)
        if not guesses.autodl_enterprise:
            return _refusal("BadRequest", "无当前资源访问权限", guesses)
        try:
            asked = _read(model, guesses)
            if not guesses.page_zero_is_first:
                _refuse_page_zero(asked)
            with world.ground.lock:
                return _envelope("Success", "", answer(world.autodl, asked))
        except ValidationError:
            return _refusal(guesses.autodl_bad_request_code, "请求参数错误", guesses)
        except Refused as no:
            return _refusal(_code(no.reason, guesses), no.message, guesses)

    return view


def _code(reason: Reason, guesses: Guesses) -> str:
    match reason:
        case Reason.BAD_REQUEST:
            return guesses.autodl_bad_request_code
        case Reason.NOT_FOUND:
            return guesses.autodl_not_found_code
        case Reason.CONFLICT:
            return guesses.autodl_conflict_code
        case Reason.NO_STOCK:
            return guesses.autodl_no_stock_code


def _read(model: type[_Request], guesses: Guesses) -> _Request:
    extra = extra_fields(guesses)
    if request.method == "GET":
        return model.model_validate(request.args.to_dict(), extra=extra)
    return model.model_validate_json(request.get_data(), extra=extra)


def _refuse_page_zero(asked: BaseModel) -> None:
    if "page_index" in asked.model_fields_set and getattr(asked, "page_index", None) == 0:
        raise Refused(Reason.BAD_REQUEST, "请求参数错误")


def _envelope(code: str, msg: str, data: Any = None, *, status: int = 200) -> Response:
    return json_reply({"code": code, "msg": msg, "data": data}, status)


def _refusal(code: str, msg: str, guesses: Guesses) -> Response:
    return _envelope(code, msg, status=guesses.autodl_error_status)


def _list_images(_cloud: AutodlCloud, asked: ImageList) -> Any:
    return replies.page([replies.private_image(image) for image in reversed(AUTODL_PRIVATE_IMAGES)], asked)


def _create(cloud: AutodlCloud, asked: CreateDeployment) -> Any:
    deployment = cloud.create(
        name=asked.name,
        kind=asked.deployment_type,
        replica_num=1 if asked.deployment_type == "Container" else asked.replica_num or 0,
        parallelism_num=asked.parallelism_num or 1,
        reuse_container=asked.reuse_container,
        deprecated_port_protocol=asked.service_port_protocol,
        port_protocols=(asked.service_6006_port_protocol, asked.service_6008_port_protocol),
        template=asked.container_template.template(),
    )
    return {"deployment_uuid": deployment.uuid}


def _list_deployments(cloud: AutodlCloud, asked: DeploymentList) -> Any:
    wanted = [
        each
        for each in reversed(cloud.deployments.values())
        if cloud.listed(each)
        and asked.name in ("", each.name)
        and asked.status in ("", each.status)
        and asked.deployment_uuid in ("", each.uuid)
    ]
    rows = [replies.deployment(each, cloud.containers_of(each)) for each in wanted]
    return {**replies.page(rows, asked), "result_total": len(rows), "page": max(asked.page_index, 1)}


def _list_events(cloud: AutodlCloud, asked: EventList) -> Any:
    return replies.page(replies.events_of(cloud, asked.deployment_uuid, asked.deployment_container_uuid), asked)


def _list_containers(cloud: AutodlCloud, asked: ContainerList) -> Any:
    containers = [each for each in cloud.containers_of(cloud.deployment(asked.deployment_uuid)) if cloud.listed(each)]
    return replies.page([replies.container(each) for each in replies.filtered(containers, asked)], asked)


def _stop_container(cloud: AutodlCloud, asked: StopContainer) -> None:
    cloud.stop_container(
        cloud.container(asked.deployment_container_uuid),
        decrease=asked.decrease_one_replica_num,
        no_cache=asked.no_cache,
        farewell=asked.cmd_before_shutdown,
    )


def _scale(cloud: AutodlCloud, asked: ScaleRequest) -> None:
    cloud.scale(cloud.deployment(asked.deployment_uuid), asked.replica_num)


def _operate(cloud: AutodlCloud, asked: OperateRequest) -> None:
    cloud.stop(cloud.deployment(asked.deployment_uuid))


def _delete(cloud: AutodlCloud, asked: DeploymentRef) -> None:
    cloud.delete(cloud.deployment(asked.deployment_uuid))


def _ban(cloud: AutodlCloud, asked: BanRequest) -> None:
    container = cloud.container(asked.deployment_container_uuid)
    cloud.ban(container, minutes=asked.expire_in_minutes, comment=asked.comment)


def _list_bans(cloud: AutodlCloud, _asked: Nothing) -> Any:
    bans = [replies.ban(each) for each in cloud.bans()]
    if cloud.guesses.autodl_blacklist_shape == "object":
        return bans[0] if bans else None
    return bans


def _stock(cloud: AutodlCloud, asked: StockRequest) -> Any:
    stock = cloud.fleet.stock(asked.region_sign, asked.filter())
    rows = {gpu: {"idle_gpu_num": idle, "total_gpu_num": total} for gpu, (idle, total) in stock.items()}
    return rows if cloud.guesses.autodl_stock_shape == "object" else [{gpu: row} for gpu, row in rows.items()]


def _prepaid(cloud: AutodlCloud, asked: DeploymentRef) -> Any:
    gpus = cloud.deployment(asked.deployment_uuid).template.gpu_names
    return [replies.prepaid(package, left_s) for package, left_s in cloud.prepaid(gpus)]
