"""The study in examples/: 24 trainings over 4 machines, one of which dies on the way; nothing is lost or paid twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from gpujobs.ledger import open_ledger
from gpujobs.settings import Settings
from tests.call.project import load
from tests.cloud import BACKENDS, Control
from tests.conftest import QUICK

EXAMPLE = Path(__file__).parents[2] / "examples" / "study.py"
DOT = "{http://www.w3.org/2000/svg}circle"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_study_is_whole_though_a_machine_is_killed_amid_it(  # noqa: PLR0917 - fixtures
    backend: str,
    control: Control,
    cloud_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("gpujobs.host.Timing", lambda: replace(QUICK, lost_s=8.0))
    study = load(EXAMPLE, monkeypatch)
    came: list[Any] = []

    def tell(cell: Any) -> None:
        came.append(cell)
        if len(came) == 1:
            control.ask("POST", "faults", {"kind": "dies_mid_run", "machine": cell.machine, "seconds": 0, "count": 1})

    cells = study.main(["--infra", backend, "--epochs", "1", "--picture", str(tmp_path / "study.svg")], each=tell)

    wanted = [(rate, seed) for rate in study.RATES for seed in study.SEEDS]
    assert len(wanted) == 24
    assert [(cell.rate, cell.seed) for cell in cells] == wanted
    assert sorted((cell.rate, cell.seed) for cell in came) == wanted, "each result comes once"
    assert all(0.1 < cell.accuracy <= 1 for cell in cells)
    assert len({cell.machine for cell in cells}) > 1
    assert control.left() == []
    with open_ledger(cloud_settings.database_url) as ledger:
        (run,) = ledger.list_runs()
        bills = ledger.bills(run.id)
        states = [one.state for one in ledger.attempts(run.id)]
    assert run.state == "succeeded"
    assert len(bills) == len(states) >= 4
    assert run.cost_cny == pytest.approx(sum(one.cost_cny or 0 for one in bills))
    picture = ET.parse(tmp_path / "study.svg")
    assert len(picture.findall(DOT)) == 24
    assert f"run {run.id}: {run.cost_cny:.4f} CNY" in capsys.readouterr().out
