"""Bad input of every kind: a message that names place and remedy, the right exit code, and nothing rented."""

import re
from collections.abc import Mapping

import pytest

from fake_server.server import FakeServer
from tests.cli.command import Cli
from tests.cloud import Control

GOOD = """\
name: t
resources:
  infra: autodl
  accelerators: RTX 4090
run: echo hello
max_duration: 30m
"""
MATRIXDC = GOOD.replace("autodl", "matrixdc").replace("RTX 4090", "H20")

# what is changed in the recipe, or laid over it; the exit code; what the message says
RECIPES: Mapping[str, tuple[str, tuple[str, ...], int, str]] = {
    "unknown key": (GOOD + "outputz: {}\n", (), 2, r"recipe\.yaml:7: outputz is not known; did you mean outputs\?"),
    "unknown nested key": (
        GOOD.replace("accelerators:", "acelerators:"),
        (),
        2,
        r"recipe\.yaml:4: resources\.acelerators is not known; did you mean accelerators\?",
    ),
    "unknown key in --set": (GOOD, ("resources.cpu=4",), 2, r"--set resources\.cpu.*did you mean cpus\?"),
    "wrong type": (GOOD + "outputs: 5\n", (), 2, r"recipe\.yaml:7: outputs"),
    "wrong unit": (GOOD.replace("30m", "30 parsecs"), (), 2, r"recipe\.yaml:6: max_duration.*90s, 30m, 6h, 2d"),
    "no unit": (GOOD.replace("30m", "30"), (), 2, r"recipe\.yaml:6: max_duration.*unit"),
    "impossible resource": (GOOD.replace("RTX 4090", "RTX 4090:0"), (), 2, r"recipe\.yaml:4: resources\.accelerators"),
    "more than any host has": (GOOD, ("resources.cpus=5000",), 3, r"nothing that fits is free now"),
    "missing workdir": (GOOD + "workdir: nowhere\n", (), 2, r"recipe\.yaml:7: workdir.*nowhere"),
    "missing file": (GOOD + "file_mounts: {/root/x: ./none.csv}\n", (), 2, r"recipe\.yaml:7: file_mounts.*none\.csv"),
    "missing secret": (
        GOOD + "secrets: [GJ_NO_SUCH_SECRET]\n",
        (),
        2,
        r"secret GJ_NO_SUCH_SECRET has no value; set it",
    ),
    "unknown backend": (GOOD, ("resources.infra=autodel",), 2, r"resources\.infra.*autodel.*autodl"),
    "unknown region": (GOOD, ("resources.infra=autodl/westDC9",), 2, r"westDC9.*westDC[23]"),
    "unknown region of MatrixDC": (
        MATRIXDC,
        ("resources.infra=matrixdc/nowhere",),
        2,
        r"nowhere.*host-cluster|北京一区",
    ),
    "unknown GPU": (GOOD, ("resources.accelerators=RTX 4091",), 2, r"RTX 4091.*RTX 4090"),
    "unknown GPU of MatrixDC": (MATRIXDC, ("resources.accelerators=H21",), 2, r"H21.*H20"),
    "unknown image": (GOOD, ("resources.image=base-image-nope",), 2, r"base-image-nope"),
    "unknown image of MatrixDC": (MATRIXDC, ("resources.image=nowhere.example/x:1",), 2, r"nowhere\.example/x:1"),
    "unknown snapshot": (
        MATRIXDC,
        ("resources.image=snapshot:nope",),
        2,
        r"no snapshot:nope on matrixdc; known snapshots there: none",
    ),
    "price above max_price": (GOOD, ("resources.max_price=0.01",), 3, r"nothing that fits is free now"),
    "snapshot on AutoDL": (GOOD + "snapshot: {name: env}\n", (), 2, r"cannot save snapshots; remove `snapshot`"),
    "no YAML": ("name: [t\n", (), 2, r"recipe\.yaml:\d: "),
    "empty": ("", (), 2, r"recipe\.yaml is empty; gpujobs init"),
    "several at once": (
        GOOD.replace("30m", "30") + "outputz: {}\n",
        (),
        2,
        r"(?s)(?=.*recipe\.yaml:6: max_duration)(?=.*recipe\.yaml:7: outputz)",
    ),
}


def assert_told(done_code: int, out: str, err: str, code: int, message: str) -> None:
    told = err[err.find("gpujobs: ") :] if "gpujobs: " in err else ""
    assert done_code == code, out + err
    assert re.search(message, told), told
    assert "Traceback" not in out + err
    assert told.count("\n") <= 3, told


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_cannot_run_is_refused_before_anything_is_rented(cli: Cli, control: Control, case: str) -> None:
    text, overrides, code, message = RECIPES[case]
    sets = [word for override in overrides for word in ("--set", override)]
    cli.recipe(text)
    done = cli("submit", "recipe.yaml", "--here", "--yes", *sets)
    assert_told(done.returncode, done.stdout, done.stderr, code, message)
    assert control.machines() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AUTODL_TOKEN": ""}, r"AUTODL_TOKEN is not set"),
        ({"AUTODL_TOKEN": "wrong"}, r"the token is not accepted .*check AUTODL_TOKEN"),
        ({"AUTODL_TOKEN": "two words"}, r"AUTODL_TOKEN holds a character that no token has"),
        ({"AUTODL_API_URL": "http://api.example.com"}, r"AUTODL_API_URL must be a plain https URL, or http on this"),
        ({"GPUJOBS_OWNER": "No Body"}, r"GPUJOBS_OWNER=No Body must be 1 to 16 small letters and digits"),
        ({"GPUJOBS_DATABASE_URL": "mysql://x"}, r"GPUJOBS_DATABASE_URL"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(cli: Cli, control: Control, change: dict[str, str], message: str) -> None:
    cli.recipe(GOOD)
    done = cli("submit", "recipe.yaml", "--here", "--yes", env={**cli.env, **change})
    assert_told(done.returncode, done.stdout, done.stderr, 2, message)
    assert "wrong" not in done.stderr.replace("wrong-", "") or change.get("AUTODL_TOKEN") != "wrong"
    assert control.machines() == []


@pytest.mark.parametrize("backend", ["AUTODL", "MATRIXDC"])
def test_a_wrong_token_is_not_repeated_in_any_message(cli: Cli, backend: str) -> None:
    cli.recipe(GOOD if backend == "AUTODL" else MATRIXDC)
    env = {**cli.env, f"{backend}_TOKEN": "s3cr3t-canary-0451"}
    for command in (["submit", "recipe.yaml", "--here", "--yes"], ["doctor"], ["machines"], ["images"]):
        done = cli(*command, env=env)
        assert "canary" not in done.stdout + done.stderr
        assert f"check {backend}_TOKEN" in done.stdout + done.stderr or command == ["images"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("recipe.yml", r"recipe\.yml does not exist; did you mean recipe\.yaml\?"),
        (".", r"is a folder; did you mean .*recipe\.yaml\?"),
        ("none/x.yaml", r"none/x\.yaml does not exist; .*folder none"),
    ],
)
def test_a_missing_recipe_names_the_nearest(cli: Cli, given: str, message: str) -> None:
    cli.recipe(GOOD)
    done = cli("plan", given)
    assert_told(done.returncode, done.stdout, done.stderr, 2, message)


def test_a_provider_that_does_not_answer_is_an_error_of_a_line(cli: Cli, fake: FakeServer) -> None:
    cli.recipe(GOOD)
    env = {**cli.env, "AUTODL_API_URL": "http://127.0.0.1:9"}
    done = cli("plan", "recipe.yaml", env=env)
    del fake
    assert_told(done.returncode, done.stdout, done.stderr, 70, r"(?i)autodl.*(refused|reach|connect|answer)")
