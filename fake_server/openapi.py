"""Both APIs as one OpenAPI 3.1 document, made of the models that read their requests and describe their replies."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fake_server import autodl_requests as asked
from fake_server import autodl_shapes as autodl
from fake_server import matrixdc_shapes as matrixdc
from fake_server.catalog import MATRIXDC_REGION
from fake_server.matrixdc_requests import CreateInstance, PowerOff
from fake_server.timings import Guesses

_Model = type[BaseModel]
_REFS = "#/components/schemas/{model}"
_AUTODL = "/api/v1/dev"
_INSTANCES = "/mdc/api/v1/clusters/{cluster}/instances"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One documented call. Query parameters are texts and required unless they end in "?"."""

    name: str
    method: str
    path: str
    body: _Model | None = None
    body_required: bool = True
    query: tuple[str, ...] = ()
    reply: _Model

    @property
    def provider(self) -> str:
        """Whose call it is: autodl or matrixdc."""
        return self.name.partition(".")[0]


def _call(name: str, call: str, reply: _Model, **more: Any) -> Call:
    method, path = call.split()
    prefix = _AUTODL if name.startswith("autodl.") else ""
    return Call(name=name, method=method, path=prefix + path, reply=reply, **more)


CALLS: tuple[Call, ...] = (
    _call("autodl.list_images", "POST /image/private/list", autodl.ImagePage, body=asked.ImageList),
    _call("autodl.create_deployment", "POST /deployment", autodl.DeploymentMade, body=asked.CreateDeployment),
    _call("autodl.list_deployments", "POST /deployment/list", autodl.DeploymentPage, body=asked.DeploymentList),
    _call("autodl.list_events", "POST /deployment/container/event/list", autodl.EventPage, body=asked.EventList),
    _call("autodl.list_containers", "POST /deployment/container/list", autodl.ContainerPage, body=asked.ContainerList),
    _call("autodl.stop_container", "PUT /deployment/container/stop", autodl.Empty, body=asked.StopContainer),
    _call("autodl.set_replica_num", "PUT /deployment/replica_num", autodl.Empty, body=asked.ScaleRequest),
    _call("autodl.operate_deployment", "PUT /deployment/operate", autodl.Empty, body=asked.OperateRequest),
    _call("autodl.delete_deployment", "DELETE /deployment", autodl.Empty, body=asked.DeploymentRef),
    _call("autodl.add_blacklist", "POST /deployment/blacklist", autodl.Empty, body=asked.BanRequest),
    _call("autodl.list_blacklist", "GET /deployment/blacklist", autodl.Bans),
    _call("autodl.gpu_stock", "POST /machine/region/gpu_stock", autodl.Stock, body=asked.StockRequest),
    _call("autodl.ddp_overview", "GET /deployment/ddp/overview", autodl.Overview, query=("deployment_uuid",)),
    _call("matrixdc.list_regions", "GET /mdc/api/v1/regions", matrixdc.Regions),
    _call("matrixdc.list_skus", "GET /mdc/api/v1/skus/computings", matrixdc.Skus, query=("region_id",)),
    _call("matrixdc.create_instance", f"POST {_INSTANCES}", matrixdc.InstanceShown, body=CreateInstance),
    _call("matrixdc.list_instances", f"GET {_INSTANCES}", matrixdc.InstanceList),
    _call("matrixdc.delete_instance", f"DELETE {_INSTANCES}", matrixdc.Ok, query=("name",)),
    _call("matrixdc.get_instance", f"GET {_INSTANCES}/{{name}}", matrixdc.InstanceShown),
    _call(
        "matrixdc.power_off", f"POST {_INSTANCES}/{{name}}/power_off", matrixdc.Ok, body=PowerOff, body_required=False
    ),
    _call("matrixdc.power_on", f"POST {_INSTANCES}/{{name}}/power_on", matrixdc.Ok),
)


def document(guesses: Guesses, *, url: str = "/") -> dict[str, Any]:
    """Return the OpenAPI document of a fake with these guesses."""
    schemas, definitions = models_json_schema(list(_models()), ref_template=_REFS)
    references: dict[Any, Any] = {model: schema for (model, _), schema in schemas.items()}
    references.update(_guessed(references, guesses))
    paths: dict[str, dict[str, Any]] = {}
    for call in CALLS:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, references, guesses)
    return {
        "openapi": "3.1.0",
        "info": {"title": "MatrixDC and AutoDL, as this fake plays them", "version": "1"},
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "autodl": {"type": "apiKey", "in": "header", "name": "Authorization"},
                "matrixdc": {"type": "http", "scheme": "bearer"},
                "matrixdcNamespace": {"type": "apiKey", "in": "header", "name": "namespace"},
            },
        },
    }


def _models() -> Iterator[tuple[_Model, Any]]:
    for model in (autodl.Envelope, autodl.Idle, autodl.BanShown):
        yield model, "serialization"
    yield matrixdc.Refusal, "serialization"
    for call in CALLS:
        yield call.reply, "serialization"
        if call.body is not None:
            yield call.body, "validation"


def _guessed(references: Mapping[Any, Any], guesses: Guesses) -> Iterator[tuple[_Model, Any]]:
    """Give the replies whose shape is a setting, where it is not the usual one."""
    if guesses.autodl_stock_shape == "object":
        yield autodl.Stock, {"type": "object", "additionalProperties": references[autodl.Idle]}
    if guesses.autodl_blacklist_shape == "object":
        yield autodl.Bans, {"anyOf": [references[autodl.BanShown], {"type": "null"}]}
    if guesses.matrixdc_error_body != "message":
        yield matrixdc.Refusal, {"type": "object"}


def _operation(call: Call, references: Mapping[Any, Any], guesses: Guesses) -> dict[str, Any]:
    secrets = ("autodl",) if call.provider == "autodl" else ("matrixdc", "matrixdcNamespace")
    operation: dict[str, Any] = {
        "operationId": call.name,
        "tags": [call.provider],
        "security": [{name: [] for name in secrets}],
        "responses": _responses(call, references, guesses),
    }
    if parameters := [*_path_parameters(call), *_query_parameters(call)]:
        operation["parameters"] = parameters
    if call.body is not None:
        content = {"application/json": {"schema": references[call.body]}}
        operation["requestBody"] = {"required": call.body_required, "content": content}
    return operation


def _path_parameters(call: Call) -> Iterator[dict[str, Any]]:
    for name, schema in (("cluster", {"enum": [MATRIXDC_REGION.cluster_name]}), ("name", {"minLength": 1})):
        if f"{{{name}}}" in call.path:
            yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", **schema}}


def _query_parameters(call: Call) -> Iterator[dict[str, Any]]:
    for name in call.query:
        yield {"name": name, "in": "query", "required": True, "schema": {"type": "string", "minLength": 1}}


def _responses(call: Call, references: Mapping[Any, Any], guesses: Guesses) -> dict[str, Any]:
    refusal = references[matrixdc.Refusal]
    told, texts = {403: refusal}, {403: "the Host header names no loopback"}
    if call.provider == "autodl":
        told[guesses.autodl_error_status] = references[autodl.Envelope]
        texts[guesses.autodl_error_status] = "refused"
        told[200] = _enveloped(references[call.reply], references[autodl.Envelope])
        texts[200] = "done if code is Success, else refused"
    else:
        refusals = _matrixdc_refusals(guesses)
        told.update(dict.fromkeys(refusals, refusal))
        texts.update(refusals)
        told[200], texts[200] = references[call.reply], "done"
    return {
        str(status): {"description": texts[status], "content": {"application/json": {"schema": told[status]}}}
        for status in sorted(told)
    }


def _enveloped(data: Any, envelope: Any) -> dict[str, Any]:
    done = {"required": ["data"], "properties": {"code": {"const": "Success"}, "msg": {"const": ""}, "data": data}}
    refused = {"properties": {"code": {"not": {"const": "Success"}}, "data": {"type": "null"}}}
    return {"allOf": [envelope, {"oneOf": [done, refused]}]}


def _matrixdc_refusals(guesses: Guesses) -> dict[int, str]:
    return {
        guesses.matrixdc_unauthorized_status: "the token or the namespace is wrong",
        guesses.matrixdc_bad_request_status: "a parameter is missing or wrong",
        guesses.matrixdc_not_found_status: "there is no such cluster, instance or image",
        guesses.matrixdc_conflict_status: "the instance's status does not allow it",
        guesses.matrixdc_no_stock_status: "no such GPU is free",
    }
