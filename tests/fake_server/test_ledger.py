"""The ledger of truth: who owned what, what it cost to the fen, what ran, what was written, who called."""

import hashlib
import json
from typing import Any

import pytest

from fake_server.call_log import KEPT_CALLS, CallLog, without_secrets
from fake_server.rows import CallRow, CommandRow, Ledger, MachineRow
from fake_server.truth import Truth, to_fen
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.test_machines_live import box_shell, says
from tests.fake_server.wires import INSTANCES, Wires, eventually, instance, job


def test_a_command_is_entered_with_the_hash_and_the_beginning_of_its_output(real: Wires) -> None:
    name = real.rent()
    with box_shell(real, name) as client:
        said = says(client, "echo started; head -c 300000 /dev/zero | tr '\\0' x")
        says(client, "echo already >&2")
    wanted = f"{said}".encode()
    ran = eventually(lambda: ran if len(ran := _row(real, name)["commands"]) == 2 else None) or []
    assert ran[0]["sha256"] == hashlib.sha256(wanted).hexdigest()
    assert (ran[0]["bytes_written"], ran[0]["output_head"]) == (len(wanted), "started\n" + "x" * 192)
    assert (ran[1]["output_head"], ran[1]["exit_code"]) == ("already\n", 0)
    assert [command["run_token"] for command in ran] == [f"{name}#1", f"{name}#2"]


def test_the_machines_password_is_not_in_the_ledger_even_where_a_command_shows_it(real: Wires) -> None:
    name = real.rent()
    password = real.boxed(name, "Running")["servers"]["SSH"]["sshPassword"]
    with box_shell(real, name) as client:
        says(client, f"printf %190s; echo {password}")
    (ran,) = eventually(lambda: _row(real, name)["commands"])
    assert password not in json.dumps(ran)
    assert password[:6] not in ran["output_head"]
    assert ran["command"] == "printf %190s; echo [password]"


def test_what_a_released_machine_had_written_is_counted(real: Wires) -> None:
    name = real.rent()
    with box_shell(real, name) as client:
        says(
            client,
            "head -c 5000 /dev/zero > /root/data/d; mkdir /opt/e; echo one > /opt/e/f; touch -d 2001-01-01 /srv/o",
        )
    real.matrixdc("DELETE", f"{INSTANCES}?name={name}")
    change = eventually(lambda: _row(real, name)["disk_change"])
    assert change == {"files": 3, "size_bytes": 5004}


def test_an_untouched_machine_has_written_nothing(real: Wires) -> None:
    name = real.rent()
    real.boxed(name, "Running")
    real.matrixdc("DELETE", f"{INSTANCES}?name={name}")
    assert eventually(lambda: _row(real, name)["disk_change"]) == {"files": 0, "size_bytes": 0}


def test_each_machine_has_its_owner(wires: Wires) -> None:
    box = wires.rent()
    wires.deploy(job())
    wires.advance(1)
    owners = {machine["provider"]: machine["owner"] for machine in wires.truth()}
    assert owners == {"matrixdc": "fake-user", "autodl": "58"}
    assert _row(wires, box)["owner"] == wires.box(box)["namespace"]


@pytest.mark.parametrize(
    ("cny", "fen"), [(0, 0), (0.004, 0), (0.005, 1), (1.005, 101), (2.675, 268), (2.5, 250), (0.00499, 0)]
)
def test_an_amount_is_rounded_to_the_fen(cny: float, fen: int) -> None:
    assert to_fen(cny) == fen


def test_the_bill_is_exact_to_the_fen(wires: Wires) -> None:
    name = wires.rent()
    wires.advance(1)
    wires.boxed(name, "Running")
    wires.advance(3599)
    row = _row(wires, name)
    assert (row["billed_s"], row["cost_fen"], row["paid_fen"]) == (3599, 250, 250)


def test_the_ledger_only_grows(wires: Wires, containers: QuietContainers) -> None:
    name = wires.rent()
    wires.advance(1)
    wires.boxed(name, "Running")
    containers.report(name, "one")
    wires.matrixdc("DELETE", f"{INSTANCES}?name={name}")
    wires.advance(1)
    eventually(lambda: wires.boxes() == [])
    containers.report(name, "late")
    assert [command["command"] for command in _row(wires, name)["commands"]] == ["one", "late"]


def test_calls_are_logged_in_order_with_how_they_were_answered(wires: Wires) -> None:
    wires.control("POST", "faults", {"endpoint": "autodl.gpu_stock", "kind": "error_500"})
    wires.matrixdc("POST", INSTANCES, instance(displayName=""), status=400)
    wires.autodl("POST", "/deployment/list", {"page_index": "x", "page_size": 1})
    wires.session.post(f"{wires.fake.url}/api/v1/dev/machine/region/gpu_stock", json={}, timeout=60)
    wires.session.get(f"{wires.fake.url}/mdc/api/v1/users?page=2", timeout=60)
    log = wires.control("GET", "calls")
    seen = [(call["endpoint"], call["method"], call["status"], call["code"], call["fault"]) for call in log["calls"]]
    assert log["total"] == 4
    assert seen == [
        ("matrixdc.create_instance", "POST", 400, "", ""),
        ("autodl.list_deployments", "POST", 200, "RequestParameterIsWrong", ""),
        ("autodl.gpu_stock", "POST", 500, "", "error_500"),
        ("", "GET", 404, "", ""),
    ]
    assert [call["number"] for call in log["calls"]] == [1, 2, 3, 4]
    assert log["calls"][3]["path"] == "/mdc/api/v1/users?page=2"
    assert len(wires.control("GET", "calls?limit=2")["calls"]) == 2
    wires.control("GET", "calls?limit=x", status=400)


def test_no_secret_is_in_the_log_of_calls(wires: Wires) -> None:
    wires.deploy(job(cmd="HF_TOKEN=hf-canary run --password=canary-2"))
    wires.matrixdc("POST", INSTANCES, {"api_key": "canary-3", "deep": [{"secret": "canary-4"}]}, status=400)
    wires.session.get(f"{wires.fake.matrixdc_url}/regions?x={wires.fake.token}", timeout=60)
    text = json.dumps(wires.control("GET", "calls"))
    assert "canary" not in text
    assert wires.fake.token not in text
    assert "HF_TOKEN=[secret]" in text


def test_a_body_that_is_no_json_keeps_no_secret_either() -> None:
    assert without_secrets(b"token: abc, a b-known\xff", ("b-known",)) == "token: [secret] a [secret]�"


def test_the_log_of_calls_is_bounded() -> None:
    log = CallLog()
    for number in range(1, KEPT_CALLS + 3):
        log.add(
            CallRow(
                number=number,
                at=0,
                endpoint="",
                method="GET",
                path="/",
                request="",
                status=200,
                code="",
                fault="",
                cut=False,
            )
        )
    assert (log.total, len(log.calls), log.calls[0]["number"]) == (KEPT_CALLS + 2, KEPT_CALLS, 3)


def test_no_api_call_reads_the_ledger(wires: Wires) -> None:
    name = wires.rent()
    wires.advance(1)
    wires.boxed(name, "Running")
    before = wires.box(name), wires.boxes()
    wires.fake.world.ground.truth = Truth()
    assert (wires.box(name), wires.boxes()) == before


def _row(wires: Wires, name: str) -> dict[str, Any]:
    return next(machine for machine in wires.truth() if machine["id"] == name)


def test_rows_have_the_fields_that_their_types_promise(wires: Wires, containers: QuietContainers) -> None:
    name = wires.rent()
    wires.advance(1)
    wires.boxed(name, "Running")
    containers.report(name, "one")
    (machine,) = wires.truth()
    assert set(machine) == set(MachineRow.__annotations__)
    assert set(machine["commands"][0]) == set(CommandRow.__annotations__)
    assert set(wires.control("GET", "ledger")) == set(Ledger.__annotations__)
    assert set(wires.control("GET", "calls")["calls"][0]) == set(CallRow.__annotations__)
