"""Projects of a user's, written into a folder, whose functions go to the fake's machines."""

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from tests.cloud import GPUS

HEAD = """
import dataclasses, os, sys, time
from pathlib import Path
import numpy as np
from gpujobs import gpu_job

KEYS = {{"accelerators": "{gpu}", "infra": "{backend}", "max_duration": "10m", "retry": {{"attempts": 1}}}}
"""


def write(folder: Path, name: str, text: str, *, backend: str = "autodl") -> Path:
    """Write a module of a project; KEYS are the decorator's, for a machine of `backend`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gpujobsignore").touch()
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD.format(gpu=GPUS[backend], backend=backend) + textwrap.dedent(text), encoding="utf-8")
    return path


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a module from its folder, as a program there would."""
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    importlib.invalidate_caches()
    return importlib.import_module(path.stem)


def run(path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a script of a project's to its end."""
    command = [sys.executable, str(path), *words]
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=240, check=False)
