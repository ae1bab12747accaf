"""Credentials, secrets and notification URLs that a real Prefect server keeps in blocks."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from fake_server.server import FakeServer
from gpujobs import controller, prefect_api
from gpujobs.errors import BadInput
from gpujobs.prefect_blocks import PrefectBlocks
from gpujobs.settings import Account, Settings
from tests.cloud import Control, recipe_for
from tests.prefect.desk import Desk, end_host, starts_and_left, until
from tests.test_notify import Receiver

pytestmark = pytest.mark.timeout(600)

# As a person would in a script: through Prefect's own client, which checks what the blocks' classes say.
SAVE = """
import json, sys
from prefect.blocks.core import Block
from prefect.plugins import load_prefect_collections
from prefect.utilities.dispatch import lookup_type
assert "gpujobs" in load_prefect_collections()  # nothing here imports us: the entry point does
for kind, name, values in json.load(sys.stdin):
    lookup_type(Block, kind)(**values).save(name, overwrite=True)
"""


@pytest.fixture(scope="session")
def other() -> Iterator[FakeServer]:
    """The cloud of another account; it stays, for the host's reaper goes on asking it."""
    with FakeServer(seed=3, token="team-token-c4nary") as server:
        yield server


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture(scope="module", autouse=True)
def _saved(desk: Desk, other: FakeServer, receiver: Receiver) -> None:
    team = {"token": other.token, "api_url": other.url}
    blocks = [
        ("autodl-credentials", "my-team", team),
        ("secret", "hf-token", {"value": "hf-c4nary"}),
        ("gpujobs-notification", "team", {"url": receiver.url}),
    ]
    environment = {**os.environ, "PREFECT_API_URL": desk.api, "PREFECT_HOME": str(desk.settings.home / "prefect-cli")}
    subprocess.run(
        [sys.executable, "-c", SAVE], input=json.dumps(blocks), text=True, env=environment, check=True, timeout=100
    )


@pytest.fixture
def found(desk: Desk) -> Settings:
    return replace(desk.settings, blocks=PrefectBlocks(desk.settings))


def test_every_host_makes_the_kinds_of_blocks_known(desk: Desk) -> None:
    """To a server that does not have gpujobs installed: ours, which has, would find them by itself as it starts."""
    for kind in ("autodl-credentials", "gpujobs-notification"):
        assert desk.ask("GET", f"/block_types/slug/{kind}")["description"]
    unknown = desk.ask("GET", "/block_types/slug/matrixdc-credentials")["id"]
    desk.ask("DELETE", f"/block_types/{unknown}")
    end_host(desk, signal.SIGTERM)
    controller.up(desk.settings)
    until(lambda: "matrixdc-credentials" in kinds(desk), within_s=60)


def kinds(desk: Desk) -> list[str]:
    return [kind["slug"] for kind in desk.ask("POST", "/block_types/filter", {})]


def test_prefects_own_command_registers_them_too(desk: Desk) -> None:
    environment = {**os.environ, "PREFECT_API_URL": desk.api, "PREFECT_HOME": str(desk.settings.home / "prefect-cli")}
    command = [sys.executable, "-m", "prefect", "block", "register", "-m", "gpujobs.blocks"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
    assert [name for name in ("AutoDL", "MatrixDC", "notification") if name not in done.stdout] == []


def test_named_block_of_the_server_is_read_and_its_default_one_is_not_there(found: Settings, other: FakeServer) -> None:
    assert found.account("autodl", "my-team") == Account(token=other.token, api_url=other.url)
    assert found.account("autodl").token == "fake-token"
    with pytest.raises(BadInput, match=r"has no block autodl-credentials/nobodys$"):
        found.account("autodl", "nobodys")


def test_secret_and_notice_come_from_their_blocks(found: Settings, receiver: Receiver) -> None:
    assert (found.secret("HF_TOKEN"), found.notice_url("team")) == ("hf-c4nary", receiver.url)
    with pytest.raises(BadInput, match="has no block secret/no-token"):
        found.secret("NO_TOKEN")


def test_values_stay_known_while_the_server_does_not_answer(
    desk: Desk, other: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    blocks = PrefectBlocks(desk.settings, now=lambda: now[0])
    assert blocks.accounts("autodl")["my-team"]["token"] == other.token
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    now[0] = 1000.0
    assert blocks.accounts("autodl")["my-team"]["token"] == other.token


def test_run_under_a_block_rents_there_has_its_secret_tells_its_end_and_shows_none_of_them(
    desk: Desk, truth: Control, other: FakeServer, receiver: Receiver
) -> None:
    before = len(truth.machines())
    recipe = recipe_for(
        "autodl",
        run='printf %s "$HF_TOKEN" | sha256sum',
        credentials={"autodl": "my-team"},
        secrets=["HF_TOKEN"],
        notify=["team"],
    )
    run_id, flow_run_id = prefect_api.submit(desk.settings, desk.api, recipe)
    assert desk.ended(flow_run_id)[0] == "COMPLETED"
    assert starts_and_left(Control(other), run_id) == (1, [])
    assert (desk.settings.runs / run_id / "output.log").read_text().split()[0] == sha256(b"hf-c4nary").hexdigest()
    assert len(truth.machines()) == before
    assert [told["title"] for told in receiver.heard] == ["gpujobs: t done"]
    desk.shows(flow_run_id, ("notify", "Completed"))
    shown = [
        json.dumps(desk.ask("GET", f"/flow_runs/{flow_run_id}")),
        "\n".join(prefect_api.logs(desk.api, flow_run_id)),
        *texts(desk.settings.runs),
        *texts(desk.settings.home / "controller"),
    ]
    assert [text for text in shown if "c4nary" in text or "s3cret-k3y" in text] == []


def texts(folder: Path) -> list[str]:
    return [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]


def test_run_that_names_a_block_which_is_not_there_fails_in_words_and_rents_nothing(
    desk: Desk, truth: Control, other: FakeServer
) -> None:
    before = len(truth.machines()), len(Control(other).machines())
    recipe = recipe_for("autodl", credentials={"autodl": "nobodys"})
    _, flow_run_id = prefect_api.submit(desk.settings, desk.api, recipe)
    kind, _, message = desk.ended(flow_run_id)
    assert (kind, "has no block autodl-credentials/nobodys" in message) == ("FAILED", True)
    assert (len(truth.machines()), len(Control(other).machines())) == before
