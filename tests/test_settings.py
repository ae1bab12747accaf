"""Settings come from the environment, then the file; what is wrong in them is named, and no secret is shown."""

import getpass
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpujobs import settings
from gpujobs.errors import BadInput
from gpujobs.settings import Account, Settings, private_folder, private_opener
from gpujobs.transfer_pack import survey
from tests.kept import Kept

NAMES = [
    *(f"{cloud}_{key}" for cloud in ("AUTODL", "MATRIXDC") for key in ("TOKEN", "API_URL", "NAMESPACE")),
    *(f"GPUJOBS_{key}" for key in ("HOME", "DATABASE_URL", "OWNER")),
    "HF_TOKEN",
    "GPUJOBS_FAKE",
]


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config/gpujobs/config.toml"
    path.parent.mkdir(parents=True)
    path.touch(mode=0o600)
    return path


def refused() -> str:
    with pytest.raises(BadInput) as caught:
        settings.load()
    return str(caught.value)


def test_with_nothing_set_there_is_a_private_home_a_ledger_in_it_and_no_account(tmp_path: Path) -> None:
    found = settings.load()
    home = tmp_path / "data/gpujobs"
    assert (found.home, found.runs) == (home, home / "runs")
    assert found.database_url == f"sqlite:///{home}/ledger.db"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert found.account("autodl") == Account()
    assert re.fullmatch(r"[a-z0-9]{1,16}", found.owner)


def test_the_environment_stands_above_the_file(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(
        f'home = "{tmp_path}/filed"\nowner = "filed"\ndatabase_url = "sqlite:////filed"\n'
        '[autodl]\ntoken = "filed"\napi_url = "https://filed.example/"\n[secrets]\nHF_TOKEN = "filed"\n'
    )
    found = settings.load()
    assert (found.home, found.owner, found.database_url) == (tmp_path / "filed", "filed", "sqlite:////filed")
    assert found.account("autodl") == Account(token="filed", api_url="https://filed.example")
    assert found.secret("HF_TOKEN") == "filed"
    for name, value in {
        "GPUJOBS_HOME": f"{tmp_path}/set",
        "GPUJOBS_OWNER": "set",
        "GPUJOBS_DATABASE_URL": "sqlite:////set",
        "AUTODL_TOKEN": "set",
        "HF_TOKEN": "set",
    }.items():
        monkeypatch.setenv(name, value)
    found = settings.load()
    assert (found.home, found.owner, found.database_url) == (tmp_path / "set", "set", "sqlite:////set")
    assert found.account("autodl") == Account(token="set", api_url="https://filed.example")
    assert found.secret("HF_TOKEN") == "set"


def test_each_provider_has_an_account_of_its_own(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    monkeypatch.setenv("MATRIXDC_TOKEN", "m")
    monkeypatch.setenv("MATRIXDC_NAMESPACE", "ada")
    config.write_text("[matrixdc]\nprice_scale = 0.01\n")
    found = settings.load()
    assert found.account("matrixdc") == Account(token="m", namespace="ada", price_scale=0.01)
    assert found.account("autodl") == Account()


TEAM = {"token": "team's-token", "api_url": "https://team.example/"}


def with_blocks(*, place: str = "http://127.0.0.1:4200/api", **credentials: Mapping[str, Any]) -> Settings:
    kept = Kept({name.replace("_", "-"): values for name, values in credentials.items()}, place=place)
    return replace(settings.load(), blocks=kept)


def test_a_block_stands_below_the_environment_and_the_file_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_blocks(gpujobs=TEAM, my_team={"token": "mine"})
    assert found.account("autodl") == Account(token="team's-token", api_url="https://team.example")
    monkeypatch.setenv("AUTODL_TOKEN", "own")
    assert found.account("autodl") == Account(token="own")
    assert found.account("autodl", "my-team") == Account(token="mine")
    assert found.account("matrixdc") == Account()
    assert {account.token for account in found.accounts("autodl")} == {"own", "team's-token", "mine"}


def test_an_account_is_never_a_mixture_of_a_block_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTODL_API_URL", "https://elsewhere.example")
    assert with_blocks(gpujobs={"token": "t"}).account("autodl") == Account(token="t")


def test_on_the_fake_cloud_no_block_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUJOBS_FAKE", "1")
    monkeypatch.setenv("AUTODL_TOKEN", "fake-token")
    found = with_blocks(gpujobs=TEAM, my_team=TEAM)
    assert found.account("autodl", "my-team") == Account(token="fake-token")
    assert found.accounts("autodl") == [Account(token="fake-token")]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", r"credentials\.autodl: .* autodl-credentials/mine cannot be read, for no server is known: gpujobs up"),
        (
            "http://x/api",
            r"credentials\.autodl: the Prefect server at http://x/api has no block autodl-credentials/mine",
        ),
    ],
)
def test_a_named_block_that_is_not_to_be_had_is_told_with_what_to_do(place: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        with_blocks(place=place, gpujobs=TEAM).account("autodl", "mine")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"token": ""}, "it has no token"),
        ({"token": "two words"}, "its token holds a character"),
        ({"token": "t", "api_url": "http://team.example"}, "its address must be a plain https URL"),
    ],
)
def test_a_broken_block_is_named_without_its_token_and_costs_the_others_nothing(
    values: Mapping[str, Any], said: str
) -> None:
    found = with_blocks(mine=values, gpujobs=TEAM)
    with pytest.raises(BadInput, match=f"block autodl-credentials/mine: {said}") as caught:
        found.account("autodl", "mine")
    assert "two words" not in str(caught.value)
    assert [account.token for account in found.accounts("autodl")] == ["team's-token"]


def test_secrets_and_notice_urls_come_from_the_environment_the_file_then_blocks(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text('[secrets]\nFILED = "filed"\n[notify]\nwecom = "json://filed"\n')
    kept = Kept({}, {"HF_TOKEN": "kept", "FILED": "kept", "wecom": "json://kept", "team-slack": "json://slack"})
    found = replace(settings.load(), blocks=kept)
    assert [found.secret(name) for name in ("HF_TOKEN", "FILED")] == ["kept", "filed"]
    assert [found.notice_url(name) for name in ("wecom", "team-slack")] == ["json://filed", "json://slack"]
    monkeypatch.setenv("GPUJOBS_NOTIFY_TEAM_SLACK", "json://set")
    assert found.notice_url("team-slack") == "json://set"
    with pytest.raises(BadInput, match=r"secret NO has no value; .*has no block secret/no$"):
        found.secret("NO")
    with pytest.raises(BadInput, match=r"notify: no has no URL; set GPUJOBS_NOTIFY_NO, or no under \[notify\] in "):
        found.notice_url("no")


def test_no_secret_is_in_what_settings_print(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    monkeypatch.setenv("AUTODL_TOKEN", "hunter2")
    config.write_text('[secrets]\nHF_TOKEN = "hunter2"\n[matrixdc]\ntoken = "hunter2"\n')
    found = settings.load()
    assert "hunter2" not in repr(found)
    assert "hunter2" not in repr([found.account("autodl"), found.account("matrixdc")])


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_can_read_is_refused_with_the_command_that_mends_it(config: Path, mode: int) -> None:
    config.chmod(mode)
    assert refused().endswith(f"run: chmod 600 {config}")


def test_a_file_that_is_no_toml_is_named_with_the_place(config: Path) -> None:
    config.write_text("home = \n")
    assert re.search(rf"{config}: .*line 1.*mend the file or remove it", refused())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("home = 5", "home must be text in quotes"),
        ("autodl = 5", r"\[autodl\] must be a table"),
        ("[autodl]\ntoken = 5", "token must be text in quotes"),
        ("[autodl]\nprice_scale = 0", "price_scale must be a number above 0"),
        ("[autodl]\nprice_scale = true", "price_scale must be a number above 0"),
        ('[autodl]\nprice_scale = "1"', "price_scale must be a number above 0"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_file(config: Path, text: str, words: str) -> None:
    config.write_text(text)
    with pytest.raises(BadInput, match=rf"^{config}: {words}"):
        settings.load().account("autodl")


@pytest.mark.parametrize("token", ["two words", "line\n", "tab\t", "中文", "esc\x1b"])
def test_a_token_that_was_copied_badly_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("AUTODL_TOKEN", token)
    with pytest.raises(BadInput, match="AUTODL_TOKEN holds a character that no token has") as caught:
        settings.load().account("autodl")
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://api.autodl.com", "http://127.0.0.1:8700", "http://localhost:1", "http://[::1]:1/x"]
)
def test_an_api_is_reached_by_https_or_on_this_machine(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AUTODL_API_URL", f"{url}/")
    assert settings.load().account("autodl").api_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://api.autodl.com",
        "http://127.0.0.1.evil.example",
        "http://localhost@evil.example",
        "https://ada:hunter2@api.autodl.com",
        "https://api.autodl.com?token=hunter2",
        "https://api.autodl.com#x",
        "https://",
        "ftp://127.0.0.1",
        "api.autodl.com",
        "https://api.autodl.com:port",
        "https://[::1",
    ],
)
def test_any_other_address_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AUTODL_API_URL", url)
    with pytest.raises(BadInput, match=r"^AUTODL_API_URL"):
        settings.load().account("autodl")


@pytest.mark.parametrize("owner", ["Ada", "ada-l", "a" * 17, "é"])
def test_an_owner_that_no_machine_name_can_carry_is_refused(monkeypatch: pytest.MonkeyPatch, owner: str) -> None:
    monkeypatch.setenv("GPUJOBS_OWNER", owner)
    assert refused() == f"GPUJOBS_OWNER={owner} must be 1 to 16 small letters and digits"


@pytest.mark.parametrize(("user", "owner"), [("Ada.Lovelace", "adalovelace"), ("用户", "user"), ("a" * 40, "a" * 16)])
def test_the_owner_is_made_of_the_users_name(monkeypatch: pytest.MonkeyPatch, user: str, owner: str) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: user)
    assert settings.load().owner == owner


def test_a_secret_without_a_value_says_where_to_put_it(config: Path) -> None:
    with pytest.raises(BadInput, match=rf"secret HF_TOKEN has no value; set it in the environment, .* in {config}"):
        settings.load().secret("HF_TOKEN")


def test_folders_and_files_are_private_from_their_first_moment(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        folder = private_folder(tmp_path / "all" / "mine")
        with open(folder / "file", "w", opener=private_opener) as file:
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder, Path(file.name))]
    finally:
        os.umask(old)
    assert modes == [0o700, 0o700, 0o600]


def test_a_relative_home_gives_a_ledger_with_an_absolute_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUJOBS_HOME", "here")
    assert settings.load().database_url == f"sqlite:///{tmp_path}/here/ledger.db"


def test_the_home_never_goes_up_with_a_folder_that_it_lies_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    monkeypatch.setenv("GPUJOBS_HOME", str(tmp_path / "project" / "jobs"))
    home = settings.load().home
    (home / "ssh").mkdir()
    (home / "ssh" / "aaaa111111").write_text("a key")
    assert [entry.path for entry in survey(tmp_path) if "jobs" in entry.path] == ["project/jobs"]
    assert stat.S_IMODE((home / ".gpujobsignore").stat().st_mode) == 0o600
