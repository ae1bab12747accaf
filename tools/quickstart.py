"""Runs the example recipe on the fake cloud, on one provider after the other, and says what came of it."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROVIDERS = ("autodl", "matrixdc")


def gpujobs(*words: str) -> int:
    """Run one command with its output shown; give its exit code."""
    print(f"\n$ gpujobs {' '.join(words)}", flush=True)
    return subprocess.run([sys.executable, "-m", "gpujobs", *words], check=False).returncode


def asked(*words: str) -> Any:
    """Run one command for its JSON."""
    command = [sys.executable, "-m", "gpujobs", *words, "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    """Run on each provider; exit code 0 when both went well and nothing stayed rented."""
    lines = []
    try:
        for provider in PROVIDERS:
            where = f"resources.infra={provider}"
            code = gpujobs("submit", "recipes/quickstart.yaml", "--fake", "--yes", "--set", where)
            if code:
                return code
            lines.append(summary(provider, asked("status", "--fake")))
        alive = asked("machines", "--fake")
    finally:
        gpujobs("down", "--fake")
    print("\n" + "\n".join(lines))
    print(f"{len(alive)} machines alive")
    return 1 if alive else 0


def summary(provider: str, run: Mapping[str, Any]) -> str:
    """Say in one paragraph what a run brought."""
    outputs = {name: Path(path) for name, path in run["outputs"].items()}
    metrics = json.loads(outputs["metrics"].read_text())
    files = "\n".join(f"  {name}: {path}" for name, path in outputs.items())
    cost = f"{run['cost_cny']:.4f} CNY (fake)"
    return f"{provider}: test accuracy {metrics['test_accuracy']:.3f}, cost {cost}, outputs:\n{files}"


if __name__ == "__main__":
    sys.exit(main())
