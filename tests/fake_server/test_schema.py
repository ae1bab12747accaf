"""What is published at /_fake/openapi.json holds: Schemathesis draws calls from it, good and bad ones.

1,500 of them; FUZZ_CASES=5000 draws so many, and other ones each time.
"""

import json
import os
import random
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS
from schemathesis.schemas import BaseSchema

from fake_server.openapi import CALLS, document
from fake_server.server import FakeServer
from fake_server.timings import Guesses
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, Wires, eventually, job, replica_set

CASES = int(os.environ.get("FUZZ_CASES", "1500"))
LONGEST_S = 10.0
CHECKED = {
    "lawful": (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    ),
    "unlawful": ("not_a_server_error",),
}
WORLD_LASTS = 250


class World:
    """A fake with something in it, so that drawn calls can find something. It begins anew now and then."""

    def __init__(self, fake: FakeServer) -> None:
        self.fake, self.wires, self.calls = fake, Wires(fake), 0
        self.answers: dict[tuple[str, str], int] = {}

    def ids(self) -> dict[str, list[str]]:
        """Names that exist, by the field or parameter that takes them."""
        world = self.fake.world
        with world.ground.lock:
            deployments, containers = list(world.autodl.deployments), list(world.autodl.containers)
            boxes = list(world.matrixdc.instances)
        containers = containers or ["none-such"]
        return {
            "deployment_uuid": deployments or ["none-such"],
            "deployment_container_uuid": containers,
            "container_uuid": containers,
            "name": boxes or ["none-such"],
            "region_id": ["14c5a9e3-0d09-4aa0-99d3-c096b80cceaa"],
        }

    def begin_anew_now_and_then(self) -> None:
        if self.calls % WORLD_LASTS == 0:
            self.fake.reset()
            self.wires.running(self.wires.deploy(replica_set(replica_num=2, reuse_container=True)), 2)
            self.wires.deploy(job(gpu_name_set=["H800"], dc_list=["neimengDC1"]))
        if not self.fake.world.matrixdc.instances:  # at first, and once a drawn call has deleted it
            self.wires.boxed(self.wires.rent(), "Running")
        self.calls += 1

    def headers(self, path: str) -> dict[str, str]:
        if path.startswith("/mdc"):
            return {"Authorization": f"bearer {self.fake.token}", "namespace": self.fake.namespace}
        return {"Authorization": self.fake.token}


@pytest.fixture(scope="module")
def schema() -> BaseSchema:
    return schemathesis.openapi.from_dict(document(Guesses()))


def lawful(mode: str) -> Any:
    return schemathesis.GenerationMode.POSITIVE if mode == "lawful" else schemathesis.GenerationMode.NEGATIVE


def with_real_ids(case: Any, ids: dict[str, list[str]], pick: Any) -> None:
    """Put names that exist where the call takes a name."""
    for place in (case.body, case.query, case.path_parameters):
        for key in ids.keys() & set(place) if isinstance(place, dict) else ():
            if place is not case.body or "container_template" not in place:
                place[key] = pick(ids[key])


def test_every_call_is_published_and_nothing_else(wires: Wires) -> None:
    published = wires.session.get(f"{wires.fake.url}/_fake/openapi.json", timeout=60).json()
    names = [each["operationId"] for path in published["paths"].values() for each in path.values()]
    assert sorted(names) == wires.control("GET", "faults")["endpoints"]
    assert len(names) == len(CALLS) == 13 + 8
    assert published == json.loads(json.dumps(document(Guesses())))


OTHER_GUESSES = Guesses(
    matrixdc_not_found_status=410,
    matrixdc_error_body="kubernetes",
    autodl_error_status=422,
    autodl_stock_shape="object",
    autodl_blacklist_shape="object",
)


def test_what_is_published_follows_the_settings() -> None:
    told = document(OTHER_GUESSES)["paths"]["/mdc/api/v1/regions"]["get"]["responses"]
    assert "410" in told
    assert "404" not in told
    schema = schemathesis.openapi.from_dict(document(OTHER_GUESSES))
    with FakeServer(seed=1, containers=QuietContainers, guesses=OTHER_GUESSES) as fake:
        world = World(fake)
        with world.wires.session:
            uuid = world.wires.deploy(job())
            container = world.wires.running(uuid)[0]["uuid"]
            ban = {"deployment_container_uuid": container, "expire_in_minutes": 5}
            bodies: dict[str, Any] = {"autodl.gpu_stock": {"region_sign": "westDC2"}, "autodl.add_blacklist": ban}
            missing = {"deployment_uuid": "x", "operate": "stop"}
            bodies.update({"autodl.list_blacklist": None, "autodl.operate_deployment": missing})
            for name, body in bodies.items():
                operation = schema.find_operation_by_id(name)
                case = operation.Case(body=body) if body else operation.Case()
                reply = case.call(base_url=fake.url, session=world.wires.session, headers=world.headers(case.path))
                case.validate_response(reply, checks=[CHECKS.get_one(check) for check in CHECKED["lawful"]])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["lawful", "unlawful"])
def test_no_drawn_call_breaks_or_hangs_the_fake(schema: BaseSchema, mode: str) -> None:
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == len(CALLS)
    drawable = [each for each in operations if mode == "lawful" or each.body or each.query or each.path_parameters]
    cases = st.one_of([each.as_strategy(generation_mode=lawful(mode)) for each in drawable])
    checks = [CHECKS.get_one(name) for name in CHECKED[mode]]
    share = settings(
        max_examples=CASES // 2,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize="FUZZ_CASES" not in os.environ,
        database=None,
    )
    with FakeServer(speed=200, seed=1, containers=QuietContainers) as fake:
        world = World(fake)

        @share
        @given(case=cases, data=st.data())
        def play(case: Any, data: st.DataObject) -> None:
            world.begin_anew_now_and_then()
            # One draw, whatever names there are by now: what is drawn twice must be drawn alike.
            dice = random.Random(data.draw(st.integers(0, 2**16)))
            if dice.randrange(4):
                with_real_ids(case, world.ids(), dice.choice)
            reply = case.call(
                base_url=fake.url, session=world.wires.session, headers=world.headers(case.path), timeout=LONGEST_S
            )
            case.validate_response(reply, checks=checks)
            key = (case.operation.definition.raw["operationId"], went(reply))
            world.answers[key] = world.answers.get(key, 0) + 1

        with world.wires.session:
            play()
            assert sum(world.answers.values()) >= CASES // 2
            if mode == "lawful":
                done = {name for name, answer in world.answers if answer in {"200", "Success"}}
                assert done >= {"autodl.list_containers", "autodl.list_events", "matrixdc.get_instance"}


def went(reply: Any) -> str:
    body = reply.json() if reply.status_code == 200 else None
    return str(body["code"]) if isinstance(body, dict) and "code" in body else str(reply.status_code)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'"' + b"token" * 200_000 + b'"',
        b'"' + b"a" * 1_000_000 + b'"',
        b"\xff\xfe" * 1000,
        b'{"deployment_uuid": "\\ud800"}',
        b'{"deployment_uuid": 1e999}',
        b'{"page_index": 1' + b"0" * 5000 + b"}",
        b"null",
        b"",
    ],
    ids=[
        "deep",
        "deep objects",
        "token word",
        "long word",
        "no UTF-8",
        "half a surrogate",
        "inf",
        "big",
        "null",
        "none",
    ],
)
def test_a_monstrous_body_is_refused_soon(wires: Wires, body: bytes) -> None:
    name = wires.rent()
    for method, path in (
        ("POST", "/api/v1/dev/deployment"),
        ("POST", "/api/v1/dev/deployment/list"),
        ("DELETE", "/api/v1/dev/deployment"),
        ("POST", f"/mdc/api/v1{INSTANCES}"),
        ("POST", f"/mdc/api/v1{INSTANCES}/{name}/power_off"),
    ):
        headers = {"Authorization": "bearer fake-token" if "/mdc" in path else "fake-token", "namespace": "fake-user"}
        reply = requests.request(method, wires.fake.url + path, data=body, headers=headers, timeout=LONGEST_S)
        assert reply.status_code < 500, (path, reply.status_code)


def test_the_world_stands_after_a_storm_of_cases(wires: Wires) -> None:
    """A rented machine still runs and is released as ever."""
    uuid = wires.deploy(job())
    eventually(lambda: wires.advance(1) or wires.containers(uuid, status=["running"]))
    wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})
    wires.advance(5)
    eventually(lambda: wires.deployments() == [])
