"""AutoDL's elastic deployment API, endpoint by endpoint, with its replies typed. What they mean is `autodl`'s."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BeforeValidator, Field, TypeAdapter

from gpujobs.backends._autodl_replies import (
    BlockedHost,
    Container,
    ContainerEvent,
    Deployment,
    GpuStock,
    Page,
    PrivateImage,
    TimePackage,
    listed,
    stock_by_name,
)
from gpujobs.backends._http import Call, Door, Provider
from gpujobs.backends._reading import Reply, Text
from gpujobs.errors import GpujobsError, NotFound, Unavailable
from gpujobs.settings import Account

T = TypeVar("T")

URL = "https://api.autodl.com"
PAGE = 100
_DEV = "/api/v1/dev"
_NO_STOCK = re.compile(r"暂无库存|库存不足|(?i:out of stock|no stock)")
_REREADS = 3
_PAGES_CAP = 1000


class _Envelope(Reply):
    code: Text
    msg: Text = ""
    data: Any = None


class _Created(Reply):
    deployment_uuid: Annotated[str, Field(min_length=1, validation_alias=AliasChoices("deployment_uuid", "uuid"))]


def provider(account: Account) -> Provider:
    """Say where AutoDL is and how it is spoken to (鉴权: the raw token)."""
    return Provider(
        name="AutoDL",
        setting="AUTODL",
        url=account.api_url or URL,
        headers={"Authorization": account.token},
        secrets=(account.token,),
        no_stock=_NO_STOCK,
    )


class AutoDLClient:
    """AutoDL's API: one method an endpoint. Each may raise what `Door.send` raises."""

    def __init__(self, door: Door) -> None:
        """Speak through `door`."""
        self._door = door

    def private_images(self) -> Sequence[PrivateImage]:
        """List the private images (获取镜像)."""
        return self._pages("list images", "/image/private/list", PrivateImage, {}, key=lambda image: image.image_uuid)

    def create_deployment(self, body: Mapping[str, Any]) -> str:
        """Make a deployment and give its uuid (创建部署). Sent once, never repeated."""
        name = str(body.get("name", ""))
        call = Call(
            what="create deployment", about=name, method="POST", path=f"{_DEV}/deployment", body=body, safe=False
        )
        return self._send(call, TypeAdapter(_Created)).deployment_uuid

    def deployments(self, *, name: str = "", status: str = "", uuid: str = "") -> Sequence[Deployment]:
        """List deployments (获取部署列表); `name` is matched exactly, `status` is running, stopped or "" for both."""
        filters = {"name": name, "status": status, "deployment_uuid": uuid}
        body = {key: value for key, value in filters.items() if value}
        return self._pages(
            "list deployments", "/deployment/list", Deployment, body, key=lambda one: one.uuid, about=name or uuid
        )

    def container_events(self, deployment: str, *, page: int = 1, container: str = "") -> Page[ContainerEvent]:
        """Give one page of a deployment's events, newest first (查询容器事件)."""
        body = {"deployment_uuid": deployment, "deployment_container_uuid": container, "offset": 0}
        return self._page(
            "list events of", "/deployment/container/event/list", ContainerEvent, body, page=page, about=deployment
        )

    def containers(
        self, deployment: str, *, released: bool = False, statuses: Sequence[str] = ()
    ) -> Sequence[Container]:
        """List a deployment's containers, those that live or those already released (查询容器)."""
        body = {"deployment_uuid": deployment, "released": released} | ({"status": list(statuses)} if statuses else {})
        return self._pages(
            "list containers of",
            "/deployment/container/list",
            Container,
            body,
            key=lambda one: one.uuid,
            about=deployment,
        )

    def stop_container(
        self, container: str, *, decrease_replicas: bool = False, no_cache: bool = False, last_command: str = ""
    ) -> None:
        """Stop one container (停止某容器); with `decrease_replicas` a ReplicaSet shrinks, so that is sent only once."""
        body = {
            "deployment_container_uuid": container,
            "decrease_one_replica_num": decrease_replicas,
            "no_cache": no_cache,
        } | ({"cmd_before_shutdown": last_command} if last_command else {})
        path = "/deployment/container/stop"
        self._act("stop container", "PUT", path, body, about=container, safe=not decrease_replicas)

    def set_replicas(self, deployment: str, replicas: int) -> None:
        """Scale a ReplicaSet (设置副本数量); idempotent."""
        body = {"deployment_uuid": deployment, "replica_num": replicas}
        self._act("scale deployment", "PUT", "/deployment/replica_num", body, about=deployment)

    def stop_deployment(self, deployment: str) -> None:
        """Stop a deployment (停止部署); idempotent."""
        body = {"deployment_uuid": deployment, "operate": "stop"}
        self._act("stop deployment", "PUT", "/deployment/operate", body, about=deployment)

    def delete_deployment(self, deployment: str) -> None:
        """Stop and delete a deployment (删除部署); idempotent. Raises NotFound where it is gone already."""
        self._act("delete deployment", "DELETE", "/deployment", {"deployment_uuid": deployment}, about=deployment)

    def block_host(self, container: str, *, minutes: int = 1440, comment: str = "") -> None:
        """Keep our deployments off the host of `container` (设置调度黑名单) for 1 to 43200 minutes; idempotent."""
        body = {"deployment_container_uuid": container, "expire_in_minutes": minutes, "comment": comment}
        self._act("block the host of", "POST", "/deployment/blacklist", body, about=container)

    def blocked_hosts(self) -> Sequence[BlockedHost]:
        """List the hosts that are blocked now (获取生效中的调度黑名单)."""
        call = Call(what="list blocked hosts", method="GET", path=f"{_DEV}/deployment/blacklist")
        return self._send(call, TypeAdapter(Annotated[list[BlockedHost], BeforeValidator(listed)]))

    def gpu_stock(self, region: str, filters: Mapping[str, Any] | None = None) -> Mapping[str, GpuStock]:
        """Give the stock of a region by GPU name (获取弹性部署GPU库存), counted in single GPUs."""
        body = {"region_sign": region, **(filters or {})}
        path = f"{_DEV}/machine/region/gpu_stock"
        call = Call(what="ask the stock of", about=region, method="POST", path=path, body=body)
        return self._send(call, TypeAdapter(Annotated[dict[str, GpuStock], BeforeValidator(stock_by_name)]))

    def time_packages(self, deployment: str) -> Sequence[TimePackage]:
        """List prepaid time that a deployment can use (获取已购时长包数据)."""
        path = f"{_DEV}/deployment/ddp/overview"
        params = {"deployment_uuid": deployment}
        call = Call(what="list time packages of", about=deployment, method="GET", path=path, params=params)
        return self._send(call, TypeAdapter(Annotated[list[TimePackage], BeforeValidator(listed)]))

    def _act(
        self, what: str, method: str, path: str, body: Mapping[str, Any], *, about: str, safe: bool = True
    ) -> None:
        call = Call(what=what, about=about, method=method, path=_DEV + path, body=body, safe=safe)
        self._send(call, TypeAdapter(Any))

    def _page(
        self, what: str, path: str, item: type[T], body: Mapping[str, Any], *, page: int, about: str = ""
    ) -> Page[T]:
        body = {**body, "page_index": page, "page_size": PAGE}
        call = Call(what=what, about=about, method="POST", path=_DEV + path, body=body)
        return self._send(call, _page_adapter(item))

    def _pages(
        self,
        what: str,
        path: str,
        item: type[T],
        body: Mapping[str, Any],
        *,
        key: Callable[[T], str],
        about: str = "",
    ) -> Sequence[T]:
        """Read every page; anew where the list's length changed meanwhile, since an item may have slipped between."""
        for _ in range(_REREADS):
            found: dict[str, T] = {}
            totals: set[int | None] = set()
            for number in range(1, _PAGES_CAP):
                page = self._page(what, path, item, body, page=number, about=about)
                found.update({key(one): one for one in page.list})
                totals.add(page.result_total)
                if not page.list or (page.max_page is not None and number >= page.max_page):
                    break
            if len(totals) == 1:
                return list(found.values())
        raise Unavailable(f"AutoDL: {what} {about}: the list changes while it is read; try again later")

    def _send(self, call: Call, adapter: TypeAdapter[T]) -> T:
        def decode(raw: bytes) -> T:
            envelope = _Envelope.model_validate(json.loads(raw))
            if envelope.code != "Success":
                raise self._problem(call, envelope)
            return adapter.validate_python(envelope.data)

        return self._door.send(call, decode)

    def _problem(self, call: Call, envelope: _Envelope) -> GpujobsError:
        """Read a business error, which comes as HTTP 200: one table for all endpoints."""
        said = f"{envelope.code}: {envelope.msg}"
        if envelope.code == "AuthorizeFailed":
            return self._door.bad_token(call, said)
        if envelope.code == "RecordNotFoundError":
            return NotFound(self._door.words(call, f"not found ({self._door.clean(said)})"))
        if envelope.code == "BadRequest":
            remedy = "elastic deployment needs an AutoDL account with enterprise verification, and an id of your own"
            return self._door.refusal(call, said, remedy=remedy)
        if envelope.code == "RequestParameterIsWrong" or _NO_STOCK.search(envelope.msg):
            return self._door.refusal(call, said)
        return self._door.unsettled(call, f"failed ({self._door.clean(said)})")


def _page_adapter(item: type[T]) -> TypeAdapter[Page[T]]:
    return TypeAdapter(Page[item])  # type: ignore[valid-type]
