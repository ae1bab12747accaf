"""Every Python sample of the two API documents, run against the fake.

Kept in samples/ as it stands in the documents, but for the colon that some lack in `"namespace" "$userid"`. Only the
host, the token and ids are changed before it runs. replies.json holds the documents' replies, with the fields that
only their tables name.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fake_server.wires import Wires, eventually, replica_set

SAMPLES = Path(__file__).parent / "samples"
REPLIES = json.loads((SAMPLES / "replies.json").read_text())
AUTODL_HOST = "https://api.autodl.com"
MATRIXDC_HOST = "https://demo.cdc.datenfab.com/mdc"


def run(wires: Wires, sample: str, **ids: str) -> Any:
    """Run a sample with host, token and ids changed; return the JSON of its reply."""
    code = (SAMPLES / f"{sample}.py.txt").read_text()
    changes = {
        AUTODL_HOST: wires.fake.url,
        MATRIXDC_HOST: f"{wires.fake.url}/mdc",
        "您的token": wires.fake.token,
        "$token": wires.fake.token,
        "$userid": wires.fake.namespace,
        '"namespace": "xxx"': f'"namespace": "{wires.fake.namespace}"',
        **ids,
    }
    for old, new in changes.items():
        code = code.replace(old, new)
    space: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, sample, "exec"), space)
    assert printed.getvalue().strip()
    response = space["response"]
    assert response.status_code == 200, response.text
    return response.json()


def differences(documented: Any, given: Any, at: str = "reply") -> list[str]:
    """Return where a reply lacks a documented field or has it of another type; null goes with anything."""
    if documented is None or given is None:
        return []
    if isinstance(documented, dict) and isinstance(given, dict):
        lacks = [f"{at} lacks {key}" for key in documented if key not in given]
        shared = [key for key in documented if key in given]
        return lacks + [each for key in shared for each in differences(documented[key], given[key], f"{at}.{key}")]
    if isinstance(documented, list) and isinstance(given, list):
        wrong = [] if given else [f"{at} is empty"]
        return wrong + [each for row in given for each in differences(documented[0], row, f"{at}[]")]
    numbers = (int, float)
    same = type(documented) is type(given) or (isinstance(documented, numbers) and isinstance(given, numbers))
    return [] if same else [f"{at} is {type(given).__name__}, not {type(documented).__name__}"]


def agrees(sample: str, reply: Any) -> None:
    assert differences(REPLIES[sample], reply) == []


@pytest.fixture
def deployment(real: Wires) -> str:
    """A running ReplicaSet of one."""
    uuid = real.deploy(replica_set(replica_num=1))
    real.running(uuid)
    return uuid


@pytest.fixture
def box(real: Wires) -> str:
    """A running instance."""
    name = real.rent()
    real.boxed(name, "Running")
    return name


def test_every_sample_is_tested() -> None:
    samples = {path.name.removesuffix(".py.txt") for path in SAMPLES.glob("*.py.txt")}
    assert len(samples) == 12 + 8
    assert samples == set(REPLIES) - {"autodl.list_deployments"}


def test_the_comparison_notices_what_is_missing_or_of_another_type() -> None:
    assert differences({"a": [{"b": 1}]}, {"a": [{"b": "1"}, {}]}) == [
        "reply.a[].b is str, not int",
        "reply.a[] lacks b",
    ]
    assert differences({"a": [1]}, {"a": []}) == ["reply.a is empty"]


def test_matrixdc_regions_and_sizes(real: Wires) -> None:
    for sample in ("matrixdc.list_regions", "matrixdc.list_skus"):
        agrees(sample, run(real, sample))


def test_matrixdc_create(real: Wires) -> None:
    reply = run(real, "matrixdc.create_instance")
    agrees("matrixdc.create_instance", reply)
    documented = REPLIES["matrixdc.create_instance"]
    assert list(reply) == list(documented)
    for key in ("displayName", "image", "resources", "status", "cost", "Region", "updateTimestamp"):
        assert reply[key] == documented[key]
    assert set(reply["annotations"]) == set(documented["annotations"])
    assert reply["annotations"]["demo.cdc.datenfab.com/unit-price"] == "250"


def test_matrixdc_list_and_get(real: Wires, box: str) -> None:
    for name in real.boxes():
        real.boxed(name, "Running")
    agrees("matrixdc.list_instances", run(real, "matrixdc.list_instances"))
    reply = run(real, "matrixdc.get_instance", **{"instance-4ca9xxxx": box})
    agrees("matrixdc.get_instance", reply)
    assert [volume["Size"] for volume in reply["volumeMounts"]] == [30, 50]


def test_matrixdc_off_on_and_delete(real: Wires, box: str) -> None:
    assert run(real, "matrixdc.power_off", **{"instance-3ba5xxxx": box}) == "ok"
    real.boxed(box, "Shutdown")
    assert "images.neolink-ai.com/fake-user/image1:v1.1.0" in real.control("GET", "state")["images"]
    assert run(real, "matrixdc.power_on", **{"instance-4ca9xxxx": box}) == "ok"
    real.boxed(box, "Running")
    assert run(real, "matrixdc.delete_instance", **{"instance-ccffxxxx": box}) == "ok"
    eventually(lambda: box not in real.boxes())


def test_autodl_images_and_stock(real: Wires) -> None:
    agrees("autodl.list_images", run(real, "autodl.list_images"))
    stock = run(real, "autodl.gpu_stock")
    shapes = {name: set(numbers) for row in stock["data"] for name, numbers in row.items()}
    documented = {name: set(numbers) for row in REPLIES["autodl.gpu_stock"]["data"] for name, numbers in row.items()}
    assert shapes.items() >= documented.items()
    assert all(len(row) == 1 for row in stock["data"])


def test_autodl_create_of_all_three_types(real: Wires) -> None:
    agrees("autodl.create_deployment", run(real, "autodl.create_deployment"))
    text = (SAMPLES / "autodl.create_deployment.py.txt").read_text()
    for heading in ("# 如果创建Job类型部署,Body为:", "# 如果创建Container类型部署,Body为:"):
        source = text.split(heading)[1].split("#", maxsplit=1)[0]
        body = eval(source.strip())
        reply = real.autodl("POST", "/deployment", body)
        agrees("autodl.create_deployment", reply)
        shown = real.deployments(deployment_uuid=reply["data"]["deployment_uuid"])[0]
        assert shown["deployment_type"] == body["deployment_type"]
        real.data("DELETE", "/deployment", {"deployment_uuid": shown["uuid"]})


def test_autodl_list_of_deployments(real: Wires, deployment: str) -> None:
    reply = real.autodl("POST", "/deployment/list", {"page_index": 1, "page_size": 10})
    agrees("autodl.list_deployments", reply)
    assert deployment in {row["uuid"] for row in reply["data"]["list"]}


def test_autodl_events_and_containers(real: Wires, deployment: str) -> None:
    ids = {"424446e02893b5f": deployment}
    for sample in ("autodl.list_events", "autodl.list_containers"):
        agrees(sample, run(real, sample, **ids))


def test_autodl_blacklist(real: Wires, deployment: str) -> None:
    name = real.containers(deployment)[0]["uuid"]
    agrees("autodl.add_blacklist", run(real, "autodl.add_blacklist", **{"da497aea1eb8343-f94411a60c-1502e6e2": name}))
    reply = run(real, "autodl.list_blacklist")
    agrees("autodl.list_blacklist", reply)
    assert reply["data"][0]["msg"] == "开机缓慢,禁止在该主机上调度容器"


def test_autodl_prepaid_hours(real: Wires, deployment: str) -> None:
    agrees("autodl.ddp_overview", run(real, "autodl.ddp_overview", **{"your uuid": deployment}))


def test_autodl_stop_scale_operate_and_delete(real: Wires, deployment: str) -> None:
    name = real.containers(deployment)[0]["uuid"]
    ids = {"da497aea1eb8343-f94411a60c-ec630659": name, "5be3045703152b9": deployment}
    for sample in ("stop_container", "set_replica_num", "operate_deployment", "delete_deployment"):
        reply = run(real, f"autodl.{sample}", **ids)
        assert reply == REPLIES[f"autodl.{sample}"]
    eventually(lambda: deployment not in {row["uuid"] for row in real.deployments()})
