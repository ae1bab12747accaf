"""The team's page: its ten commands, run as they stand, on the fake cloud."""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gpujobs.cli.parser import parse
from gpujobs.recipe_file import load_recipe
from tests.cli.command import Cli
from tests.test_notify import Receiver

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "team.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def commands() -> Sequence[Sequence[str]]:
    """The page's console lines, as words."""
    [block] = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line.removeprefix("$ ")) for line in block.splitlines()]


def ours() -> Sequence[Sequence[str]]:
    """The words of those that are gpujobs', without the name."""
    return [words[1:] for words in commands() if words[0] == "gpujobs"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture
def cli(tmp_path: Path, receiver: Receiver) -> Iterator[Cli]:
    (tmp_path / "work").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "AUTODL", "MATRIXDC"))}
    env = {
        **kept,
        "GPUJOBS_HOME": str(tmp_path / "home"),
        "GPUJOBS_OWNER": "tester",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "GPUJOBS_NOTIFY_TEAM": receiver.url,
        "PYTHONPATH": str(ROOT),
    }
    cli = Cli(tmp_path / "work", env)
    yield cli
    cli.close()
    assert cli("down", "--fake").returncode == 0


def test_page_has_ten_commands_that_parse_and_recipes_that_load(tmp_path: Path) -> None:
    assert len(commands()) == 10
    for words in ours():
        parse(words)
    for text in RECIPES:
        (tmp_path / "recipe.yaml").write_text(text)
        load_recipe(tmp_path / "recipe.yaml", [])


@pytest.mark.timeout(600)
def test_ten_commands_come_to_a_run_that_is_told_and_automations_that_are_made_once(
    cli: Cli, receiver: Receiver
) -> None:
    cli.recipe(RECIPES[0], "nightly.yaml")
    answers = []
    for words in ours():
        faked = [*words, "--json"] if "--fake" in words else [*words, "--fake", "--json"]
        done = cli(*faked, timeout=200)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        answers.append(done.stdout)
    done = cli("wait", "nightly", "--fake", timeout=200)
    assert done.returncode == 0, done.stderr
    titles = [told["title"] for told in receiver.heard]
    assert titles == ["gpujobs (fake cloud): nightly done"] * 2
    [made] = [json.loads(answer)["automations"] for answer in answers if '"automations"' in answer]
    assert set(made.values()) == {"made"}
    again = json.loads(cli("up", "--automations", "--fake", "--json").stdout)["automations"]
    assert again == dict.fromkeys(made, "kept")


def test_addresses_on_the_page_are_ones_that_apprise_knows() -> None:
    from apprise import Apprise  # noqa: PLC0415 - takes a while

    written = re.findall(r"^\| [^|]+ \|.*?`(\w+://[^`]+)`", PAGE, re.MULTILINE)
    filled = {"BOT_KEY": "0aa0" * 8, "SECRET": "SEC" + "0a" * 10, "TOKEN": "0a" * 16, "port": "80"}
    filled["services/…"] = "services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    assert len(written) == 6
    for url in written:
        for word, value in filled.items():
            url = url.replace(word, value)  # noqa: PLW2901 - filled in bit by bit
        assert Apprise().add(url), url
