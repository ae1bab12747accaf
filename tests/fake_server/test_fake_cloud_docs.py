"""docs/fake-cloud.md is complete, and its examples run."""

import argparse
import ast
import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from fake_server import FakeCloud
from fake_server.fault_rules import KINDS
from fake_server.server import FakeServer
from fake_server.timings import Guesses
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import Wires

PAGE = (Path(__file__).parents[2] / "docs" / "fake-cloud.md").read_text(encoding="utf-8")
FAULTS = re.findall(r"^\| `(\w+)` \| (.+) \| `(cloud\.fault\(.+\))` \|$", PAGE, re.MULTILINE)


def test_every_kind_of_fault_is_explained_as_the_control_room_does_and_has_an_example() -> None:
    assert {kind: meaning for kind, meaning, _ in FAULTS} == {kind: each.meaning for kind, each in KINDS.items()}


@pytest.mark.parametrize(("kind", "example"), [(kind, example) for kind, _, example in FAULTS])
def test_every_example_of_a_fault_can_be_armed(kind: str, example: str) -> None:
    call = ast.parse(example, mode="eval").body
    assert isinstance(call, ast.Call)
    arguments = [ast.literal_eval(each) for each in call.args]
    details = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    with FakeCloud(containers=QuietContainers) as cloud:
        cloud.fault(*arguments, **details)
        rule = cloud.server.faults.as_json()["rules"][0]
    assert rule["kind"] == kind
    assert rule.items() >= details.items()


def test_every_guess_is_listed_with_its_usual_value() -> None:
    told = dict(re.findall(r"^\| `([a-z0-9_]+)` \| `(.*)` \|", PAGE, re.MULTILINE))
    for each in dataclasses.fields(Guesses):
        usual = getattr(Guesses(), each.name)
        assert told[each.name] == (str(usual).lower() if isinstance(usual, bool) else str(usual)), each.name


def test_every_option_of_the_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from fake_server.__main__ import main  # noqa: PLC0415

    with pytest.raises(SystemExit):
        main(["--help"])
    options = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)) - {"--help"}
    assert options
    assert options <= set(re.findall(r"`(--[a-z-]+)`", PAGE))


def test_every_call_of_the_control_room_is_listed(wires: Wires) -> None:
    app = wires.fake._http.app
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("control.")]
    calls = {f"{method} {rule.rule}" for rule in rules for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
    assert len(calls) > 10
    told = {f"{method} /_fake/{path}" for method, path in re.findall(r"`(GET|POST|DELETE) ([a-z]+(?:/ID)?)`", PAGE)}
    assert {call.replace("<int:rule_id>", "ID") for call in calls} == told


def test_the_python_blocks_run() -> None:
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(first, "fake-cloud.md", "exec"), {})
    space: dict[str, object] = {}
    exec(compile(second, "fake-cloud.md", "exec"), space)
    test = space["test_my_client"]
    assert callable(test)
    with FakeCloud(speed=0, seed=1) as cloud:
        test(cloud)


def test_the_curl_lines_are_answered(wires: Wires) -> None:
    lines = re.findall(r"^\$ (curl .+)$", PAGE, re.MULTILINE)
    assert len(lines) == 3
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-d")
    parser.add_argument("-s", action="store_true")
    for line in lines:
        asked = parser.parse_args(shlex.split(line)[1:])
        headers = dict(each.split(": ", 1) for each in asked.H)
        url = asked.url.replace("http://127.0.0.1:8700", wires.fake.url)
        reply = wires.session.request("POST" if asked.d else "GET", url, data=asked.d, headers=headers, timeout=60)
        assert reply.status_code == 200, line
        assert "AuthorizeFailed" not in reply.text


def test_the_fake_listens_where_the_page_says() -> None:
    with FakeServer(containers=QuietContainers) as fake:
        assert fake.autodl_url == fake.url
        assert fake.matrixdc_url == f"{fake.url}/mdc/api/v1"
        assert (fake.token, fake.namespace, fake.control_token) == ("fake-token", "fake-user", "fake-control")
