"""The audit of the dependencies: a known vulnerability fails it, a database that is away is shouted about."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.backends.clouds import Answer, Request, canned

ROOT = Path(__file__).parent.parent.parent
FLAW = {
    "id": "GHSA-aaaa-bbbb-cccc",
    "aliases": ["CVE-2099-1"],
    "summary": "it breaks",
    "details": "very much",
    "affected": [
        {
            "package": {"name": "badlib", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}],
        }
    ],
}


def osv(asked: Request) -> Answer:
    """Answer as OSV does. Source: OSV's API, POST /v1/query."""
    name = asked.body["package"]["name"]
    return Answer(body={"vulns": [FLAW]} if name == "badlib" else {})


def audit(folder: Path, url: str, allowed: str = "") -> "subprocess.CompletedProcess[str]":
    (folder / "requirements.txt").write_text("badlib==1.0\ngoodlib==3.1\n")
    (folder / "allowed.txt").write_text(f"# why we live with it\n{allowed}\n")
    command: list[Any] = [sys.executable, ROOT / "tools" / "audit.py", "--url", url]
    command += ["--requirements", folder / "requirements.txt", "--allowed", folder / "allowed.txt"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("allowed", "code", "words"),
    [
        ("", 1, "badlib 1.0: CVE-2099-1 (GHSA-aaaa-bbbb-cccc); mended in: 2.0\naudited 2 packages: 1 vul"),
        ("CVE-2099-1 we never call it", 0, "audited 2 packages: 0 vulnerabilities, 1 more are allowed"),
        ("CVE-2099-1 it\nCVE-2098-7 gone", 0, "CVE-2098-7 is allowed, and no package has it any more"),
    ],
    ids=["known", "allowed", "allowed for nothing"],
)
def test_a_known_vulnerability_fails_unless_it_is_allowed(tmp_path: Path, allowed: str, code: int, words: str) -> None:
    with canned(osv) as service:
        done = audit(tmp_path, f"{service.url}/v1/query", allowed)
    assert (done.returncode, words in done.stdout) == (code, True), done.stdout + done.stderr
    assert [asked.body["package"]["name"] for asked in service.asked] == ["badlib", "goodlib"]


def test_a_database_that_is_away_is_said_loudly_and_fails_nothing(tmp_path: Path) -> None:
    done = audit(tmp_path, "http://127.0.0.1:9/v1/query")
    assert (done.returncode, "*** THE DEPENDENCIES WERE NOT AUDITED: " in done.stdout) == (0, True), done.stderr
    assert "audited" not in done.stdout.lower().replace("not audited", "")


def test_an_exception_without_a_reason_is_refused(tmp_path: Path) -> None:
    done = audit(tmp_path, "http://127.0.0.1:9/v1/query", "CVE-2099-1")
    assert (done.returncode, "CVE-2099-1 has no reason" in done.stderr) == (1, True)
