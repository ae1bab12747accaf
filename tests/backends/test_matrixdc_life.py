"""A MatrixDC machine's life once it is made: its address, its power, its end, its price."""

from dataclasses import replace
from typing import Any

import pytest

from fake_server.server import FakeServer
from gpujobs.backends.matrixdc import MatrixDC, open_backend
from gpujobs.errors import NotFound, Refused
from gpujobs.models import ImageRef, MachineStatus
from tests.backends.clouds import Answer, Request, account_on, alive, calls, canned
from tests.backends.matrixdc_values import (
    MACHINE,
    MISSING,
    REGION,
    RUNNING,
    SSH,
    backend_at,
    make,
    until,
)
from tests.clocks import ManualClock


@pytest.fixture
def backend(server: FakeServer, clock: ManualClock) -> MatrixDC:
    return open_backend(account_on(server, "matrixdc"), clock=clock)


def test_access_is_that_of_the_running_instance() -> None:
    with canned(lambda _: Answer(body=RUNNING)) as api:
        access = backend_at(api.url).access(MACHINE)
    assert access is not None
    assert (access.host, access.port, access.user) == ("8d40c2e6.gws.demo.cdc.datenfab.com", 30099, "root")
    assert access.password == "canary-password"
    assert access.links == {
        "jupyter": "http://8d40c2e6.gw.neolink-ai.com/jupyter?token=canary-7d27",
        "tensorboard": "http://8d40c2e6.gw.neolink-ai.com/monitor",
    }
    assert "canary" not in repr(access)


@pytest.mark.parametrize("changes", [{"servers": None}, {"servers": {"SSH": None}}, {"status": "Shutdown"}])
def test_there_is_no_access_before_there_is_an_address(changes: Any) -> None:
    with canned(lambda _: Answer(body={**RUNNING, **changes})) as api:
        assert backend_at(api.url).access(MACHINE) is None


def test_an_odd_ssh_address_is_refused_by_the_instances_name() -> None:
    odd = {**RUNNING, "servers": {"SSH": {**SSH, "sshAddr": "ssh -p1 root@host; reboot"}}}
    with canned(lambda _: Answer(body=odd)) as api, pytest.raises(Refused, match="instance-ccffxxxx"):
        backend_at(api.url).access(MACHINE)


def test_a_kept_machine_is_switched_on_again(backend: MatrixDC) -> None:
    machine = make(backend)
    until(backend, machine, MachineStatus.RUNNING)
    first = backend.access(machine)
    backend.power_off(machine)
    until(backend, machine, MachineStatus.OFF)
    assert backend.access(machine) is None
    backend.power_on(machine)
    backend.power_on(machine)
    until(backend, machine, MachineStatus.RUNNING)
    backend.power_on(machine)
    again = backend.access(machine)
    assert first
    assert again
    assert first.password != again.password


def test_a_refusal_of_what_is_done_already_is_success_and_any_other_is_not() -> None:
    refusal = Answer(409, {"message": "状态不允许"})

    def answer(asked: Request) -> Answer:
        if asked.path == "/regions":
            return Answer(body=[REGION])
        return refusal if asked.method in ("POST", "DELETE") else Answer(body={**RUNNING, "status": status})

    with canned(answer) as api:
        backend = backend_at(api.url)
        status = "Shutting Down"
        image = backend.power_off(MACHINE, snapshot=ImageRef(name="env", tag="v1"))
        assert image == "images.neolink-ai.com/me/env:v1"
        with pytest.raises(Refused):
            backend.power_on(MACHINE)
        with pytest.raises(Refused):
            backend.release(MACHINE)
        status = "Running"
        backend.power_on(MACHINE)
        with pytest.raises(Refused):
            backend.power_off(MACHINE)
        status = "Deleting"
        backend.release(MACHINE)


def test_a_disk_that_is_gone_cannot_be_saved() -> None:
    with canned(lambda _: MISSING) as api:
        assert backend_at(api.url).power_off(MACHINE) == ""
        with pytest.raises(NotFound):
            backend_at(api.url).power_off(MACHINE, snapshot=ImageRef(name="env", tag="v1"))


def test_a_machine_can_be_released_in_any_state(backend: MatrixDC, server: FakeServer) -> None:
    made = [make(backend, f"gj-t-run1-{number}") for number in range(2)]
    backend.release(made[0])
    until(backend, made[1], MachineStatus.RUNNING)
    backend.power_off(made[1])
    until(backend, made[1], MachineStatus.OFF)
    backend.release(made[1])
    for machine in made:
        until(backend, machine, MachineStatus.GONE)
    assert alive(server) == []


def test_it_has_no_blacklist_and_lists_no_images(backend: MatrixDC, server: FakeServer) -> None:
    assert backend.avoid(MACHINE, why="slow") is False
    assert backend.images() == []
    assert calls(server) == 0


def test_the_price_is_remembered_by_size_for_machines_that_are_found(
    backend: MatrixDC, server: FakeServer, clock: ManualClock
) -> None:
    machine = make(backend)
    assert [one.price_cny_per_h for one in backend.find("gj-")] == [2.5]
    told = replace(machine, price_cny_per_h=9.0)
    assert backend.refresh(told).price_cny_per_h == 2.5  # what is billed, whatever was expected
    assert open_backend(account_on(server, "matrixdc"), clock=clock).refresh(told).price_cny_per_h == 9.0
