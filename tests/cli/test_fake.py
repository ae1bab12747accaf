"""--fake: a background process of its own, started once, found again, ended by `down`."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from gpujobs import process
from tests.cli.command import Cli

OFFERS = ("offers", "H20", "--fake", "--json")


@pytest.fixture
def faked(bare: Cli) -> Iterator[Cli]:
    yield bare
    bare("down", "--fake")


def record(cli: Cli) -> Mapping[str, Any]:
    value: Mapping[str, Any] = json.loads((cli.home / "fake" / "fake.json").read_text())
    return value


def test_it_is_started_once_and_found_again(faked: Cli) -> None:
    starting = [faked.start(*OFFERS) for _ in range(3)]
    for command in starting:
        out, err = command.communicate(timeout=60)
        assert command.returncode == 0, err
        assert json.loads(out)["offers"][0]["gpu"] == "H20"
        assert err == "fake cloud on this machine: nothing is rented, nothing is paid\n"
    first = record(faked)
    assert faked(*OFFERS).returncode == 0
    assert record(faked) == first


def test_down_ends_it_and_leaves_no_process(faked: Cli) -> None:
    faked(*OFFERS)
    server = record(faked)
    assert process.alive(server["pid"], server["started"])
    done = faked("down", "--fake", "--json")
    assert json.loads(done.stdout) == {"controller_ended": False, "fake_ended": True}
    assert not process.alive(server["pid"], server["started"])
    assert json.loads(faked("down", "--fake", "--json").stdout)["fake_ended"] is False


def test_one_that_was_killed_is_started_anew(faked: Cli) -> None:
    faked(*OFFERS)
    first = record(faked)
    os.kill(first["pid"], signal.SIGKILL)
    assert faked(*OFFERS).returncode == 0
    assert record(faked)["pid"] != first["pid"]


def test_a_pid_that_is_another_process_by_now_is_left_alone(faked: Cli) -> None:
    path = faked.home / "fake" / "fake.json"
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text(json.dumps({"url": "http://127.0.0.1:9", "pid": os.getpid(), "started": "1"}))
    assert json.loads(faked("down", "--fake", "--json").stdout)["fake_ended"] is False


def test_commands_that_ask_no_cloud_start_nothing(faked: Cli) -> None:
    assert faked("ls", "--fake").stdout == "no runs yet\n"
    assert not (faked.home / "fake" / "fake.json").exists()


def test_its_run_that_is_asked_for_without_it_is_known_to_be_on_it(faked: Cli) -> None:
    (faked.home / "fake" / "runs" / "aaaa111111").mkdir(parents=True, mode=0o700)
    done = faked("status", "aaaa111111")
    assert (done.returncode, done.stderr) == (2, "gpujobs: run aaaa111111 is on the fake cloud; say it with --fake\n")
    assert "no run 'aaaa'" in faked("status", "aaaa").stderr


def test_one_that_cannot_start_is_told_with_the_place_of_its_output(faked: Cli) -> None:
    (faked.home / "fake").mkdir(parents=True, mode=0o700)
    (faked.home / "fake" / "state").write_text("a file where its folder should be")
    done = faked(*OFFERS)
    assert done.returncode == 70
    assert "the fake cloud did not start" in json.loads(done.stdout)["error"]
    assert "fake.log" in json.loads(done.stdout)["error"]


def test_the_teams_cloud_ledger_and_controller_are_not_seen(faked: Cli) -> None:
    env = {
        **faked.env,
        "AUTODL_API_URL": "https://api.example.com",
        "AUTODL_TOKEN": "the-teams",
        "GPUJOBS_DATABASE_URL": "postgresql://nowhere.example/x",
        "PREFECT_API_URL": "https://prefect.example.com/api",
    }
    found = {line["check"]: line for line in json.loads(faked("doctor", "--fake", "--json", env=env).stdout)}
    assert found["autodl API"]["state"] == "ok"
    assert found["ledger"]["state"] == "ok"
    assert "none is up" in found["controller"]["text"]
