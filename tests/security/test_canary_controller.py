"""No secret is anywhere after runs through a controller, and nothing that it writes can be read by others."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from fake_server.server import FakeServer
from tests.cli.command import Cli
from tests.cloud import GPUS, Control
from tests.prefect.desk import FINAL, until
from tests.prefect.test_blocks import SAVE
from tests.security.canary import holding, leaks, new_secret, watching_argv
from tests.security.test_permissions import open_to_others
from tests.test_notify import Receiver

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("security")]

ROOT = Path(__file__).parent.parent.parent
RECIPE = """
name: {name}
resources: {{infra: {backend}, accelerators: "{gpu}"}}
secrets: [HF_TOKEN, KEPT_IN_A_BLOCK]
notify: [team]
outputs: {{out: out}}
max_duration: 10m
{more}
run: |
  mkdir -p out
  test "$(printf %s "$HF_TOKEN" | wc -c)" = {size}
  test "$(printf %s "$KEPT_IN_A_BLOCK" | wc -c)" = {size}
  echo is there | tee out/said
  sleep 1
  {end}
"""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What was said and left by four runs through a controller."""

    home: Path
    named: Mapping[str, str]
    said: bytes
    shown: bytes
    argv: bytes
    heard: Sequence[Mapping[str, str]]
    open: Sequence[str]
    left: Sequence[str]


class Team:
    """A controller, started by the command with a umask that hides nothing, for two accounts."""

    def __init__(self, cli: Cli, ours: FakeServer, theirs: FakeServer, receiver: Receiver) -> None:
        self.cli, self.ours, self.theirs, self.receiver = cli, ours, theirs, receiver
        self.said = b""
        self.value, self.kept = new_secret("value"), new_secret("block")
        self.hook = new_secret("hook", ending="")
        cli.env["HF_TOKEN"] = self.value

    @property
    def api(self) -> str:
        """Where its Prefect server answers."""
        return str(json.loads((self.cli.home / "controller.json").read_text())["url"])

    def do(self, *words: str, code: int = 0) -> bytes:
        """Run a command, and keep what it says."""
        done = self.cli(*words, text=False, umask=0, timeout=300)
        self.said += done.stdout + done.stderr
        assert done.returncode == code, done.stderr.decode()
        return bytes(done.stdout)

    def save_blocks(self) -> None:
        """Keep the other account, a secret and a notification's URL in Prefect's blocks."""
        hook = f"json://user:{self.hook}@127.0.0.1:{self.receiver.server.server_port}/{self.hook}"
        namespace = self.theirs.namespace
        blocks = [
            ("matrixdc-credentials", "theirs", self.theirs_account() | {"namespace": namespace}),
            ("secret", "kept-in-a-block", {"value": self.kept}),
            ("gpujobs-notification", "team", {"url": hook}),
        ]
        environment = {**self.cli.env, "PREFECT_API_URL": self.api}
        subprocess.run(
            [sys.executable, "-c", SAVE], input=json.dumps(blocks), env=environment, text=True, check=True, timeout=120
        )

    def theirs_account(self) -> dict[str, str]:
        """The other account's token and address."""
        return {"token": self.theirs.token, "api_url": self.theirs.env()["MATRIXDC_API_URL"]}

    def recipe(self, name: str, backend: str, *, end: str = "true", more: str = "") -> str:
        """Write a recipe that fails where its secrets do not arrive."""
        size = len(self.value)
        return self.cli.recipe(
            RECIPE.format(name=name, backend=backend, gpu=GPUS[backend], end=end, more=more, size=size), f"{name}.yaml"
        )

    def ask(self, path: str, body: Any = None) -> Any:
        """Ask Prefect as its UI does."""
        method = "GET" if body is None else "POST"
        return requests.request(method, self.api + path, json=body, timeout=60).json()

    def start_form(self, name: str) -> None:
        """Start a deployed recipe as its form in the UI does, and wait for its end."""
        [deployment] = self.ask("/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        made = self.ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {}})["id"]
        until(lambda: self.ask(f"/flow_runs/{made}").get("state_type") in FINAL, within_s=180)
        state = self.ask(f"/flow_runs/{made}")["state"]
        assert state["type"] == "COMPLETED", state["message"]

    def shown(self) -> bytes:
        """All that Prefect shows."""
        kinds = ("flow_runs", "task_runs", "artifacts", "deployments", "logs", "block_documents", "events")
        return json.dumps([self.ask(f"/{kind}/filter", {}) for kind in kinds], ensure_ascii=False).encode()


@contextmanager
def opened(folder: Path) -> Iterator[Team]:
    work = folder / "work"
    work.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "AUTODL", "MATRIXDC"))}
    kept |= {"GPUJOBS_HOME": str(folder / "home"), "GPUJOBS_OWNER": "tester", "PYTHONPATH": str(ROOT)}
    kept |= {"XDG_CONFIG_HOME": str(folder / "config"), "PREFECT_HOME": str(folder / "no-prefect")}
    receiver = Receiver()
    tokens = new_secret("ours"), new_secret("theirs")
    with FakeServer(seed=1, token=tokens[0]) as ours, FakeServer(seed=2, token=tokens[1]) as theirs:
        team = Team(Cli(work, {**kept, **ours.env()}), ours, theirs, receiver)
        try:
            yield team
        finally:
            team.cli("down", timeout=120)
            team.cli.close()
            receiver.close()


def everything(team: Team) -> None:
    """A run of each kind: well, failed, of a form, and one that meets a bug of ours."""
    team.do("up")
    team.save_blocks()
    team.do("submit", team.recipe("well", "autodl"), "--yes")
    failing = team.recipe("bad", "matrixdc", end="exit 3", more="credentials: {matrixdc: theirs}")
    team.do("submit", failing, "--yes", code=1)
    team.do("deploy", team.recipe("form", "autodl"))
    team.start_form("form")
    runs = team.cli.home / "runs"
    runs.rename(team.cli.home / "kept")
    runs.write_bytes(b"in the way")
    runs.chmod(0o600)
    team.do("submit", team.recipe("bug", "autodl"), "--yes", code=70)
    runs.unlink()
    (team.cli.home / "kept").rename(runs)
    for words in (["ls", "--json"], ["logs", "well"], ["status", "bad", "--json"], ["cost", "--json"], ["doctor"]):
        team.do(*words)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    with opened(tmp_path_factory.mktemp("team")) as team:
        with watching_argv() as argv:
            everything(team)
        shown, still_open = team.shown(), open_to_others(team.cli.home)
        named = {"our token": team.ours.token, "their token": team.theirs.token, "hook": team.hook}
        yield Swept(
            home=team.cli.home,
            named=named | {"value": team.value, "block": team.kept},
            said=team.said,
            shown=shown,
            argv=argv.text(),
            heard=team.receiver.heard,
            open=still_open,
            left=[*Control(team.ours).left(), *Control(team.theirs).left()],
        )


def test_runs_used_what_was_kept_for_them(swept: Swept) -> None:
    assert [told["title"] for told in swept.heard][:3] == [
        "gpujobs: well done",
        "gpujobs: bad failed",
        "gpujobs: form done",
    ]
    assert b"is there" in swept.said
    assert b"is there" in swept.shown
    assert swept.left == []


def test_no_secret_is_in_a_file_of_ours_or_of_prefects(swept: Swept) -> None:
    assert (swept.home / "prefect" / "prefect.db").stat().st_size > 10_000
    assert leaks([swept.home], swept.named) == []


def test_no_secret_is_in_what_was_shown_said_or_sent(swept: Swept) -> None:
    assert holding(swept.shown, swept.named) == []
    assert holding(swept.said, swept.named) == []
    assert holding(json.dumps(swept.heard).encode(), swept.named) == []


def test_no_secret_was_in_a_command_line(swept: Swept) -> None:
    assert b"gpujobs\0serve" in swept.argv
    assert holding(swept.argv, swept.named) == []


def test_nothing_that_a_controller_writes_can_be_read_by_others(swept: Swept) -> None:
    assert swept.open == []
