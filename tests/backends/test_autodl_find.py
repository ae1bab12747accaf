"""AutoDL's deployments, looked for by name; the address of a container, and hosts that are avoided."""

from dataclasses import replace
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs.backends.autodl import AutoDL, open_backend
from gpujobs.errors import Refused
from gpujobs.models import MachineStatus
from tests.backends.autodl_values import (
    CONTAINER,
    DEPLOYMENT,
    MACHINE,
    NAME,
    OTHER,
    backend_at,
    page,
    until,
)
from tests.backends.clouds import Answer, Request, account_on, canned, recipe_of
from tests.clocks import ManualClock


@pytest.fixture
def backend(server: FakeServer, clock: ManualClock) -> AutoDL:
    return open_backend(account_on(server, "autodl"), clock=clock)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"status": "running", "running_num": 1}, MachineStatus.RUNNING),
        ({"status": "running", "starting_num": 1}, MachineStatus.BOOTING),
        ({"status": "running", "finished_num": 1}, MachineStatus.ENDED),
        ({"status": "running"}, MachineStatus.QUEUED),
        ({"status": "stopped"}, MachineStatus.ENDED),
        ({"status": "stopped", "running_num": 1}, MachineStatus.STOPPING),
        ({"status": "stopped", "starting_num": 1}, MachineStatus.STOPPING),
        ({"status": "melting"}, MachineStatus.UNKNOWN),
    ],
)
def test_what_costs_money_is_told_from_the_list(changes: dict[str, Any], status: MachineStatus) -> None:
    row = {**DEPLOYMENT, "name": NAME, "deployment_type": "Job", "finished_num": 0, **changes}
    with canned(lambda asked: page() if "container" in asked.path else page(row, OTHER)) as api:
        assert [(one.name, one.status) for one in backend_at(api.url).find("gj-")] == [(NAME, status)]


def test_a_job_whose_only_container_is_down_is_over_though_it_reads_running() -> None:
    row = {**DEPLOYMENT, "name": NAME, "deployment_type": "Job", "finished_num": 0, "status": "running"}
    down = {**CONTAINER, "status": "shutdown"}
    assert [found_with(row, down, released=which) for which in (False, True)] == [MachineStatus.ENDED] * 2


@pytest.mark.parametrize(("word", "status"), [("creating", MachineStatus.BOOTING), ("odd", MachineStatus.UNKNOWN)])
def test_a_container_that_lives_is_seen_though_the_list_counts_none(word: str, status: MachineStatus) -> None:
    row = {**DEPLOYMENT, "name": NAME, "deployment_type": "Job", "finished_num": 0, "status": "running"}
    assert found_with(row, {**CONTAINER, "status": word}, released=False) is status


def found_with(row: Any, container: Any, *, released: bool) -> MachineStatus:
    def answer(asked: Request) -> Answer:
        if "container" not in asked.path:
            return page(row)
        return page(*([container] if asked.body["released"] is released else []))

    with canned(answer) as api:
        (machine,) = backend_at(api.url).find("gj-")
    return machine.status


def access_of(*containers: Any) -> Any:
    with canned(lambda _: page(*containers)) as api:
        return backend_at(api.url).access(MACHINE)


def test_access_is_that_of_the_running_container() -> None:
    creating = {**CONTAINER, "uuid": "c0", "status": "creating", "info": {}}
    access = access_of(creating, CONTAINER)
    assert (access.host, access.port, access.user, access.password) == (
        "region-1.autodl.com",
        21305,
        "root",
        "canary-password",
    )
    assert access.links == {
        "6006": "https://region-1.autodl.com:21294",
        "6008": "https://region-1.autodl.com:21295",
    }


@pytest.mark.parametrize("changes", [{"status": "creating"}, {"info": None}, {"status": "shutdown"}])
def test_there_is_no_access_without_a_running_container(changes: dict[str, Any]) -> None:
    assert access_of({**CONTAINER, **changes}) is None
    assert access_of() is None


def test_an_odd_ssh_command_is_refused_by_the_containers_name() -> None:
    odd = {**CONTAINER, "info": {**CONTAINER["info"], "ssh_command": "ssh -oProxyCommand=x -p 1 a@b"}}  # type: ignore[dict-item]
    with pytest.raises(Refused, match="53a677bb3e281b8-f94411a60c-63c24009"):
        access_of(odd)


def test_a_bad_host_is_avoided_for_a_day(backend: AutoDL, server: FakeServer) -> None:
    recipe = recipe_of("RTX 4090")
    machine = backend.create(recipe, backend.offers(recipe)[0], name=NAME, image="")
    assert backend.avoid(machine, why="no container yet") is False
    until(backend, machine, MachineStatus.RUNNING)
    machine = backend.refresh(machine)
    assert backend.avoid(machine, why="slow to boot " + "x" * 300) is True
    with server.world.ground.lock:
        (ban,) = server.world.autodl.bans()
    assert (ban.host.machine_id, ban.comment[:21]) == (machine.host, "gpujobs: slow to boot")
    assert 86000 < ban.expires_at - ban.updated_at <= 86400
    assert backend.avoid(replace(machine, unit="never-was"), why="x") is False


def test_what_may_be_free_on_blocked_hosts_alone_is_in_doubt(backend: AutoDL, server: FakeServer) -> None:
    recipe = recipe_of("RTX 4090", resources={"infra": ["autodl/neimengDC1", "autodl/westDC2"]})
    assert [offer.in_doubt for offer in backend.offers(recipe)] == [False, False]
    with server.world.ground.lock:
        cloud = server.world.autodl
        for region in ("neimengDC1", "westDC2"):  # of one host with a 4090, and of six
            host = next(one for one in cloud.fleet.hosts if (one.data_center, one.gpu_name) == (region, "RTX 4090"))
            cloud.fleet.ban(host, minutes=60, comment="", now=server.world.ground.timeline.now())
    offers = backend.offers(recipe)
    assert [(one.region, one.free, one.in_doubt) for one in offers] == [("neimengDC1", 7, True), ("westDC2", 36, False)]
