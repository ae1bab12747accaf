"""AutoDL's wire dialect: the token, the envelope, strict bodies, paging, filters, units."""

from typing import Any

import pytest
import requests

from fake_server.server import FakeServer
from fake_server.timings import Guesses
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.test_autodl_life import boot, shut
from tests.fake_server.wires import Wires, job, replica_set

REQUIRED = (
    "dc_list",
    "gpu_name_set",
    "gpu_num",
    "cuda_v_from",
    "cuda_v_to",
    "cpu_num_from",
    "cpu_num_to",
    "memory_size_from",
    "memory_size_to",
    "price_from",
    "price_to",
    "image_uuid",
    "cmd",
)
WRONG = {"code": "RequestParameterIsWrong", "msg": "请求参数错误", "data": None}


@pytest.mark.parametrize("token", ["", "wrong", "Bearer fake-token", "bearer fake-token"])
def test_the_token_is_sent_raw(wires: Wires, token: str) -> None:
    reply = wires.autodl("GET", "/deployment/blacklist", token=token)
    assert reply == {"code": "AuthorizeFailed", "msg": "登录超时", "data": None}


def without(body: dict[str, Any], *path: str) -> dict[str, Any]:
    """The body less one key."""
    head, *rest = path
    if not rest:
        return {key: value for key, value in body.items() if key != head}
    return {**body, head: without(body[head], *rest)}


@pytest.mark.parametrize(
    "path",
    [
        ("name",),
        ("deployment_type",),
        ("replica_num",),
        ("parallelism_num",),
        ("container_template",),
        *(("container_template", key) for key in REQUIRED),
    ],
)
def test_every_required_field_of_a_create_is_required(wires: Wires, path: tuple[str, ...]) -> None:
    assert wires.autodl("POST", "/deployment", without(job(), *path)) == WRONG
    assert wires.deployments() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu_num": "1"},
        {"gpu_num": 1.5},
        {"gpu_num": True},
        {"dc_list": "westDC2"},
        {"dc_list": []},
        {"gpu_name_set": [4090]},
        {"price_to": "9000"},
        {"cmd": None},
    ],
)
def test_types_are_strict(wires: Wires, changes: dict[str, Any]) -> None:
    assert wires.autodl("POST", "/deployment", job(**changes)) == WRONG


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/deployment", {**job(), "deployment_type": "Pod"}),
        ("POST", "/deployment", {**job(), "service_6006_port_protocol": "udp"}),
        ("POST", "/deployment", {**job(), "reuse_container": "yes"}),
        ("POST", "/image/private/list", {"page_size": 10}),
        ("POST", "/deployment/list", {"page_index": 1}),
        ("POST", "/deployment/list", {"page_index": 1, "page_size": 10, "status": "dead"}),
        ("POST", "/deployment/container/event/list", {"page_index": 1, "page_size": 10}),
        ("POST", "/deployment/container/list", {"page_index": 1, "page_size": 10}),
        ("POST", "/deployment/container/list", {"deployment_uuid": "x", "date_from": "yesterday"}),
        ("POST", "/deployment/container/list", {"deployment_uuid": "x", "page_index": -1}),
        ("PUT", "/deployment/container/stop", {}),
        ("PUT", "/deployment/replica_num", {"deployment_uuid": "x"}),
        ("PUT", "/deployment/operate", {"deployment_uuid": "x", "operate": "start"}),
        ("PUT", "/deployment/operate", {"deployment_uuid": "x"}),
        ("DELETE", "/deployment", {}),
        ("DELETE", "/deployment", None),
        ("POST", "/deployment/blacklist", {}),
        ("POST", "/machine/region/gpu_stock", {}),
        ("GET", "/deployment/ddp/overview", None),
    ],
)
def test_bad_parameters_are_told_by_the_envelope(wires: Wires, method: str, path: str, body: Any) -> None:
    assert wires.autodl(method, path, body) == WRONG


def test_a_body_that_is_no_json_is_a_bad_parameter(wires: Wires) -> None:
    url = f"{wires.fake.autodl_url}/api/v1/dev/deployment"
    reply = requests.post(url, data=b"{", headers={"Authorization": wires.fake.token}, timeout=60)
    assert reply.json() == WRONG


def test_an_unknown_image_is_named_as_such(wires: Wires) -> None:
    reply = wires.autodl("POST", "/deployment", job(image_uuid="image-000000"))
    assert reply == {"code": "RecordNotFoundError", "msg": "私有镜像不存在", "data": None}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/deployment/container/event/list", {"deployment_uuid": "x", "page_index": 1, "page_size": 10}),
        ("POST", "/deployment/container/list", {"deployment_uuid": "x"}),
        ("PUT", "/deployment/container/stop", {"deployment_container_uuid": "x"}),
        ("PUT", "/deployment/replica_num", {"deployment_uuid": "x", "replica_num": 1}),
        ("PUT", "/deployment/operate", {"deployment_uuid": "x", "operate": "stop"}),
        ("DELETE", "/deployment", {"deployment_uuid": "x"}),
        ("POST", "/deployment/blacklist", {"deployment_container_uuid": "x"}),
        ("GET", "/deployment/ddp/overview?deployment_uuid=x", None),
    ],
)
def test_an_unknown_uuid_is_not_found(wires: Wires, method: str, path: str, body: Any) -> None:
    assert wires.autodl(method, path, body)["code"] == "RecordNotFoundError"


def test_memory_is_gb_in_a_request_and_bytes_in_a_reply(wires: Wires) -> None:
    uuid = wires.deploy(job(memory_size_from=1, memory_size_to=256))
    shown = wires.deployments()[0]["template"]
    assert (shown["memory_size_from"], shown["memory_size_to"]) == (1073741824, 274877906944)
    boot(wires, uuid)
    assert wires.containers(uuid)[0]["memory_size"] == 120 * 2**30


def test_times_are_chinas_to_the_second_and_null_until_they_come(wires: Wires) -> None:
    uuid = wires.deploy(job())
    wires.advance(0.1)
    container = wires.containers(uuid)[0]
    assert container["created_at"].endswith("+08:00")
    assert len(container["created_at"]) == len("2022-12-13T16:42:50+08:00")
    assert (container["started_at"], container["stopped_at"]) == (None, None)
    assert wires.deployments()[0]["stopped_at"] is None


def test_uuids_have_the_documents_form(wires: Wires) -> None:
    uuid = wires.deploy(job())
    wires.advance(0.1)
    container = wires.containers(uuid)[0]
    deployment, machine, own = container["uuid"].split("-")
    assert (len(deployment), len(machine), len(own)) == (15, 10, 8)
    assert (deployment, machine) == (uuid, container["machine_id"])


def test_the_way_in_is_shown_once_the_container_runs(wires: Wires) -> None:
    uuid = wires.deploy(job())
    wires.advance(0.1)
    before = wires.containers(uuid)[0]["info"]
    assert (before["ssh_command"], before["root_password"]) == ("", "")
    boot(wires, uuid)
    info = wires.containers(uuid)[0]["info"]
    assert info["ssh_command"] == "ssh -p 20001 root@127.0.0.1"
    assert len(info["root_password"]) == 12
    assert info["service_6006_port_url"].startswith("http://")
    assert "://" not in info["service_6008_port_url"]


def test_deployments_are_listed_newest_first_and_filtered_by_exact_name_status_and_uuid(wires: Wires) -> None:
    first, second = (wires.deploy(job(name=name)) for name in ("train", "train-2"))
    wires.data("PUT", "/deployment/operate", {"deployment_uuid": first, "operate": "stop"})

    def found(**filters: str) -> list[str]:
        return [row["uuid"] for row in wires.deployments(**filters)]

    assert found() == [second, first]
    assert found(name="", status="", deployment_uuid="") == [second, first]
    assert found(name="train") == [first]
    assert found(name="trai") == []
    assert found(status="running") == [second]
    assert found(status="stopped") == [first]
    assert found(deployment_uuid=second) == [second]
    assert found(deployment_uuid="unknown") == []


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"page_index": 1, "page_size": 2}, [4, 3]),
        ({"page_index": 0, "page_size": 2}, [4, 3]),
        ({"page_index": 2, "page_size": 2}, [2, 1]),
        ({"page_index": 3, "page_size": 2}, [0]),
        ({"page_index": 4, "page_size": 2}, []),
        ({"page_index": 1, "page_size": 2, "offset": 1}, [3, 2]),
    ],
)
def test_pages_count_from_one_and_zero_is_read_as_the_first(
    wires: Wires, asked: dict[str, int], expected: list[int]
) -> None:
    for number in range(5):
        wires.deploy(job(name=str(number)))
    page = wires.data("POST", "/deployment/list", asked)
    assert [int(row["name"]) for row in page["list"]] == expected
    assert (page["max_page"], page["result_total"], page["page_size"]) == (3, 5, 2)
    assert page["page_index"] == asked["page_index"]


def test_whether_page_zero_exists_is_a_setting() -> None:
    with FakeServer(guesses=Guesses(page_zero_is_first=False), containers=QuietContainers) as fake:
        wires = Wires(fake)
        with wires.session:
            assert wires.autodl("POST", "/deployment/list", {"page_index": 0, "page_size": 10}) == WRONG
            assert wires.deployments() == []


def test_an_empty_list_has_one_page(wires: Wires) -> None:
    page = wires.data("POST", "/deployment/list", {"page_index": 1, "page_size": 10})
    assert (page["list"], page["max_page"], page["result_total"]) == ([], 1, 0)


def test_events_are_paged_newest_first_and_filtered_by_container(wires: Wires) -> None:
    uuid = wires.deploy(job(replica_num=2, parallelism_num=2))
    one, two = boot(wires, uuid, 2)
    assert len(wires.events(uuid)) == 10
    for name in (one, two):
        assert wires.events(uuid, name) == ["running", "oss_merged", "starting", "created", "creating"]
    assert wires.events(uuid, "another") == []
    page = wires.data(
        "POST", "/deployment/container/event/list", {"deployment_uuid": uuid, "page_index": 2, "page_size": 4}
    )
    assert (len(page["list"]), page["max_page"]) == (4, 3)


def test_released_containers_are_shown_only_when_asked_for(wires: Wires, containers: QuietContainers) -> None:
    uuid = wires.deploy(job(replica_num=2, parallelism_num=1))
    (name,) = boot(wires, uuid)
    containers.end_cmd(name)
    shut(wires, uuid)
    (second,) = boot(wires, uuid)
    assert [each["uuid"] for each in wires.containers(uuid)] == [second]
    assert [each["uuid"] for each in wires.containers(uuid, released=False)] == [second]
    assert [each["uuid"] for each in wires.containers(uuid, released=True)] == [name]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"container_uuid": "", "gpu_name": "", "date_from": "", "date_to": "", "status": []}, 1),
        ({"cpu_num_from": 0, "cpu_num_to": 0, "memory_size_from": 0, "memory_size_to": 0, "price_to": 0}, 1),
        ({"container_uuid": "another"}, 0),
        ({"gpu_name": "RTX 4090"}, 1),
        ({"gpu_name": "RTX 3090"}, 0),
        ({"status": ["running", "created"]}, 1),
        ({"status": ["created"]}, 0),
        ({"cpu_num_from": 16, "cpu_num_to": 16}, 1),
        ({"cpu_num_from": 17}, 0),
        ({"cpu_num_to": 15}, 0),
        ({"memory_size_from": 120, "memory_size_to": 120}, 1),
        ({"memory_size_from": 121}, 0),
        ({"price_from": 1979.5, "price_to": 1980.5}, 1),
        ({"price_from": 1981}, 0),
        ({"date_from": "2020-01-01", "date_to": "2120-01-01"}, 1),
        ({"date_from": "2120-01-01 10:00:00"}, 0),
        ({"date_to": "2020-01-01T00:00:00+08:00"}, 0),
    ],
)
def test_container_filters_where_zero_and_empty_mean_any(wires: Wires, filters: dict[str, Any], found: int) -> None:
    uuid = wires.deploy(job())
    boot(wires, uuid)
    assert len(wires.containers(uuid, **filters)) == found


def test_containers_need_no_page_numbers(wires: Wires) -> None:
    uuid = wires.deploy(replica_set(replica_num=12))
    wires.advance(0.1)
    page = wires.data("POST", "/deployment/container/list", {"deployment_uuid": uuid})
    assert (len(page["list"]), page["page_index"], page["page_size"], page["max_page"]) == (10, 0, 10, 2)


def test_private_images_are_paged(wires: Wires) -> None:
    page = wires.data("POST", "/image/private/list", {"page_index": 1, "page_size": 1})
    assert [row["image_name"] for row in page["list"]] == ["digits-env"]
    assert page["max_page"] == 2


def test_a_base_image_of_the_appendix_boots(wires: Wires) -> None:
    uuid = wires.deploy(job(image_uuid="base-image-k0vep6kyq8"))
    boot(wires, uuid)
    assert wires.deployments()[0]["template"]["image_name"] == "cuda9.0-cudnn7-devel-ubuntu16.04-py36"


def test_names_need_not_be_unique(wires: Wires) -> None:
    assert wires.deploy(job()) != wires.deploy(job())


@pytest.mark.parametrize(("method", "path"), [("GET", "/deployment"), ("POST", "/deployment/nothing")])
def test_other_methods_and_paths_do_not_exist(wires: Wires, method: str, path: str) -> None:
    url = f"{wires.fake.autodl_url}/api/v1/dev{path}"
    reply = requests.request(method, url, headers={"Authorization": wires.fake.token}, timeout=60)
    assert reply.status_code in {404, 405}
