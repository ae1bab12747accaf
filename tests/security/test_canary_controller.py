"""No secret is anywhere after runs through a controller, and nothing that it writes can be read by others."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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

pytestmark = pytest.mark.timeout(900)

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


def test_no_secret_is_anywhere_and_nothing_is_open_after_runs_through_a_controller(tmp_path: Path) -> None:
    with opened(tmp_path) as team:
        with watching_argv() as argv:
            everything(team)
        shown, heard = team.shown(), team.receiver.heard
        named = {"our token": team.ours.token, "their token": team.theirs.token, "hook": team.hook}
        named |= {"value": team.value, "block": team.kept}
        # They were used, and the pages are not empty.
        assert [told["title"].partition(": ")[2] for told in heard][:3] == ["well done", "bad failed", "form done"]
        assert b"is there" in team.said
        assert b"is there" in shown
        assert b"gpujobs\0serve" in argv.text()
        assert (team.cli.home / "prefect" / "prefect.db").stat().st_size > 10_000
        # And they are nowhere.
        assert leaks([team.cli.home], named) == []
        assert holding(shown, named) == []
        assert holding(team.said, named) == []
        assert holding(json.dumps(heard).encode(), named) == []
        assert holding(argv.text(), named) == []
        assert open_to_others(team.cli.home) == []
        assert [*Control(team.ours).left(), *Control(team.theirs).left()] == []
