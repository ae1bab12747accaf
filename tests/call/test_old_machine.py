"""A machine whose Python is 3.8, as in these clouds' images: calls and fleets work there, or are refused in words."""

import shutil
from pathlib import Path

import pytest

from gpujobs import Fleet
from gpujobs.errors import BadInput
from tests.call.project import load
from tests.call.test_remote_python import interpreter
from tests.cloud import Control

REGION = "westDC2"
THERE = "/root/autodl-fs/py38"  # what AutoDL's machines of a region share
LIMIT_S = 120
LEFT_OUT = ("test", "idlelib", "tkinter", "lib2to3", "ensurepip", "site-packages", "config-*", "__pycache__")
PROGRAM = f"""#!/bin/bash
LD_LIBRARY_PATH={THERE}/lib exec -a "$0" {THERE}/bin/python3.8 "$@"
"""
PROJECT = """
from __future__ import annotations
import dataclasses, datetime, sys
from gpujobs import gpu_job

@dataclasses.dataclass
class Metrics:
    python: tuple[int, int]
    rate: float
    at: datetime.datetime | None = None

class Odd(Exception):
    def __init__(self, number):
        super().__init__(number)
        self.number = number

@gpu_job(accelerators="RTX 4090", infra="autodl/REGION", python="THERE/python", max_duration="10m")
def train(rate: float) -> Metrics:
    if rate < 0:
        raise Odd(rate)
    print("at", rate)
    return Metrics(tuple(sys.version_info[:2]), rate, datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc))
"""
pytestmark = pytest.mark.usefixtures("cloud_settings")


@pytest.fixture
def old_machine(control: Control) -> None:
    """Have a Python 3.8 where all machines of a region find it; the tests say so in the summary where there is none."""
    found = Path(interpreter("3.8")).resolve().parent.parent
    place = control.fake.world.ground.folder / "autodl/fs" / REGION / "py38"
    shutil.copytree(found / "lib/python3.8", place / "lib/python3.8", ignore=shutil.ignore_patterns(*LEFT_OUT))
    for library in found.glob("lib/libpython3*.so*"):
        shutil.copy(library, place / "lib")
    (place / "bin").mkdir()
    shutil.copy(found / "bin/python3.8", place / "bin")
    (place / "python").write_text(PROGRAM)
    (place / "python").chmod(0o755)


@pytest.mark.usefixtures("old_machine")
def test_calls_and_a_fleet_work_on_a_machine_with_python_3_8(
    tmp_path: Path, control: Control, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "proj").mkdir()
    path = tmp_path / "proj" / "older.py"
    path.write_text(PROJECT.replace("REGION", REGION).replace("THERE", THERE))
    older = load(path, monkeypatch)
    found = older.train.remote(0.5)
    assert found == older.Metrics((3, 8), 0.5, older.datetime.datetime(2026, 1, 1, tzinfo=older.datetime.timezone.utc))
    assert "at 0.5\n" in capfd.readouterr().out

    keys = {"accelerators": "RTX 4090", "infra": f"autodl/{REGION}", "python": f"{THERE}/python"}
    shift = 3
    with Fleet(keys, machines=1, workdir=str(path.parent)) as pool:
        good, bad = pool.submit(older.train, 0.25), pool.submit(older.train, -1.0)
        closure = pool.submit(lambda number: number + shift, 4)
        assert (good.result(LIMIT_S).python, good.result().rate) == ((3, 8), 0.25)
        error = bad.exception(LIMIT_S)
        assert (type(error), getattr(error, "number", None)) == (older.Odd, -1.0)
        with pytest.raises(BadInput, match=r"one minor version: here it is 3\.\d+, and the machine's .* is 3\.8"):
            closure.result(LIMIT_S)
    assert control.left() == []
