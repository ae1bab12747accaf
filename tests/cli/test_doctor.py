"""doctor: what is wrong is named, with its remedy."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.cli.command import Cli
from tests.cloud import Control


def states(done_stdout: str) -> dict[str, str]:
    return {finding["check"]: finding["state"] for finding in json.loads(done_stdout)}


def test_all_is_well(cli: Cli, control: Control) -> None:
    done = cli("doctor", "--json")
    assert done.returncode == 0, done.stdout
    assert set(states(done.stdout).values()) == {"ok"}
    assert {"python", "home", "ledger", "controller", "autodl token", "autodl API", "matrixdc clock"} <= set(
        states(done.stdout)
    )
    assert control.machines() == []


def test_no_token_at_all_is_a_failure_with_its_remedy(bare: Cli) -> None:
    done = bare("doctor")
    assert done.returncode == 2
    assert (
        "fail  tokens: no cloud can be used; set AUTODL_TOKEN or MATRIXDC_TOKEN, or rehearse with --fake" in done.stdout
    )


def test_one_cloud_alone_is_enough(cli: Cli) -> None:
    done = cli("doctor", "--json", env={**cli.env, "MATRIXDC_TOKEN": ""})
    assert (done.returncode, states(done.stdout)["matrixdc token"]) == (0, "warn")


@pytest.mark.parametrize("name", ["AUTODL", "MATRIXDC"])
def test_a_wrong_token_is_named_and_not_shown(cli: Cli, name: str) -> None:
    done = cli("doctor", env={**cli.env, f"{name}_TOKEN": "s3cr3t-canary"})
    assert done.returncode == 2
    assert re.search(
        rf"^fail  {name.lower()} API: .*the token is not accepted .*check {name}_TOKEN", done.stdout, re.MULTILINE
    )
    assert "canary" not in done.stdout + done.stderr


class Unverified(BaseHTTPRequestHandler):
    """AutoDL's answer to every call of an account that is not verified; seen live."""

    def do_POST(self) -> None:
        """Refuse."""
        body = json.dumps({"code": "BadRequest", "msg": "无当前资源访问权限", "data": None}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@pytest.fixture
def unverified() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Unverified) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_account_without_enterprise_verification_is_told_so(cli: Cli, unverified: str) -> None:
    done = cli("doctor", env={**cli.env, "AUTODL_API_URL": unverified})
    assert done.returncode == 2
    assert re.search(r"^fail  autodl API: .*enterprise verification", done.stdout, re.MULTILINE)


def test_a_home_that_others_can_read_is_a_failure(cli: Cli) -> None:
    cli.home.mkdir(mode=0o755)
    cli.home.chmod(0o755)
    done = cli("doctor")
    assert done.returncode == 2
    assert f"fail  home: others can read {cli.home}; run: chmod 700 {cli.home}" in done.stdout


def test_a_ledger_that_is_none_is_a_failure(cli: Cli) -> None:
    cli.home.mkdir(mode=0o700)
    (cli.home / "ledger.db").write_text("this is no database, and was never one" * 100)
    done = cli("doctor")
    assert done.returncode == 2
    assert re.search(r"^fail  ledger: .*ledger\.db", done.stdout, re.MULTILINE)


def test_no_ssh_program_is_only_a_warning(cli: Cli) -> None:
    done = cli("doctor", "--json", env={**cli.env, "PATH": "/nowhere"})
    assert (done.returncode, states(done.stdout)["ssh"]) == (0, "warn")
