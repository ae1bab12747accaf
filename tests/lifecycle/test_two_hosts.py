"""Two hosts, as processes, on one ledger: one is frozen past its lease and thawed while the other drives its run."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpujobs.host import Host
from gpujobs.lifecycle import new_run_id, open_run
from gpujobs.settings import Settings
from tests.cloud import Control, recipe_for
from tests.lifecycle.test_run import assert_nothing_left
from tests.prefect.desk import until

PROGRAM = "tests.lifecycle.freezing_host"
RECIPE = recipe_for("autodl", run="echo begun; sleep 4; echo over; echo kept > kept", outputs={"kept": "kept"})


@pytest.fixture
def start(tmp_path: Path, database_url: str) -> Iterator[Callable[[str, str, str], "subprocess.Popen[str]"]]:
    started = []

    def begin(home: str, run_id: str, moment: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "GPUJOBS_HOME": str(tmp_path / home), "GPUJOBS_DATABASE_URL": database_url}
        command = [sys.executable, "-m", PROGRAM, run_id, moment]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def frozen(process: "subprocess.Popen[str]") -> bool:
    assert process.poll() is None, "it ended before it froze"
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("moment", "database_url"),
    [
        ("provision", "sqlite"),
        ("output", "sqlite"),
        ("release", "sqlite"),
        ("provision", "postgresql"),
        ("run", "postgresql"),
    ],
    indirect=["database_url"],
)
def test_the_thawed_one_starts_nothing_rents_nothing_and_writes_nothing(
    moment: str,
    start: Callable[[str, str, str], "subprocess.Popen[str]"],
    database_url: str,
    cloud_settings: Settings,
    control: Control,
) -> None:
    """With PostgreSQL, the two have homes of their own."""
    homes = ("home", "home") if database_url.startswith("sqlite") else ("home", "away")
    run_id = new_run_id()
    with Host.open(replace(cloud_settings, database_url=database_url)) as desk:
        open_run(desk, RECIPE, run_id=run_id)
        first = start(homes[0], run_id, moment)
        until(lambda: frozen(first), within_s=60)
        second = start(homes[1], run_id, "never")
        until(lambda: desk.ledger.get_run(run_id).fence > 1, within_s=60)
        first.send_signal(signal.SIGCONT)
        told = [process.communicate(timeout=90)[0].splitlines() for process in (first, second)]
        assert desk.ledger.get_run(run_id).state == "succeeded"
        assert [(row.number, row.state) for row in desk.ledger.attempts(run_id)] == [(1, "succeeded")]
    assert told[0][0] == f"running run {run_id} was taken over by another process; this one lets go of it"
    assert told[1][-1] == "succeeded "
    log = cloud_settings.home.parent / homes[1] / "runs" / run_id / "output.log"
    assert log.read_bytes() == b"begun\nover\n"
    assert_nothing_left(control)
