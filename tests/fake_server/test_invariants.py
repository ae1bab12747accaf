"""Whatever is done in whatever order, at the end of it all the books balance."""

import random
from concurrent.futures import ThreadPoolExecutor

from fake_server.server import FakeServer
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, Wires, eventually, job, replica_set


def _autodl_customer(fake: FakeServer, seed: int) -> None:
    """Rent, stop, scale and delete in an order drawn by lot."""
    dice, wires = random.Random(seed), Wires(fake)
    with wires.session:
        for _ in range(6):
            body = dice.choice(
                [job(replica_num=3, parallelism_num=2), replica_set(replica_num=2, reuse_container=dice.random() < 0.5)]
            )
            uuid = wires.deploy(body)
            for _ in range(dice.randint(0, 4)):
                for container in wires.containers(uuid)[:1]:
                    wires.autodl("PUT", "/deployment/container/stop", {"deployment_container_uuid": container["uuid"]})
                asked = {"deployment_uuid": uuid, "replica_num": dice.randint(0, 3)}
                wires.autodl("PUT", "/deployment/replica_num", asked)
            wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})


def _matrixdc_customer(fake: FakeServer, seed: int) -> None:
    """Rent, switch off and on, and delete, without waiting for any of it."""
    dice, wires = random.Random(seed), Wires(fake)
    headers = {"Authorization": f"bearer {fake.token}", "namespace": fake.namespace}
    with wires.session:
        for _ in range(6):
            name = wires.rent()
            for _ in range(dice.randint(0, 6)):
                switch = f"{fake.matrixdc_url}{INSTANCES}/{name}/{dice.choice(['power_off', 'power_on'])}"
                wires.session.post(switch, json={"gracePeriodSeconds": 0}, headers=headers, timeout=30)
            assert wires.matrixdc("DELETE", f"{INSTANCES}?name={name}") == "ok"


def test_when_all_is_released_nothing_runs_nothing_is_billed_and_the_stock_is_whole() -> None:
    with FakeServer(speed=50, containers=QuietContainers) as fake:
        wires = Wires(fake)
        with wires.session:
            stock = wires.control("GET", "state")["stock"]
            with ThreadPoolExecutor(8) as customers:
                runs = [customers.submit(_autodl_customer, fake, seed) for seed in range(4)]
                runs += [customers.submit(_matrixdc_customer, fake, seed) for seed in range(4)]
            for run in runs:
                run.result()
            eventually(lambda: wires.boxes() == [] and wires.deployments() == [])
            state = wires.control("GET", "state")
            assert state["machines"] == []
            assert state["stock"] == stock
            assert list(fake.world.ground.containers.running()) == []
            truth = wires.truth()
            assert len(truth) > 24
            assert not any(machine["powered"] for machine in truth)
            costs = [machine["cost_cny"] for machine in truth]
            wires.advance(3600)
            assert [machine["cost_cny"] for machine in wires.truth()] == costs
