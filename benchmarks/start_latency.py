"""How long from `gpujobs submit --fake` to the provider's create call, and to the first byte of the job's output.

In a new home (the boot of the fake cloud and of the Prefect server included), with no controller up (the server's boot
included), with one up, and with --here. Prints seconds, the median of the rounds and the worst.
python benchmarks/start_latency.py [ROUNDS]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import requests

ROOT = Path(__file__).parent.parent
RECIPE = """
name: first-byte
resources: {infra: [autodl], accelerators: RTX 4090}
run: echo here
max_duration: 10m
"""
BUDGET_S = {"new home": 25.0, "no controller": 25.0, "controller up": 8.0, "here": 6.0}


class Home:
    """A home of gpujobs in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Start nothing yet."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "GPUJOBS_"))}
        self._environment = {**kept, "GPUJOBS_HOME": str(folder), "PYTHONPATH": str(ROOT)}
        self._folder = folder
        self._recipe = folder / "recipe.yaml"
        self._recipe.write_text(RECIPE)

    def first_byte(self, *options: str) -> tuple[float, float]:
        """Submit; give seconds until the create call and until the job's first byte."""
        begun, begun_at = time.monotonic(), time.time()
        with subprocess.Popen(
            self._command("submit", str(self._recipe), "--fake", "--yes", *options),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            line = next(line for line in process.stdout if line == "here\n")
            first_s = time.monotonic() - begun
            assert line
            process.communicate()
        return self._created_at() - begun_at, first_s

    def down(self, *options: str) -> None:
        """End the controller; with --fake the fake cloud too."""
        self._gpujobs("down", *options)

    def down_controller(self) -> None:
        """End the controller alone."""
        fake = {**self._environment, "GPUJOBS_HOME": str(self._folder / "fake"), "PREFECT_HOME": str(self._folder)}
        subprocess.run(self._command("down"), env=fake, check=True, stdout=subprocess.DEVNULL)

    def _created_at(self) -> float:
        url = json.loads((self._folder / "fake" / "fake.json").read_text())["url"]
        headers = {"X-Fake-Control": "fake-control"}
        machines = requests.get(f"{url}/_fake/ledger", headers=headers, timeout=10).json()["machines"]
        now = requests.get(f"{url}/_fake/state", headers=headers, timeout=10).json()["now"]
        return time.time() - (_seconds(now) - max(_seconds(machine["made_at"]) for machine in machines))

    def _gpujobs(self, *arguments: str) -> None:
        subprocess.run(self._command(*arguments), env=self._environment, check=True, stdout=subprocess.DEVNULL)

    def _command(self, *arguments: str) -> Sequence[str]:
        return [sys.executable, "-P", "-m", "gpujobs", *arguments]


def _seconds(moment: float | str) -> float:
    return float(moment)


def measure(rounds: int) -> Mapping[str, Sequence[tuple[float, float]]]:
    """Measure each way so often."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in BUDGET_S}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            home = Home(Path(folder))
            try:
                found["new home"].append(home.first_byte())
                found["controller up"].append(home.first_byte())
                home.down_controller()
                found["no controller"].append(home.first_byte())
                found["here"].append(home.first_byte("--here"))
            finally:
                home.down("--fake")
    return found


def main() -> None:
    """Print the table."""
    print(f"load before: {os.getloadavg()[0]:.1f}")
    print(f"{'':16}{'create call':>20}{'first byte':>20}{'budget':>10}")
    for name, pairs in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 3).items():
        create, first = ([pair[index] for pair in pairs] for index in (0, 1))
        shown = [f"{statistics.median(values):.1f} ({max(values):.1f})" for values in (create, first)]
        print(f"{name:16}{shown[0]:>20}{shown[1]:>20}{BUDGET_S[name]:>10.0f}")


if __name__ == "__main__":
    main()
