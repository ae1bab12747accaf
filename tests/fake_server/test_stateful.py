"""Hypothesis plays a customer of both clouds, with faults and a clock: the ledger and what the APIs show stay one."""

from typing import Any

import requests
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from fake_server.server import FakeServer
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, Wires, eventually, instance, job, replica_set

ACTED = {"lost_reply"}
REFUSED = {"error_500", "reset", "rate_limit_429"}
FAULT_OR_NONE = st.sampled_from(["", "", "lost_reply", "error_500"])
FEWEST_4090 = 16
CREATES = {"autodl.create_deployment", "matrixdc.create_instance"}
RELEASES = {"autodl.delete_deployment", "matrixdc.delete_instance", "autodl.stop_container"}


class Customer(RuleBasedStateMachine):
    """Rents, looks, stops and releases. `made` is what must have been made, by name."""

    deployments = Bundle("deployments")
    boxes = Bundle("boxes")

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeServer(speed=0, seed=1, containers=QuietContainers).start()
        self.wires = Wires(self.fake)
        self.made: list[str] = []
        self.costs: dict[str, float] = {}
        self.stock = self.wires.control("GET", "state")["stock"]
        self.total = sum(self._gpus(self.stock).values())

    def teardown(self) -> None:
        self.wires.session.close()
        self.fake.stop()

    @initialize()
    def begin(self) -> None:
        assert self.wires.truth() == []

    @rule(
        target=deployments,
        count=st.integers(1, 3),
        reuse=st.booleans(),
        kind=st.sampled_from(["Job", "ReplicaSet"]),
        fault=FAULT_OR_NONE,
    )
    def deploy(self, count: int, kind: str, fault: str, *, reuse: bool) -> Any:
        self._arm_if_any("autodl.create_deployment", fault)
        name = f"d{len(self.made)}"
        work = job(replica_num=count, parallelism_num=count)
        body = work if kind == "Job" else replica_set(replica_num=count, reuse_container=reuse)
        reply = self._call("POST", f"{self.fake.url}/api/v1/dev/deployment", {**body, "name": name})
        if reply is not None and reply.status_code == 200:
            self.made.append(name)
            return str(reply.json()["data"]["deployment_uuid"])
        return self._found_after_a_fault("autodl.create_deployment", name)

    @rule(target=boxes, fault=FAULT_OR_NONE)
    def rent(self, fault: str) -> Any:
        self._arm_if_any("matrixdc.create_instance", fault)
        name = f"b{len(self.made)}"
        reply = self._call("POST", f"{self.fake.matrixdc_url}{INSTANCES}", instance(displayName=name, VolumeMount=[]))
        if reply is not None and reply.status_code == 200:
            self.made.append(name)
            return str(reply.json()["name"])
        if reply is not None and reply.status_code == 400:
            assert "库存不足" in reply.text
            return multiple()
        return self._found_after_a_fault("matrixdc.create_instance", name)

    @rule(uuid=deployments, farewell=st.booleans())
    def stop_one(self, uuid: str, *, farewell: bool) -> None:
        for container in self._containers(uuid)[:1]:
            body = {"deployment_container_uuid": container["uuid"], "decrease_one_replica_num": farewell}
            self._call("PUT", f"{self.fake.url}/api/v1/dev/deployment/container/stop", body)

    @rule(uuid=deployments, count=st.integers(0, 4))
    def scale(self, uuid: str, count: int) -> None:
        body = {"deployment_uuid": uuid, "replica_num": count}
        self._call("PUT", f"{self.fake.url}/api/v1/dev/deployment/replica_num", body)

    @rule(uuid=consumes(deployments))
    def delete(self, uuid: str) -> None:
        self._until_done("DELETE", f"{self.fake.url}/api/v1/dev/deployment", {"deployment_uuid": uuid})

    @rule(name=boxes, on=st.booleans())
    def switch(self, name: str, *, on: bool) -> None:
        call = "power_on" if on else "power_off"
        self._call("POST", f"{self.fake.matrixdc_url}{INSTANCES}/{name}/{call}", {"gracePeriodSeconds": 0})

    @rule(name=consumes(boxes))
    def release(self, name: str) -> None:
        self._until_done("DELETE", f"{self.fake.matrixdc_url}{INSTANCES}?name={name}", None)

    @rule(endpoint=st.sampled_from(sorted(CREATES | RELEASES)), kind=st.sampled_from(sorted(ACTED | REFUSED)))
    def arm(self, endpoint: str, kind: str) -> None:
        self.wires.control("POST", "faults", {"endpoint": endpoint, "kind": kind})

    @rule(seconds=st.sampled_from([0.05, 0.2, 1.0, 60.0, 7200.0]))
    def advance(self, seconds: float) -> None:
        self.wires.advance(seconds)

    @rule()
    def look(self) -> None:
        """Reads change nothing."""
        self._settled()
        before = self.wires.truth(), self.wires.control("GET", "state")
        for row in self.wires.deployments():
            self.wires.events(row["uuid"])
        self.wires.matrixdc("GET", INSTANCES)
        assert (self.wires.truth(), self.wires.control("GET", "state")) == before

    @invariant()
    def the_ledger_is_what_the_apis_show(self) -> None:
        self._settled()

    @invariant()
    def money_only_grows_and_stands_once_a_machine_is_gone(self) -> None:
        for machine in self.wires.truth():
            key, cost = machine["id"], machine["cost_cny"]
            assert cost >= self.costs.get(key, 0.0)
            if machine["gone_at"] is not None:
                assert not machine["powered"]
                assert self.costs.get(f"{key} gone", cost) == cost
                self.costs[f"{key} gone"] = cost
            self.costs[key] = cost

    @invariant()
    def what_was_promised_was_made(self) -> None:
        shown = {row["name"] for row in self.wires.deployments()} | {each["name"] for each in self.wires.truth()}
        box_names = {node["displayName"] for node in self.wires.matrixdc("GET", INSTANCES)["nodes"]}
        extra = (shown | box_names) - set(self.made)
        assert extra == set()

    @invariant()
    def free_and_held_gpus_are_all_gpus(self) -> None:
        def balanced() -> bool:
            state = self.wires.control("GET", "state")
            return sum(self._gpus(state["stock"]).values()) + self._held() == self.total

        eventually(balanced, within_s=60)

    def _held(self) -> int:
        """GPUs that the API shows as held: containers that have not ended, instances that are not shut down."""
        containers = [each for row in self.wires.deployments() for each in self._containers(row["uuid"])]
        off = {"Shutdown", "Failed"}
        nodes = [node for node in self.wires.matrixdc("GET", INSTANCES)["nodes"] if node["status"] not in off]
        return sum(each["gpu_num"] for each in containers) + len(nodes)

    def _settled(self) -> None:
        """What the ledger says is alive is what both APIs list."""

        def agreed() -> bool:
            alive = {machine["id"] for machine in self.wires.truth() if machine["gone_at"] is None}
            listed = {each["uuid"] for row in self.wires.deployments() for each in self._containers(row["uuid"])}
            return alive == listed | set(self.wires.boxes())

        eventually(agreed, within_s=60)

    def _containers(self, uuid: str) -> list[dict[str, Any]]:
        asked = {"deployment_uuid": uuid, "page_index": 1, "page_size": 100}
        data = self.wires.autodl("POST", "/deployment/container/list", asked)["data"]
        return list(data["list"]) if data else []

    def _found_after_a_fault(self, endpoint: str, name: str) -> Any:
        """What a create made whose reply was a fault: all or nothing, as the fault's kind says."""
        rules = self.wires.control("GET", "faults")["rules"]
        spent = [each for each in rules if each["endpoint"] == endpoint and each["fired"] == 1]
        acted = spent[-1]["kind"] in ACTED
        rows = {row["name"]: row["uuid"] for row in self.wires.deployments()}
        rows.update({n["displayName"]: n["name"] for n in self.wires.matrixdc("GET", INSTANCES)["nodes"]})
        if not acted:
            assert name not in rows
            return multiple()
        if endpoint == "matrixdc.create_instance" and len(self.wires.boxes()) >= FEWEST_4090:
            return multiple()  # there may have been no stock either
        assert name in rows
        self.made.append(name)
        return rows[name]

    def _arm_if_any(self, endpoint: str, kind: str) -> None:
        if kind:
            self.wires.control("POST", "faults", {"endpoint": endpoint, "kind": kind})

    def _until_done(self, method: str, url: str, body: Any) -> None:
        for _ in range(20):
            reply = self._call(method, url, body)
            if reply is not None and reply.status_code in {200, 404}:
                return
        raise AssertionError(f"{method} {url} does not come to an end")

    def _call(self, method: str, url: str, body: Any) -> requests.Response | None:
        headers = {"Authorization": self.fake.token}
        if "/mdc/" in url:
            headers = {"Authorization": f"bearer {self.fake.token}", "namespace": self.fake.namespace}
        try:
            return self.wires.session.request(method, url, json=body, headers=headers, timeout=60)
        except requests.ConnectionError:
            return None

    @staticmethod
    def _gpus(stock: dict[str, Any]) -> dict[str, int]:
        idle = {f"{region} {gpu}": count for region, gpus in stock["autodl"].items() for gpu, count in gpus.items()}
        return {**idle, **stock["matrixdc"]}


Customer.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # a shorter story of a failure is not worth the waiting
    database=None,
)
TestCustomer = Customer.TestCase
