"""A session is recorded without its secrets, and a replay notices what is answered otherwise."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from fake_server.replay import Player, main, read
from fake_server.server import FakeServer
from fake_server.timings import Guesses
from tests.fake_server.wires import INSTANCES, Wires, eventually, job


def session(wires: Wires) -> None:
    """What a client does that rents one machine of each cloud and releases it, with a fault on the way."""
    wires.matrixdc("GET", "/regions")
    uuid = wires.deploy(job(cmd="sleep 600; export HF_TOKEN=hf_abcdef"))
    container = wires.running(uuid)[0]["uuid"]
    wires.events(uuid, container)
    wires.autodl("PUT", "/deployment/container/stop", {"deployment_container_uuid": "no-such"})
    box = wires.rent(displayName="box")
    wires.boxed(box, "Running")
    wires.control("POST", "faults", {"endpoint": "matrixdc.get_instance", "kind": "error_500"})
    url = f"{wires.fake.matrixdc_url}{INSTANCES}/{box}"
    assert requests.get(url, headers=given(wires.fake), timeout=60).status_code == 500
    wires.data("DELETE", "/deployment", {"deployment_uuid": uuid})
    wires.matrixdc("DELETE", f"{INSTANCES}?name={box}")
    eventually(lambda: wires.boxes() == [] and wires.deployments() == [])


def given(fake: FakeServer) -> dict[str, str]:
    return {"Authorization": f"bearer {fake.token}", "namespace": fake.namespace}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded session with real machines."""
    file = tmp_path_factory.mktemp("recording") / "session.jsonl"
    with FakeServer(record=file, token="own-token-1234", control_token="own-control") as fake:
        wires = Wires(fake)
        with wires.session:
            session(wires)
    return file


def player(fake: FakeServer, **more: Any) -> Player:
    return Player(url=fake.url, token=fake.token, namespace=fake.namespace, control_token=fake.control_token, **more)


def test_a_recording_is_json_lines_private_and_without_secrets(recording: Path) -> None:
    text = recording.read_text()
    calls = [json.loads(line) for line in text.splitlines()]
    assert len(calls) > 10
    assert recording.stat().st_mode & 0o777 == 0o600
    for secret in ("own-token-1234", "own-control", "hf_abcdef"):
        assert secret not in text
    shown = [
        call["reply"]["servers"] for call in calls if isinstance(call["reply"], dict) and "servers" in call["reply"]
    ]
    assert shown
    assert all(servers["SSH"]["sshPassword"] == "***" for servers in shown)
    assert all(servers["Jupyterlab"].endswith("token=***") for servers in shown)
    rows = [row for call in calls if "container/list" in call["path"] for row in call["reply"]["data"]["list"]]
    assert {row["info"]["root_password"] for row in rows} <= {"***", ""}


def test_a_replay_against_an_equal_fake_finds_no_difference(recording: Path) -> None:
    with FakeServer() as fake:
        mine = player(fake, speed=4, patience_s=15)
        with mine.session:
            assert list(mine.play(read(recording))) == []
        truth = fake.world.ledger()["machines"]
        assert [(machine["name"], machine["gone_at"] is not None) for machine in truth] == [
            ("work", True),
            ("box", True),
        ]


def test_a_replay_tells_another_status_and_another_shape(recording: Path) -> None:
    with FakeServer(guesses=Guesses(matrixdc_power_on_reply=None)) as fake:
        mine = player(fake, speed=4, patience_s=0.0)
        mine.token = "wrong"
        calls = read(recording)
        with mine.session:
            told = list(mine.play([call for call in calls if call["path"].endswith(("/regions", "/private/list"))]))
            assert told == ["1: GET /mdc/api/v1/regions: answered 401, recorded 200"]
            mine.token = fake.token
            changed = [{**call, "reply": [{**call["reply"][0], "colour": "red", "id": 5}]} for call in calls[:1]]
            assert sorted(mine.play(changed)) == [
                "1: GET /mdc/api/v1/regions: reply[0] lacks colour",
                "1: GET /mdc/api/v1/regions: reply[0].id is str, recorded number",
            ]


def test_the_command_says_how_many_calls_differ(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer() as fake:
        first = tmp_path / "first.jsonl"
        first.write_text(recording.read_text().splitlines()[0] + "\n")
        assert main([str(first), "--url", fake.url]) == 0
        assert capsys.readouterr().out == "1 calls, 0 differences\n"
        assert main([str(first), "--url", fake.url, "--token", "wrong", "--patience", "0"]) == 1
        assert capsys.readouterr().out.endswith("1 calls, 1 differences\n")
    assert main([str(first), "--url", fake.url]) == 2
    nothing = tmp_path / "other.jsonl"
    nothing.write_text('{"a": 1}\n')
    assert main([str(nothing), "--url", fake.url]) == 2


def test_the_control_room_records_too_and_only_from_when_it_is_told(wires: Wires) -> None:
    wires.matrixdc("GET", "/regions")
    assert wires.control("GET", "record") == []
    wires.control("POST", "record")
    wires.rent()
    wires.advance(5)
    assert [(call["method"], call["path"]) for call in wires.control("GET", "record")] == [
        ("POST", f"/mdc/api/v1{INSTANCES}"),
        ("POST", "/_fake/clock"),
    ]
    wires.control("POST", "record")
    assert wires.control("GET", "record") == []


def test_a_lost_reply_is_recorded_and_played_as_such(tmp_path: Path) -> None:
    file = tmp_path / "lost.jsonl"
    with FakeServer(record=file) as fake:
        wires = Wires(fake)
        with wires.session:
            wires.control("POST", "faults", {"endpoint": "matrixdc.list_regions", "kind": "lost_reply"})
            with pytest.raises(requests.ConnectionError):
                wires.matrixdc("GET", "/regions")
    assert [call["cut"] for call in read(file)] == [None, "reset"]
    with FakeServer() as fake:
        mine = player(fake)
        with mine.session:
            assert list(mine.play(read(file))) == []
            assert list(mine.play(read(file)[1:])) == ["1: GET /mdc/api/v1/regions: answered 200, recorded cut"]


def test_the_command_line_takes_a_file_to_record_to(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    command = [sys.executable, "-m", "fake_server", "--port", "0", "--record", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        requests.get(f"{url}/mdc/api/v1/regions", headers={"Authorization": "bearer no"}, timeout=60)
        process.terminate()
        process.communicate(timeout=60)
    assert [(call["path"], call["status"]) for call in read(file)] == [("/mdc/api/v1/regions", 401)]
