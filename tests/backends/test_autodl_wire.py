"""AutoDL's client: each endpoint as the API document writes it, replies as its samples have them."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from gpujobs.backends._autodl_wire import AutoDLClient, provider
from gpujobs.backends._http import Door
from gpujobs.errors import Ambiguous, BadCredentials, GpujobsError, NoCapacity, NotFound, Refused, Unavailable
from gpujobs.settings import Account
from tests.backends.autodl_values import CONTAINER, DEPLOYMENT, ok, page
from tests.backends.clouds import TOKEN, Answer, Request, canned
from tests.clocks import ManualClock

HOST = {
    "created_at": "2025-03-25T17:42:55+08:00",
    "data_center": "westDC2",
    "expired_time": "2025-03-26T17:48:11+08:00",
    "machine_id": "24fb4ca36a",
    "msg": "slow",
    "updated_at": "2025-03-25T17:48:11+08:00",
}


def client_at(url: str) -> AutoDLClient:
    account = Account(api_url=url, token=TOKEN)
    return AutoDLClient(Door(provider(account), clock=ManualClock(runs_by_itself=True)))


def exchange(answer: Answer, ask: Callable[[AutoDLClient], Any]) -> tuple[Any, Request]:
    """Give what the client makes of `answer`, and what it asked."""
    with canned(lambda _: answer) as api:
        found = ask(client_at(api.url))
    assert len(api.asked) == 1
    assert api.asked[0].headers["Authorization"] == TOKEN
    return found, api.asked[0]


@pytest.mark.parametrize(
    ("ask", "method", "path", "body"),
    [
        (lambda api: api.private_images(), "POST", "image/private/list", {"page_index": 1, "page_size": 100}),
        (
            lambda api: api.deployments(name="n", status="running", uuid="u"),
            "POST",
            "deployment/list",
            {"name": "n", "status": "running", "deployment_uuid": "u", "page_index": 1, "page_size": 100},
        ),
        (
            lambda api: api.container_events("u", page=2),
            "POST",
            "deployment/container/event/list",
            {
                "deployment_uuid": "u",
                "deployment_container_uuid": "",
                "offset": 0,
                "page_index": 2,
                "page_size": 100,
            },
        ),
        (
            lambda api: api.containers("u", released=True, statuses=["running"]),
            "POST",
            "deployment/container/list",
            {"deployment_uuid": "u", "released": True, "status": ["running"], "page_index": 1, "page_size": 100},
        ),
    ],
)
def test_lists_are_asked_for_as_documented(
    ask: Callable[[AutoDLClient], Any], method: str, path: str, body: Any
) -> None:
    _, asked = exchange(page(), ask)
    assert (asked.method, asked.path, asked.body) == (method, f"/api/v1/dev/{path}", body)


@pytest.mark.parametrize(
    ("ask", "method", "path", "body"),
    [
        (
            lambda api: api.stop_container("c", decrease_replicas=True, no_cache=True, last_command="sleep 5"),
            "PUT",
            "deployment/container/stop",
            {
                "deployment_container_uuid": "c",
                "decrease_one_replica_num": True,
                "no_cache": True,
                "cmd_before_shutdown": "sleep 5",
            },
        ),
        (
            lambda api: api.set_replicas("u", 16),
            "PUT",
            "deployment/replica_num",
            {"deployment_uuid": "u", "replica_num": 16},
        ),
        (
            lambda api: api.stop_deployment("u"),
            "PUT",
            "deployment/operate",
            {"deployment_uuid": "u", "operate": "stop"},
        ),
        (lambda api: api.delete_deployment("u"), "DELETE", "deployment", {"deployment_uuid": "u"}),
        (
            lambda api: api.block_host("c", minutes=60, comment="slow"),
            "POST",
            "deployment/blacklist",
            {"deployment_container_uuid": "c", "expire_in_minutes": 60, "comment": "slow"},
        ),
    ],
)
def test_acts_are_asked_for_as_documented(
    ask: Callable[[AutoDLClient], None], method: str, path: str, body: Any
) -> None:
    _, asked = exchange(ok(None), ask)
    assert (asked.method, asked.path, asked.body) == (method, f"/api/v1/dev/{path}", body)


def test_a_deployment_is_made_as_documented() -> None:
    body = {"name": "api自动创建", "deployment_type": "Job"}
    uuid, asked = exchange(ok({"deployment_uuid": "833f1cd5a764fa3"}), lambda api: api.create_deployment(body))
    assert uuid == "833f1cd5a764fa3"
    assert (asked.method, asked.path, asked.body) == ("POST", "/api/v1/dev/deployment", body)


def test_shrinking_a_replica_set_is_never_repeated_but_stopping_is() -> None:
    with canned(lambda _: Answer(500)) as api:
        with pytest.raises(Ambiguous):
            client_at(api.url).stop_container("c", decrease_replicas=True)
        assert len(api.asked) == 1
        with pytest.raises(Unavailable):
            client_at(api.url).stop_container("c")
        assert len(api.asked) > 3


def test_a_container_is_read() -> None:
    (found,), _ = exchange(page(CONTAINER), lambda api: api.containers("da497aea1eb8343"))
    assert (found.uuid, found.memory_gb, found.price_cny_per_h) == (CONTAINER["uuid"], 2.0, 1.881)
    assert found.started_at == datetime(2022, 12, 13, 8, 43, 3, tzinfo=UTC)
    assert found.stopped_at is None
    assert found.info.root_password.get_secret_value() == "canary-password"
    assert "canary" not in repr(found) + str(found) + repr(found.info)


@pytest.mark.parametrize("name", ["uuid", "container_uuid", "deployment_container_uuid"])
def test_a_container_is_read_whatever_its_id_is_called(name: str) -> None:
    row = {key: value for key, value in CONTAINER.items() if key not in ("uuid", "info", "price")}
    (found,), _ = exchange(page({**row, name: "c-1", "info": None}), lambda api: api.containers("u"))
    assert (found.uuid, found.info.ssh_command, found.price_cny_per_h) == ("c-1", "", None)


def test_a_deployment_is_read_with_fields_that_nobody_documented() -> None:
    (found,), _ = exchange(page({**DEPLOYMENT, "brand_new": 1}), lambda api: api.deployments())
    assert (found.uuid, found.name, found.status, found.finished_num) == ("53a677bb3e281b8", "xxxx", "stopped", 2)
    assert found.template is not None
    assert (found.template.dc_list, found.template.memory_size_from) == (["westDC2", "westDC3"], 2**30)
    assert found.model_extra == {
        "id": 214,
        "uid": 58,
        "reuse_container": True,
        "service_port_protocol": "http",
        "image_uuid": "image-db8346e037",
        "brand_new": 1,
    }


@pytest.mark.parametrize(
    ("data", "hosts"),
    [([HOST], ["24fb4ca36a"]), (HOST, ["24fb4ca36a"]), ({"list": [HOST]}, ["24fb4ca36a"]), (None, []), ([], [])],
)
def test_the_blacklist_is_read_as_list_object_or_null(data: Any, hosts: list[str]) -> None:
    found, asked = exchange(ok(data), lambda api: api.blocked_hosts())
    assert (asked.method, asked.path, asked.body) == ("GET", "/api/v1/dev/deployment/blacklist", None)
    assert [host.machine_id for host in found] == hosts
    assert all(host.comment == "slow" and host.expired_time.tzinfo for host in found)


STOCK = {"RTX 4090": {"idle_gpu_num": 215, "total_gpu_num": 2285}, "L20": {"idle_gpu_num": 0, "total_gpu_num": 4}}


@pytest.mark.parametrize(
    "data", [STOCK, [{name: one} for name, one in STOCK.items()], {"list": [STOCK]}, [STOCK], None]
)
def test_stock_is_read_as_list_or_mapping(data: Any) -> None:
    found, asked = exchange(ok(data), lambda api: api.gpu_stock("westDC2", {"cuda_v_from": 117}))
    assert asked.body == {"region_sign": "westDC2", "cuda_v_from": 117}
    idle = {name: one.idle_gpu_num for name, one in found.items()}
    assert idle == ({} if data is None else {"RTX 4090": 215, "L20": 0})


def test_time_packages_are_read() -> None:
    row = {"gpu_type": "RTX 4090", "total": 86400, "balance": 83829, "dc_list": "westDC2,westDC3"}
    (found,), asked = exchange(ok([row]), lambda api: api.time_packages("u"))
    assert asked.path == "/api/v1/dev/deployment/ddp/overview?deployment_uuid=u"
    assert (found.total, found.balance, found.dc_list) == (86400, 83829, ["westDC2", "westDC3"])


def test_private_images_are_read() -> None:
    row = {"id": 111, "created_at": "2022-01-20T18:34:08+08:00", "image_uuid": "image-db", "image_name": "a name"}
    (found,), _ = exchange(page(row), lambda api: api.private_images())
    assert (found.image_uuid, found.image_name) == ("image-db", "a name")


def paged(asked: Request, rows: list[Any], *, size: int, total: int | None = None) -> Answer:
    number = max(asked.body["page_index"], 1)
    return ok(
        {
            "list": rows[(number - 1) * size : number * size],
            "page_index": number,
            "max_page": -(-len(rows) // size),
            "result_total": len(rows) if total is None else total,
        }
    )


def test_every_page_is_read_even_where_the_provider_gives_smaller_ones() -> None:
    rows = [{**DEPLOYMENT, "uuid": f"u{number}"} for number in range(25)]
    with canned(lambda asked: paged(asked, rows, size=10)) as api:
        found = client_at(api.url).deployments()
    assert [one.uuid for one in found] == [f"u{number}" for number in range(25)]
    assert len(api.asked) == 3


def test_a_list_that_shrinks_while_it_is_read_loses_nothing() -> None:
    rows = [{**DEPLOYMENT, "uuid": f"u{number}"} for number in range(25)]

    def answer(asked: Request) -> Answer:
        reply = paged(asked, rows, size=10)
        if asked.body["page_index"] == 1 and len(rows) == 25:
            del rows[0]  # what was first on page two is now last on page one
        return reply

    with canned(answer) as api:
        found = client_at(api.url).deployments()
    assert {f"u{number}" for number in range(1, 25)} <= {one.uuid for one in found}


def test_a_list_that_never_stands_still_is_no_answer() -> None:
    rows = [{**DEPLOYMENT, "uuid": f"u{number}"} for number in range(25)]
    restless = canned(lambda asked: paged(asked, rows, size=10, total=asked.body["page_index"]))
    with restless as api, pytest.raises(Unavailable, match="changes while it is read"):
        client_at(api.url).deployments()
    assert len(api.asked) == 9


@pytest.mark.parametrize("empty", [{"list": None, "max_page": 0}, {"list": [], "max_page": 0}, {"list": []}])
def test_an_empty_list_is_empty(empty: Any) -> None:
    found, _ = exchange(ok(empty), lambda api: api.deployments())
    assert found == []


@pytest.mark.parametrize(
    ("code", "msg", "kind"),
    [
        ("AuthorizeFailed", "登录超时", BadCredentials),
        ("BadRequest", "无当前资源访问权限", Refused),
        ("RecordNotFoundError", "私有镜像不存在", NotFound),
        ("RequestParameterIsWrong", "请求参数错误", Refused),
        ("InternalError", "当前算力规格暂无库存", NoCapacity),
        ("InternalError", "服务器错误", Ambiguous),
        ("SomethingNew", "", Ambiguous),
    ],
)
def test_a_business_error_has_the_error_that_tells_what_to_do(code: str, msg: str, kind: type[GpujobsError]) -> None:
    answer = Answer(body={"code": code, "msg": f"{msg} {TOKEN}", "data": None})
    with canned(lambda _: answer) as api, pytest.raises(kind) as caught:
        client_at(api.url).create_deployment({"name": "gj-a-b-1"})
    assert type(caught.value) is kind
    assert "gj-a-b-1" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert len(api.asked) == 1


def test_an_account_without_enterprise_verification_is_told_so() -> None:
    answer = Answer(body={"code": "BadRequest", "msg": "无当前资源访问权限", "data": None})
    with canned(lambda _: answer) as api, pytest.raises(Refused, match="enterprise verification"):
        client_at(api.url).deployments()


def test_a_passing_business_error_of_a_read_is_asked_again() -> None:
    answers = [Answer(body={"code": "InternalError", "msg": "x"}), Answer(body={"code": "New", "msg": ""}), page()]
    with canned(lambda _: answers.pop(0)) as api:
        assert client_at(api.url).deployments() == []
    assert len(api.asked) == 3


@pytest.mark.parametrize("data", [None, {}, {"deployment_uuid": ""}, [], "u"])
def test_success_without_what_was_asked_for_is_no_success(data: Any) -> None:
    with canned(lambda _: ok(data)) as api, pytest.raises(Ambiguous):
        client_at(api.url).create_deployment({"name": "gj-a-b-1"})
