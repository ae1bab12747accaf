"""A run on one host leaves its log and outputs where another host's commands find them."""

import json
from pathlib import Path

import pytest

from fake_server.server import FakeServer
from tests.cli.command import Cli
from tests.cloud import Control
from tests.lifecycle.test_run import assert_nothing_left

RECIPE = """
name: t
resources: {infra: autodl, accelerators: RTX 4090}
run: echo begun; echo kept > kept; mkdir out; echo deep > out/deep
outputs: {kept: kept, out: out}
"""


@pytest.fixture
def shared(cli: Cli, tmp_path: Path) -> Cli:
    """One ledger and one store, on whichever host a command runs."""
    cli.env |= {
        "GPUJOBS_DATABASE_URL": f"sqlite:///{tmp_path}/ledger/ledger.db",
        "GPUJOBS_STORE": f"file://{tmp_path}/store",
    }
    return cli


@pytest.fixture
def elsewhere(shared: Cli, tmp_path: Path) -> Cli:
    """Another host, which has not the run's folder."""
    return Cli(shared.folder, {**shared.env, "GPUJOBS_HOME": str(tmp_path / "elsewhere")})


@pytest.mark.timeout(600)
def test_log_status_and_outputs_are_found_from_another_host(
    shared: Cli, elsewhere: Cli, tmp_path: Path, fake: FakeServer
) -> None:
    done = shared("submit", shared.recipe(RECIPE), "--here", "--yes")
    assert done.returncode == 0, done.stderr
    assert elsewhere("logs", "t").stdout == "begun\n"
    assert elsewhere("logs", "t", "--follow").stdout == "begun\n"
    status = json.loads(elsewhere("status", "t", "--json").stdout)
    root = f"file://{tmp_path}/store/{status['run_id']}"
    assert status["log"] == f"{root}/output.log"
    assert status["outputs"] == {"kept": f"{root}/outputs/kept", "out": f"{root}/outputs/out"}
    pulled = elsewhere("pull", "t", "--to", "here")
    assert pulled.returncode == 0, pulled.stderr
    assert (elsewhere.folder / "here/kept").read_text() == "kept\n"
    assert (elsewhere.folder / "here/out/deep").read_text() == "deep\n"
    assert_nothing_left(Control(fake))


def test_a_store_that_fails_is_told_and_costs_no_run(shared: Cli, tmp_path: Path, fake: FakeServer) -> None:
    (tmp_path / "in-the-way").write_text("no folder")
    shared.env["GPUJOBS_STORE"] = f"file://{tmp_path}/in-the-way/store"
    done = shared("submit", shared.recipe(RECIPE), "--here", "--yes")
    assert done.returncode == 0, done.stderr
    assert "the store file://" in done.stderr
    assert shared("logs", "t").stdout == "begun\n"
    assert_nothing_left(Control(fake))


def test_a_store_of_an_unknown_kind_is_refused_before_anything_is_rented(shared: Cli, fake: FakeServer) -> None:
    shared.env["GPUJOBS_STORE"] = "gopher://somewhere/x"
    done = shared("submit", shared.recipe(RECIPE), "--here", "--yes")
    assert (done.returncode, "GPUJOBS_STORE" in done.stderr) == (2, True)
    assert Control(fake).machines() == []
