"""Look up every locked package among the known vulnerabilities; one that is not allowed with a reason fails.

Where the database cannot be reached, that is said loudly and fails nothing.

usage: audit.py [--url URL] [--requirements FILE] [--allowed FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_EXPORT = [
    os.environ.get("UV", "uv"),
    "export",
    "--locked",
    "--quiet",
    "--no-emit-project",
    "--all-groups",
    "--all-extras",
]
_ANSWER_S, _ALL_S = 10, 300


def main() -> int:
    """Give 0 where nothing is known against the packages, or nobody could be asked; 1 where something is."""
    args = _arguments()
    allowed = _allowed(args.allowed)
    with tempfile.TemporaryDirectory() as folder:
        found, trouble = _ask(args.requirements or _locked(Path(folder)), args.url)
    if trouble:
        print(f"\n*** THE DEPENDENCIES WERE NOT AUDITED: {trouble}\n*** Run `make audit` where the internet is.\n")
        return 0
    known = [(package, flaw) for package in found for flaw in package.get("vulns", [])]
    bad = [(package, flaw) for package, flaw in known if not allowed.keys() & {flaw["id"], *flaw["aliases"]}]
    for package, flaw in bad:
        better = ", ".join(flaw["fix_versions"]) or "none yet"
        print(
            f"{package['name']} {package['version']}: {flaw['id']} ({', '.join(flaw['aliases'])}); mended in: {better}"
        )
    seen = {name for _, flaw in known for name in (flaw["id"], *flaw["aliases"])}
    for name in sorted(allowed.keys() - seen):
        print(f"{name} is allowed, and no package has it any more: take it out of {args.allowed}")
    print(f"audited {len(found)} packages: {len(bad)} vulnerabilities, {len(known) - len(bad)} more are allowed")
    return 1 if bad else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="another OSV service than the public one, as https://host/v1/query")
    parser.add_argument("--requirements", type=Path, help="audit these instead of uv.lock")
    parser.add_argument("--allowed", type=Path, default=Path(__file__).with_name("audit-allowed.txt"))
    return parser.parse_args()


def _allowed(path: Path) -> Mapping[str, str]:
    """Read lines of an id and the reason why we live with it."""
    lines = [line.split(None, 1) for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    if without := [words[0] for words in lines if len(words) == 1]:
        sys.exit(f"{path}: {', '.join(without)} has no reason; write one behind it")
    return {words[0]: words[1] for words in lines}


def _locked(folder: Path) -> Path:
    path = folder / "requirements.txt"
    subprocess.run([*_EXPORT, "--output-file", path], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return path


def _ask(requirements: Path, url: str | None) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Give what pip-audit says of each package, or why it could not be asked."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--disable-pip", "--no-deps"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(_ANSWER_S)]
    command += ["--vulnerability-service", "osv", *(["--osv-url", url] if url else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ALL_S, check=False)
    except subprocess.TimeoutExpired:
        return [], f"the database did not answer within {_ALL_S} s"
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [], (done.stderr.strip() or "pip-audit said nothing").splitlines()[-1][:300]
    left_out = [package["name"] for package in found if "skip_reason" in package]
    return found, f"the database does not know {', '.join(left_out[:5])}" if left_out else ""


if __name__ == "__main__":
    sys.exit(main())
