"""The deploy folder hangs together: what the compose file and the settings name, is there. No test runs Docker."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import Settings
from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings
from prefect_redis.client import RedisMessagingSettings
from ruamel.yaml import YAML

DEPLOY = Path(__file__).parent.parent / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = YAML(typ="safe").load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KEYS = {  # of a service, in the compose specification; those that we use
    "build", "command", "depends_on", "environment", "healthcheck", "hostname", "image", "networks", "ports", "restart",
    "stop_grace_period", "volumes",
}  # fmt: skip
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


def read_env(name: str) -> dict[str, str]:
    lines = [line.partition(" #")[0] for line in (DEPLOY / name).read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_compose_file_has_the_parts_that_the_page_promises() -> None:
    assert set(COMPOSE) - {"name", "services", "volumes"} == {"x-part", "x-server", "x-api", "x-host"}
    assert set(SERVICES) == {
        "postgres", "redis", "database", "api-1", "api-2", "services", "host-1", "host-2", "host-3",
    }  # fmt: skip


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_names_only_what_is_there(name: str) -> None:
    service = SERVICES[name]
    assert set(service) <= KEYS
    for other, how in service.get("depends_on", {}).items():
        assert how["condition"] in CONDITIONS
        assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert source in COMPOSE["volumes"] or (DEPLOY / source).is_file()
    if service["image"] == "gpujobs":
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["command"][0] in {"database", "api", "services", "host"}


def test_every_variable_that_the_compose_file_wants_is_in_the_example() -> None:
    assert set(re.findall(r"\$\{(\w+)", TEXT)) == set(read_env("example.env"))


def test_every_setting_is_one_that_this_prefect_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in read_env("settings.env").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_SERVER_DOCKET_URL", "redis://there:6379/0")
    monkeypatch.setenv("PREFECT_REDIS_MESSAGING_URL", "redis://there:6379/0")
    monkeypatch.setenv("PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL", "redis://there:6379/0")
    server = Settings().server
    assert (server.events.messaging_broker, server.events.messaging_cache) == ("prefect_redis.messaging",) * 2
    assert server.events.causal_ordering == "prefect_redis.ordering"
    assert server.concurrency.lease_storage == "prefect_redis.lease_storage"
    assert server.worker_channel.cleanup_queue_storage == "prefect_redis.cleanup_queue"
    assert (server.database.migrate_on_start, server.register_blocks_on_start) == (False, False)
    assert (server.analytics_enabled, server.docket.url) == (False, "redis://there:6379/0")
    assert RedisMessagingSettings().url == RedisWorkerCleanupQueueSettings().url == "redis://there:6379/0"


@pytest.mark.parametrize(("role", "wanted"), [("api", "PREFECT_SERVER_DATABASE"), ("host", "PREFECT_API_URL")])
def test_the_script_says_which_variable_is_missing(role: str, wanted: str) -> None:
    done = subprocess.run(
        ["sh", DEPLOY / "start.sh", role], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert wanted in done.stderr


def test_the_script_shows_its_parts_to_who_names_none() -> None:
    done = subprocess.run(["sh", DEPLOY / "start.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert [line.split()[0] for line in done.stderr.splitlines()[1:5]] == ["database", "api", "services", "host"]
