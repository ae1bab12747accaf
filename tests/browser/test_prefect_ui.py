"""The Prefect UI in a real browser, as a researcher uses it; the fake cloud's ledger says what was rented for it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from fake_server.server import FakeServer
from gpujobs.prefect_api import run_id_of
from tests.browser.prefect_pages import SEEN_MS, Pages
from tests.cloud import STARTS, Control
from tests.prefect.desk import until

pytestmark = [pytest.mark.xdist_group("prefect-ui"), pytest.mark.timeout(600)]

RECIPES = Path(__file__).parent.parent.parent / "recipes"
PHASES = ("plan", "provision", "boot", "push", "run", "pull", "release")
PATIENCE = """\
name: patience
resources: {accelerators: RTX 4090, infra: autodl}
workdir: digits
envs: {EPOCHS: 10}
run: |
  test "${GPUJOBS_MACHINE##*-}" -gt 1 || EPOCHS=100000  # the first attempt would take all day
  python3 train.py
outputs: {metrics: results/metrics.json}
max_duration: 30m
"""


@dataclass(frozen=True)
class Home:
    """A home of its own, with a controller and three deployed recipes, on a fake cloud."""

    folder: Path
    environment: Mapping[str, str]
    truth: Control
    url: str = ""

    def gpujobs(self, *words: str) -> Any:
        """Run one command; give its JSON."""
        command = [sys.executable, "-m", "gpujobs", *words, "--json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=180)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def metrics(self, flow_run_id: str) -> Mapping[str, Any]:
        """Read the results that the run has brought home."""
        found: Mapping[str, Any] = json.loads(
            (self.folder / "runs" / run_id_of(flow_run_id) / "outputs" / "metrics").read_text()
        )
        return found

    def starts(self, flow_run_id: str) -> list[int]:
        """Say how often the command was started on each machine of the run, in their order; all must be gone."""
        prefix = f"-{run_id_of(flow_run_id)}-"
        until(lambda: not any(prefix in name for name in self.truth.alive()), within_s=60)
        machines = [one for one in self.truth.machines() if prefix in one["name"]]
        return [sum(_is_start(command) for command in one["commands"]) for one in machines]


def _is_start(command: Mapping[str, Any]) -> bool:
    return bool(command["command"].endswith(STARTS) and command["exit_code"] == 0)


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with FakeServer(seed=1) as cloud, tempfile.TemporaryDirectory(prefix="gpujobs-") as folder:
        made = Home(Path(folder, "home"), _environment(Path(folder), cloud), Control(cloud))
        try:
            yield _deployed(made, Path(folder))
        finally:
            made.gpujobs("down")


def _environment(folder: Path, cloud: FakeServer) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "GPUJOBS_"))}
    return {
        **kept,
        **cloud.env(),
        "GPUJOBS_HOME": str(folder / "home"),
        "GPUJOBS_OWNER": "mia",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "PREFECT_HOME": str(folder / "no-prefect"),
    }


def _deployed(home: Home, folder: Path) -> Home:
    """Start the controller and deploy the recipes, as a team does on its first day."""
    shutil.copytree(RECIPES / "digits", folder / "digits")
    for name, text in (("digits", (RECIPES / "quickstart.yaml").read_text()), ("patience", PATIENCE)):
        (folder / f"{name}.yaml").write_text(text)
    url = home.gpujobs("up", "--wait", "180")["url"].removesuffix("/api")
    home.gpujobs("deploy", str(folder / "digits.yaml"))
    home.gpujobs("deploy", str(folder / "digits.yaml"), "--name", "nightly", "--set", "envs.EPOCHS=10")
    home.gpujobs("deploy", str(folder / "patience.yaml"))
    return Home(home.folder, home.environment, home.truth, url)


@pytest.fixture
def pages(browser: Browser, home: Home, tmp_path: Path) -> Iterator[Pages]:
    """A fresh profile; whatever is asked of another host fails the test."""
    window = browser.new_context(viewport={"width": 1280, "height": 800}, timezone_id="Asia/Shanghai")
    window.set_default_timeout(SEEN_MS)
    window.set_default_navigation_timeout(SEEN_MS)
    asked: list[str] = []
    window.on("request", lambda request: asked.append(request.url))
    yield Pages(window.new_page(), home.url, tmp_path)
    assert [url for url in asked if not url.startswith((home.url, "data:", "blob:"))] == []
    assert asked


def test_run_from_the_form_goes_through_its_phases_and_tells_what_it_cost(pages: Pages, home: Home) -> None:
    pages.open("digits")
    pages.tab("Description")
    pages.says("Cost of a run")
    pages.picture("prefect-deployment")
    pages.form()
    pages.field("EPOCHS").fill("15")
    pages.field("LR").fill("0.05")
    pages.picture("prefect-form")
    pages.choose("Clouds and regions", "matrixdc")
    flow_run_id = pages.submit()
    pages.ended("Completed")
    pages.seen(pages.newest_logs().get_by_text("epoch").first)
    tasks = pages.tab("Task Runs")
    for phase in PHASES:
        pages.seen(tasks.get_by_text(phase, exact=True))
    pages.graph()
    pages.picture("prefect-run")
    assert home.starts(flow_run_id) == [1]
    assert (home.metrics(flow_run_id)["learning_rate"], home.metrics(flow_run_id)["epochs"]) == (0.05, 15)
    pages.tab("Artifacts").get_by_text("digits-summary").click()
    pages.page.locator("a[href*='/artifacts/artifact/']").first.click()
    pages.says("digits: succeeded")
    pages.says("matrixdc/host-cluster")
    pages.picture("prefect-summary")


def test_value_that_cannot_be_is_refused_before_there_is_a_run(pages: Pages, home: Home) -> None:
    before = len(home.truth.machines())
    pages.open("digits")
    pages.form()
    pages.field("Longest duration").fill("six hours")
    assert pages.answer(pages.button("Submit").click, "/create_flow_run") == 409
    pages.says("'six hours' does not match")
    assert len(home.truth.machines()) == before


def test_run_is_cancelled_while_it_trains_and_retried_on_a_new_machine(pages: Pages, home: Home) -> None:
    pages.open("patience")
    pages.form()
    flow_run_id = pages.submit()
    pages.seen(pages.newest_logs().get_by_text("epoch").first)
    pages.page.reload()
    pages.graph()
    pages.picture("prefect-training")
    pages.menu("Cancel", "Cancel Flow Run")
    pages.ended("Cancelled")
    assert home.starts(flow_run_id) == [1]
    pages.graph()
    pages.picture("prefect-cancelled")
    pages.menu("Retry", "Retry")
    pages.ended("Completed")
    pages.seen(pages.tab("Task Runs").get_by_text("run-2", exact=True))
    pages.graph()
    pages.picture("prefect-retried")
    assert home.starts(flow_run_id) == [1, 1]
    assert home.metrics(flow_run_id)["epochs"] == 10


def test_schedule_that_is_set_in_the_ui_runs_when_it_is_due(pages: Pages, home: Home) -> None:
    pages.open("nightly")
    pages.sent(lambda: _schedule(pages, shown="0 2 * * *", cron="* * * * *"), "/schedules")
    runs = pages.tab("Runs").get_by_role("link", name="digits-")
    expect(runs.last).to_be_visible(timeout=300_000)  # the first one; under load the scheduler misses a minute
    pages.sent(pages.page.get_by_role("switch", name="toggle Every minute").click, "/schedules")
    pages.follow(runs.last)
    pages.ended("Completed")
    pages.seen(pages.page.get_by_text("auto-scheduled"))
    assert home.starts(pages.flow_run_id()) == [1]
    pages.open("nightly")
    pages.seen(pages.tab("Runs").get_by_text("Completed").last)
    pages.picture("prefect-scheduled")


def _schedule(pages: Pages, *, shown: str, cron: str) -> None:
    """Fill the dialog for a picture; then for a night that comes each minute, and save that."""
    pages.button("Schedule").click()
    dialog = pages.page.get_by_role("dialog")
    dialog.get_by_role("tab", name="Cron").click()
    dialog.get_by_role("textbox", name="Value").first.fill(shown)
    dialog.get_by_role("button", name="Select timezone").click()
    pages.page.get_by_role("combobox", expanded=True).fill("Shanghai")
    pages.page.get_by_role("option", name="Asia / Shanghai").click()
    pages.seen(dialog.get_by_text("At 02:00 AM"))
    pages.picture("prefect-schedule")
    dialog.get_by_role("textbox", name="Value").first.fill(cron)
    dialog.get_by_role("button", name="Save").click()
