"""init, plan, schema."""

import json
from pathlib import Path

from fake_server.server import FakeServer
from tests.cli.command import Cli
from tests.cloud import Control

RECIPE = """
name: t
resources: {infra: autodl, accelerators: RTX 4090}
run: echo hello
max_duration: 30m
"""


def test_init_writes_a_recipe_that_plans(cli: Cli) -> None:
    done = cli("init")
    assert (done.returncode, done.stderr) == (0, "")
    assert "recipe.yaml is written" in done.stdout
    assert cli("plan", "recipe.yaml").returncode == 0


def test_init_never_overwrites(bare: Cli) -> None:
    (bare.folder / "recipe.yaml").write_text("mine")
    done = bare("init")
    assert (done.returncode, (bare.folder / "recipe.yaml").read_text()) == (2, "mine")
    assert done.stderr == "gpujobs: recipe.yaml exists already; name another file: gpujobs init FILE\n"


def test_init_to_standard_output_can_be_planned_from_standard_input(cli: Cli) -> None:
    printed = cli("init", "-").stdout
    assert cli("plan", "-", input=printed).returncode == 0


def test_schema_is_json_that_knows_the_recipes_keys(bare: Cli) -> None:
    value = json.loads(bare("schema").stdout)
    assert {"name", "resources", "run", "outputs"} <= value["properties"].keys()


def test_plan_shows_offers_choice_and_cost_and_rents_nothing(cli: Cli, control: Control) -> None:
    done = cli("plan", cli.recipe(RECIPE))
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0].split() == ["PLACE", "GPU", "CPUS", "GB", "CNY/H", "FREE"]
    assert lines[1].startswith("->  autodl/")
    assert "RTX 4090 x1" in lines[1]
    assert lines[-1].startswith("estimated cost: ")
    assert lines[-1].endswith("CNY if it takes all of max_duration, 30m00s (~: an estimate)")
    assert control.machines() == []


def test_plan_as_json(cli: Cli) -> None:
    done = cli("plan", cli.recipe(RECIPE), "--json", "--set", "max_duration=1h")
    value = json.loads(done.stdout)
    first = value["choices"][0]
    assert (done.stderr, value["max_duration_s"], value["refused"]) == ("", 3600, [])
    assert (first["backend"], first["gpu"], first["gpu_count"]) == ("autodl", "RTX 4090", 1)
    assert value["estimate_cny"] == first["price_cny_per_h"]


def test_plan_without_stock_ends_with_3(cli: Cli, fake: FakeServer) -> None:
    del fake
    done = cli("plan", cli.recipe(RECIPE), "--set", "resources.max_price=0.01")
    assert (done.returncode, done.stdout.splitlines()[0]) == (3, "nothing that t could use is free now")


def test_a_recipe_may_lie_in_another_folder(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "else"
    folder.mkdir()
    (folder / "r.yaml").write_text(RECIPE + "workdir: .\n")
    assert cli("plan", str(folder / "r.yaml")).returncode == 0
