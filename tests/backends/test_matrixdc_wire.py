"""MatrixDC's client: each endpoint as the API document writes it, replies as its samples have them."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from gpujobs.backends._matrixdc_wire import MatrixDCClient
from tests.backends.clouds import TOKEN, Answer, canned
from tests.backends.matrixdc_values import CREATING, NAME, REGION, RUNNING, SKU, client_at


@pytest.mark.parametrize(
    ("ask", "answer", "method", "path", "body"),
    [
        (lambda api: api.regions(), [], "GET", "/regions", None),
        (lambda api: api.skus("a b"), [], "GET", "/skus/computings?region_id=a+b", None),
        (lambda api: api.create_instance("c", {"a": 1}), CREATING, "POST", "/clusters/c/instances", {"a": 1}),
        (lambda api: api.instances("c"), {"nodes": []}, "GET", "/clusters/c/instances", None),
        (lambda api: api.instance("c", "i/../j"), RUNNING, "GET", "/clusters/c/instances/i%2F..%2Fj", None),
        (
            lambda api: api.power_off("c", "i", image_name="image1", tag="v1.1.0"),
            "ok",
            "POST",
            "/clusters/c/instances/i/power_off",
            {"gracePeriodSeconds": 10, "needSnapshot": True, "imageName": "image1", "tag": "v1.1.0"},
        ),
        (
            lambda api: api.power_off("c", "i", grace_s=3),
            "ok",
            "POST",
            "/clusters/c/instances/i/power_off",
            {"gracePeriodSeconds": 3, "needSnapshot": False, "imageName": "", "tag": ""},
        ),
        (lambda api: api.power_on("c", "i"), "ok", "POST", "/clusters/c/instances/i/power_on", None),
        (lambda api: api.delete_instance("c", "i"), "ok", "DELETE", "/clusters/c/instances?name=i", None),
    ],
)  # fmt: skip
def test_each_endpoint_is_asked_as_documented(
    ask: Callable[[MatrixDCClient], Any], answer: Any, method: str, path: str, body: Any
) -> None:
    with canned(lambda _: Answer(body=answer)) as api:
        ask(client_at(api.url))
    (asked,) = api.asked
    assert (asked.method, asked.path, asked.body) == (method, path, body)
    assert (asked.headers["Authorization"], asked.headers["namespace"]) == (f"bearer {TOKEN}", "me")


def test_an_instance_is_read_while_it_is_made_and_when_it_runs() -> None:
    with canned(lambda asked: Answer(body=CREATING if asked.path.endswith("/a") else RUNNING)) as api:
        creating, running = client_at(api.url).instance("c", "a"), client_at(api.url).instance("c", "b")
    assert (creating.name, creating.display_name, creating.status) == ("instance-ccffxxxx", NAME, "Creating")
    assert creating.created_at == datetime(2024, 9, 2, 10, 34, 33, tzinfo=UTC)
    assert (creating.updated_at, creating.stop_at, creating.pods) == (None, None, ())
    assert creating.servers.ssh.address == ""
    assert [(disk.path, disk.size_gb) for disk in creating.volume_mounts] == [("/", 30), ("/root/data", 0)]
    assert (creating.resources.memory_gb, creating.annotation("unit-price")) == (96.0, "250")
    assert creating.annotation("price") == ""
    assert running.pods[0].node == "gpu-4090-03"
    assert running.servers.ssh.password.get_secret_value() == "canary-password"
    assert "canary" not in repr(running) + str(running) + repr(running.servers) + repr(running.servers.ssh)
    assert running.model_extra
    assert running.model_extra["Region"] == "host-cluster"


@pytest.mark.parametrize(
    ("memory", "gb"),
    [("96Gi", 96.0), ("98304Mi", 96.0), ("1Ti", 1024.0), ("103079215104", 96.0), ("", None), ("?", None)],
)  # fmt: skip
def test_memory_is_read_with_its_unit(memory: str, gb: float | None) -> None:
    with canned(lambda _: Answer(body={**CREATING, "resources": {"memory": memory}})) as api:
        assert client_at(api.url).instance("c", "i").resources.memory_gb == gb


def test_a_region_and_a_size_are_read() -> None:
    with canned(lambda asked: Answer(body=[REGION] if asked.path == "/regions" else [SKU])) as api:
        (region,), (sku,) = client_at(api.url).regions(), client_at(api.url).skus("x")
    assert (region.region, region.cluster_name, region.harbor_addr) == (
        "北京一区",
        "host-cluster",
        "images.neolink-ai.com",
    )
    assert (sku.name, sku.gpu_counts, sku.remain_gpu_count, sku.price) == ("H20", 1, 8, 10.0)
    assert (sku.skus_id, sku.selling_type, sku.memory_count) == ("2", "1", 192.0)


@pytest.mark.parametrize("body", ["ok", "OK", "", {}, None, b"", b"ok"])
def test_what_is_answered_to_an_act_matters_little(body: Any) -> None:
    with canned(lambda _: Answer(body=body)) as api:
        client_at(api.url).delete_instance("c", "i")
    assert len(api.asked) == 1
