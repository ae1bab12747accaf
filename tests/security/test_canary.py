"""No secret is anywhere after runs in one process, on each provider: unlike ones are handed in, and all is searched."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_server.ground import Ground
from fake_server.server import FakeServer
from tests.cli.command import Cli
from tests.cloud import BACKENDS, GPUS, Control
from tests.security.canary import holding, leaks, new_secret, spellings, watching_argv
from tests.test_notify import Receiver

TOKEN, VALUE, FILED, HOOK = (new_secret(what) for what in ("token", "value", "filed", "hook"))
LINES = new_secret("lines", ending='+\nsecond line\'s "end"\n\x1b[31m$(id)`id`')
RECIPE = """
name: t
resources: {{infra: {backend}, accelerators: "{gpu}"}}
workdir: up
secrets: [HF_TOKEN, MANY_LINES, FILED]
notify: [team]
outputs: {{out: out}}
max_duration: 10m
setup: |
  echo from setup
run: |
  mkdir -p out
  printf %s "$HF_TOKEN$MANY_LINES$FILED" | sha256sum | tee out/sum
  sleep 0.3
  {end}
"""


@pytest.fixture(scope="module")
def passwords() -> Iterator[list[str]]:
    """The passwords of all machines that a fake of this module makes."""
    given: list[str] = []
    made = Ground.password

    def remember(ground: Ground) -> str:
        given.append(made(ground))
        return given[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ground, "password", remember)
        yield given


@pytest.fixture(scope="module")
def cloud(passwords: list[str]) -> Iterator[FakeServer]:  # noqa: ARG001 - they are noted from the start
    with FakeServer(seed=1, token=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture
def rich(bare: Cli, cloud: FakeServer, receiver: Receiver) -> Cli:
    """The command with a secret in every place that may hold one."""
    url = f"json://user:{HOOK.split('+')[0]}@127.0.0.1:{receiver.server.server_port}/{HOOK.split('+')[0]}"
    own = {"HF_TOKEN": VALUE, "MANY_LINES": LINES, "GPUJOBS_NOTIFY_TEAM": url}
    bare.env.update({**cloud.env(), **own})
    folder = Path(bare.env["XDG_CONFIG_HOME"]) / "gpujobs"
    folder.mkdir(parents=True)
    (folder / "config.toml").touch(mode=0o600)
    (folder / "config.toml").write_text(f"[secrets]\nFILED = {json.dumps(FILED)}\n")
    (bare.folder / "up").mkdir()
    (bare.folder / "up" / "train.py").write_text("print('hello')\n")
    return bare


def test_a_secret_is_found_in_every_spelling() -> None:
    texts = {b"a", b"ab", b"abc"} | {b'say "' + form + b'"' for form in spellings(VALUE)}
    assert all(holding(text, {"it": VALUE}) for text in texts if len(text) > 3)
    assert not holding(b"c4nary-value-0123456789", {"it": VALUE})


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_secret_is_in_a_file_an_output_a_message_or_a_command_line(
    rich: Cli, cloud: FakeServer, receiver: Receiver, passwords: list[str], backend: str
) -> None:
    said = b""
    with watching_argv() as argv:
        for number, end in enumerate(["true", "exit 3"]):
            text = RECIPE.format(backend=backend, gpu=GPUS[backend], end=end)
            done = rich(
                "submit", rich.recipe(text, f"{number}.yaml"), "--here", "--yes", "--json", text=False, timeout=240
            )
            said += done.stdout + done.stderr
            assert done.returncode == (1 if number else 0), done.stderr
            outcome = json.loads(done.stdout)
            wanted = hashlib.sha256(f"{VALUE}{LINES}{FILED}".encode()).hexdigest()
            assert Path(outcome["outputs"]["out"], "sum").read_text().split()[0] == wanted
        for words in (["status", "--json"], ["logs"], ["cost", "--json"], ["machines", "--json"], ["doctor"]):
            looked = rich(*words, text=False)
            said += looked.stdout + looked.stderr
        (rich.home / "runs").rename(rich.home / "kept")
        (rich.home / "runs").write_text("in the way")
        crashed = rich("submit", rich.recipe(text), "--here", "--yes", text=False, timeout=240)
        assert (crashed.returncode, len(list((rich.home / "bugs").iterdir()))) == (70, 1), crashed.stderr
        said += crashed.stdout + crashed.stderr
    named = {"token": TOKEN, "value": VALUE, "lines": LINES, "filed": FILED, "hook": HOOK}
    named |= {f"password {number}": password for number, password in enumerate(passwords)}
    assert len(passwords) >= 2
    assert len(argv.seen) > 20
    assert holding(argv.text(), named) == []
    assert holding(said, named) == []
    assert holding(json.dumps(receiver.heard).encode(), named) == []
    assert leaks([rich.home, rich.folder], named) == []
    assert Control(cloud).left() == []
    assert holding(json.dumps(Control(cloud).ask("GET", "ledger")).encode(), named) == []
