"""Starting, finding and ending the controller; and which server is meant."""

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from gpujobs import controller, controller_record, prefect_api, process, worker
from gpujobs.controller_record import Controller
from gpujobs.errors import Busy, GpujobsError
from gpujobs.prefect_login import login
from gpujobs.settings import Settings
from tests.prefect.desk import Desk

PROFILES = """
active = "team"
[profiles.ephemeral]
PREFECT_SERVER_ALLOW_EPHEMERAL_MODE = true
[profiles.team]
PREFECT_API_URL = "https://prefect.example/api/"
PREFECT_API_KEY = "pnu_key"
[profiles.other]
PREFECT_API_URL = "https://other.example/api"
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a home without a controller, and of a user without a Prefect of his own."""
    for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    yield Settings(home=tmp_path, database_url=f"sqlite:///{tmp_path}/ledger.db", owner="tester")
    controller.down(Settings(home=tmp_path, database_url="", owner="tester"))


def test_many_ups_at_once_start_one_controller(desk: Desk) -> None:
    before, found = desk.controller(), []
    threads = [threading.Thread(target=lambda: found.append(controller.up(desk.settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [before] * 4


def test_two_first_ups_start_one_controller_and_down_leaves_no_process(bare: Settings) -> None:
    found: list[Controller] = []
    threads = [threading.Thread(target=lambda: found.append(controller.up(bare))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert prefect_api.api_url(bare) == found[0].url
    assert controller.down(bare) is True
    assert (process.started(found[0].server_pid), process.started(found[0].worker_pid)) == ("", "")
    assert controller_record.status(bare) is None
    assert controller.down(bare) is False


def test_record_and_outputs_are_for_our_eyes_alone_and_hold_no_token(desk: Desk) -> None:
    home = desk.settings.home
    for path in [home / "controller.json", *(home / "controller").iterdir(), home / "prefect" / "prefect.db"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert b"fake-token" not in path.read_bytes()
    assert stat.S_IMODE((home / "controller").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "prefect").stat().st_mode) == 0o700


def test_tokens_stand_in_no_argv_and_not_in_the_servers_environment(desk: Desk) -> None:
    found = desk.controller()
    for pid in (found.server_pid, found.worker_pid):
        assert b"fake-token" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"fake-token" not in Path(f"/proc/{found.server_pid}/environ").read_bytes()
    assert b"fake-token" in Path(f"/proc/{found.worker_pid}/environ").read_bytes()


def test_other_sites_in_a_browser_may_not_talk_to_the_server(desk: Desk) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    reply = requests.options(f"{desk.api}/flow_runs/filter", headers=headers, timeout=60)
    assert "access-control-allow-origin" not in reply.headers


def test_server_shows_its_pages(desk: Desk) -> None:
    reply = requests.get(desk.api.removesuffix("/api"), timeout=60)
    assert (reply.status_code, "<html" in reply.text.lower()) == (200, True)


def test_home_is_served_by_one_host(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(Busy, match="is served by another process"):
        worker.serve(desk.settings)


def test_host_that_dies_at_once_is_told_with_the_place_of_its_output(
    bare: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("AUTODL_API_URL", "not a url")
    (bare.home / "ledger.db").write_text("this is no database")
    with pytest.raises(GpujobsError, match=r"worker ended at once.*controller/worker\.log"):
        controller.up(bare)


def test_record_of_a_process_that_is_gone_counts_as_none(bare: Settings) -> None:
    record = '{"url": "http://127.0.0.1:9/api", "server_pid": 1, "server_started": "x", "worker_pid": 1'
    (bare.home / "controller.json").write_text(record + ', "worker_started": "x"}')
    assert prefect_api.api_url(bare) is None
    assert controller.down(bare) is False


def test_broken_record_is_an_error_that_names_it(bare: Settings) -> None:
    (bare.home / "controller.json").write_text("{")
    with pytest.raises(GpujobsError, match=r"controller\.json is not readable"):
        controller_record.status(bare)
    (bare.home / "controller.json").unlink()


def test_api_is_the_environments_then_the_profiles(bare: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prefect_api.api_url(bare) is None
    (bare.home / "prefect").mkdir()
    (bare.home / "prefect" / "profiles.toml").write_text(PROFILES)
    assert dict(login()) == {"PREFECT_API_URL": "https://prefect.example/api", "PREFECT_API_KEY": "pnu_key"}
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert prefect_api.api_url(bare) == "https://other.example/api"
    monkeypatch.setenv("PREFECT_PROFILE", "ephemeral")
    assert prefect_api.api_url(bare) is None
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    assert prefect_api.api_url(bare) == "http://127.0.0.1:4200/api"


def test_up_with_a_server_of_the_users_own_starts_only_a_host(
    desk: Desk, bare: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", desk.api)
    found = controller.up(bare)
    assert (found.url, found.server_pid, found.worker_alive) == (desk.api, 0, True)
    assert controller.down(bare) is True
    assert not found.worker_alive
    assert requests.get(f"{desk.api}/health", timeout=60).ok


def test_our_server_rests_between_two_flushes(desk: Desk) -> None:
    settings = requests.get(f"{desk.api}/admin/settings", timeout=60).json()
    assert (
        int(settings["server"]["services"]["task_run_recorder"]["flush_interval"]) >= 1
    )  # it cuts off parts of a second
