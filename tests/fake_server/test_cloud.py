"""FakeCloud as other projects use it: with, as a decorator, as a fixture, and with nothing else of ours."""

import asyncio
import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import requests

from fake_server import FakeCloud
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import OwnThreads, instance

BEARER = {"Authorization": "bearer fake-token", "namespace": "fake-user"}


def rent(cloud: FakeCloud) -> str:
    url = f"{cloud.matrixdc_url}/clusters/host-cluster/instances"
    return str(requests.post(url, json=instance(), headers=BEARER, timeout=60).json()["name"])


def test_it_begins_on_entering_and_leaves_nothing_behind(own_threads: OwnThreads) -> None:
    before = dict(os.environ)
    with FakeCloud() as cloud:
        assert requests.get(f"{cloud.matrixdc_url}/regions", headers=BEARER, timeout=60).ok
        assert dict(os.environ) == before
        folder = cloud.server.world.ground.folder
    assert (own_threads(), folder.exists()) == ([], False)
    with pytest.raises(requests.ConnectionError):
        requests.get(cloud.url, timeout=60)


def test_it_can_set_the_clients_environment_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTODL_TOKEN", "the real one")
    monkeypatch.delenv("MATRIXDC_API_URL", raising=False)
    with FakeCloud(environment=True, token="t-9") as cloud:
        assert (os.environ["AUTODL_TOKEN"], os.environ["MATRIXDC_API_URL"]) == ("t-9", cloud.matrixdc_url)
    assert os.environ["AUTODL_TOKEN"] == "the real one"
    assert "MATRIXDC_API_URL" not in os.environ


def test_the_environment_is_given_back_when_the_test_fails(
    monkeypatch: pytest.MonkeyPatch, own_threads: OwnThreads
) -> None:
    monkeypatch.delenv("AUTODL_API_URL", raising=False)
    with pytest.raises(ZeroDivisionError), FakeCloud(environment=True):
        _ = 1 / 0
    assert "AUTODL_API_URL" not in os.environ
    assert own_threads() == []


def test_a_decorated_function_has_a_fresh_cloud_each_time(own_threads: OwnThreads) -> None:
    @FakeCloud(containers=QuietContainers, speed=0)
    def count(cloud: FakeCloud, *, rented: int) -> int:
        for _ in range(rented):
            rent(cloud)
        assert os.environ["MATRIXDC_API_URL"] == cloud.matrixdc_url
        return len(cloud.ledger()["machines"])

    assert (count(rented=2), count(rented=1)) == (2, 1)
    assert count.__name__ == "count"
    assert list(inspect.signature(count).parameters) == ["rented"]
    assert own_threads() == []


def test_a_decorated_function_need_not_take_the_cloud() -> None:
    @FakeCloud(containers=QuietContainers)
    def ask() -> bool:
        return requests.get(f"{os.environ['MATRIXDC_API_URL']}/regions", headers=BEARER, timeout=60).ok

    assert ask()


def test_an_async_function_can_be_decorated() -> None:
    @FakeCloud(containers=QuietContainers)
    async def ask(cloud: FakeCloud) -> bool:
        await asyncio.sleep(0)
        return cloud.url in os.environ["AUTODL_API_URL"]

    assert inspect.iscoroutinefunction(ask)
    assert asyncio.run(ask())


def test_two_clouds_of_one_process_are_strangers() -> None:
    with FakeCloud(containers=QuietContainers) as one, FakeCloud(containers=QuietContainers) as other:
        rent(one)
        one.fault("error_500", "autodl.*")
        assert (len(one.ledger()["machines"]), other.ledger()["machines"]) == (1, [])
        one.reset()
        assert other.state()["machines"] == []


def test_the_clock_the_faults_the_stock_and_reset_are_in_hand() -> None:
    with FakeCloud(containers=QuietContainers, speed=0) as cloud:
        began = cloud.state()["now"]
        rent(cloud)
        assert cloud.advance(60) == began + 60
        cloud.set_speed(3)
        assert cloud.state()["speed"] == 3
        armed = cloud.fault("rate_limit_429", "matrixdc.list_regions", retry_after=7)
        reply = requests.get(f"{cloud.matrixdc_url}/regions", headers=BEARER, timeout=60)
        assert (reply.status_code, reply.headers["Retry-After"]) == (429, "7")
        cloud.clear_faults(armed)
        cloud.stock("RTX 4090", 0, region="westDC2")
        assert cloud.state()["stock"]["autodl"]["westDC2"]["RTX 4090"] == 0
        assert [(call["endpoint"], call["fault"]) for call in cloud.calls()] == [
            ("matrixdc.create_instance", ""),
            ("matrixdc.list_regions", "rate_limit_429"),
        ]
        cloud.reset()
        assert (cloud.ledger()["machines"], cloud.calls()) == ([], [])


def test_orders_that_make_no_sense_are_refused_in_words() -> None:
    with FakeCloud(containers=QuietContainers) as cloud:
        with pytest.raises(ValueError, match="no endpoint is named"):
            cloud.fault("error_500", "aws.run_instances")
        with pytest.raises(ValueError, match="kind"):
            cloud.fault("earthquake")
        with pytest.raises(ValueError, match="forward"):
            cloud.advance(-1)
        with pytest.raises(ValueError, match="0 or more"):
            cloud.set_speed(-1)


def test_the_package_is_cheap_to_import_and_has_nothing_else() -> None:
    code = "import sys, fake_server; print([m for m in ('flask', 'pydantic', 'asyncssh') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(ImportError):
        exec("from fake_server import Sky")


def test_the_fixture_works_in_another_projects_tests_with_nothing_else_of_ours(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers -p no:cacheprovider\nfilterwarnings = error\n"
    )
    (tmp_path / "test_theirs.py").write_text(
        textwrap.dedent("""
            import os, sys
            import pytest, requests
            from fake_server import FakeCloud

            HEADERS = {"Authorization": "bearer fake-token", "namespace": "fake-user"}

            @pytest.mark.fake_gpu_cloud(speed=0, namespace="fake-user", seed=3)
            def test_fixture(fake_gpu_cloud):
                assert os.environ["AUTODL_API_URL"] == fake_gpu_cloud.autodl_url
                began = fake_gpu_cloud.state()["now"]
                assert fake_gpu_cloud.advance(5) == began + 5
                assert requests.get(fake_gpu_cloud.matrixdc_url + "/regions", headers=HEADERS, timeout=60).ok

            def test_without_options(fake_gpu_cloud):
                assert fake_gpu_cloud.state()["speed"] == 1

            @FakeCloud(speed=0)
            def test_decorated(cloud, tmp_path):
                assert cloud.state()["speed"] == 0 and tmp_path.is_dir()

            def test_nothing_else_is_loaded():
                ours = ("gpujobs", "prefect", "sqlalchemy", "paramiko")
                assert [name for name in sys.modules if name.split(".")[0] in ours] == []
        """)
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
