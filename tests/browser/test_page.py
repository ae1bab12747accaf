"""The page at /, used in a real browser as a person would."""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from fake_server.server import FakeServer
from tests.fake_server.doubles import QuietContainers
from tests.fake_server.wires import INSTANCES, Wires, eventually, job

PHONE = {"width": 390, "height": 844}


def press(page: Page, label: str) -> None:
    page.get_by_role("button", name=label, exact=True).click()


def test_both_clouds_are_shown_with_states_money_events_and_calls(page: Page, cloud: Wires) -> None:
    expect(page.get_by_text("No machine is rented.")).to_be_visible()
    cloud.boxed(cloud.rent(displayName="gj-mia-7f3a-1"), "Running")
    cloud.running(cloud.deploy(job(name="gj-mia-91bc-1", cmd="sleep 600")))
    cloud.deploy(job(name="gj-mia-0c2d-1", dc_list=["neimengDC1"], gpu_name_set=["H800"]))
    machines = page.locator("table.machines").first.locator("tbody tr")
    expect(machines).to_have_count(2)  # nobody pressed reload: the page looks again by itself
    expect(machines.filter(has_text="gj-mia-7f3a-1")).to_contain_text("MatrixDC")
    expect(machines.filter(has_text="gj-mia-7f3a-1")).to_contain_text("Running")
    expect(machines.filter(has_text="gj-mia-91bc-1")).to_contain_text("westDC2")
    expect(page.locator(".figures")).to_contain_text("¥ 4.48")
    expect(page.get_by_text("Queued: gj-mia-0c2d-1 (Job, H800) has no container")).to_be_visible()
    expect(page.get_by_text("oss_merged").first).to_be_visible()
    expect(page.locator(".log").last).to_contain_text("matrixdc.create_instance")
    expect(page).to_have_title("Fake cloud: 2 machines")


def test_money_runs_with_the_clock(page: Page, cloud: Wires) -> None:
    cloud.boxed(cloud.rent(), "Running")
    press(page, "+1 h")
    expect(page.locator("td[data-label=Cost]")).to_contain_text("¥ 2.50")
    press(page, "Stand")
    expect(page.locator(".figures")).to_contain_text("standing")
    now = cloud.control("GET", "state")["now"]
    press(page, "+1 day")
    eventually(lambda: cloud.control("GET", "state")["now"] == pytest.approx(now + 86400))


def test_a_common_fault_is_armed_shown_played_and_removed(page: Page, cloud: Wires) -> None:
    press(page, "The next 3 calls: HTTP 500")
    expect(page.locator(".rules")).to_contain_text("error_500")
    assert cloud.session.get(f"{cloud.fake.matrixdc_url}/regions", timeout=60).status_code == 500
    expect(page.locator(".rules")).to_contain_text("1 of 3 done")
    expect(page.locator(".log").last).to_contain_text("500, fault: error_500")
    press(page, "Remove")
    expect(page.locator(".rules")).to_have_count(0)
    assert cloud.matrixdc("GET", "/regions")


def test_any_fault_can_be_armed_at_any_call(page: Page, cloud: Wires) -> None:
    page.get_by_text("Any other fault").click()
    page.get_by_label("What").select_option("broken_json")
    page.get_by_label("On which calls").select_option("autodl.gpu_stock")
    page.get_by_label("How often").fill("2")
    press(page, "Arm it")
    expect(page.locator(".rules")).to_contain_text("autodl.gpu_stock")
    rule = cloud.control("GET", "faults")["rules"][0]
    assert (rule["kind"], rule["endpoint"], rule["count"]) == ("broken_json", "autodl.gpu_stock", 2)


def test_a_machine_can_be_made_to_die_by_its_name(page: Page, cloud: Wires) -> None:
    cloud.boxed(cloud.rent(displayName="gj-mia-7f3a-1"), "Running")
    page.get_by_text("Any other fault").click()
    page.get_by_label("What").select_option("dies_mid_run")
    page.get_by_label("On which machine").fill("gj-mia-*")
    press(page, "Arm it")
    expect(page.locator("table.machines").first).to_contain_text("Failed")


def test_reset_ends_everything(page: Page, cloud: Wires) -> None:
    cloud.boxed(cloud.rent(), "Running")
    page.reload()
    press(page, "End every machine and forget everything")
    expect(page.get_by_text("No machine is rented.")).to_be_visible()
    assert cloud.boxes() == []


def test_names_are_text_whatever_they_hold(page: Page, cloud: Wires) -> None:
    cloud.rent(displayName="<img src=x onerror=alert(1)><script>alert(2)</script>")
    page.on("dialog", lambda dialog: pytest.fail(f"a name ran as a script: {dialog.message}"))
    expect(page.get_by_text("<img src=x onerror=alert(1)><script>alert(2)</script>").first).to_be_visible()
    assert page.locator("#live img, #live script").count() == 0


def test_without_javascript_it_works_too(browser: Browser, cloud: Wires) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(cloud.fake.url)
    expect(page.get_by_text("No machine is rented.")).to_be_visible()
    cloud.rent(displayName="gj-mia-7f3a-1")
    expect(page.get_by_text("gj-mia-7f3a-1").first).to_be_visible(timeout=20_000)  # the page's own refresh
    press(page, "Stand")
    expect(page.locator(".figures")).to_contain_text("standing")


def test_on_a_phone_nothing_is_cut_off(page: Page, cloud: Wires) -> None:
    cloud.running(cloud.deploy(job(name="a-name-of-more-than-forty-characters-in-all-1", cmd="sleep 600")))
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    page.reload()
    expect(page.get_by_text("a-name-of-more-than-forty-characters-in-all-1").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    small = "[...document.querySelectorAll('button')].filter(b => b.offsetParent && b.offsetHeight < 36).length"
    assert page.evaluate(small) == 0


def test_a_fake_that_has_ended_is_told(window: BrowserContext) -> None:
    with FakeServer(containers=QuietContainers) as fake:
        page = window.new_page()
        page.goto(fake.url)
    expect(page.locator("body")).to_have_class(re.compile("away"))


def test_with_a_control_token_of_its_own_it_asks_for_it(window: BrowserContext) -> None:
    with FakeServer(containers=QuietContainers, control_token="my own") as fake:
        page = window.new_page()
        page.goto(fake.url)
        expect(page.get_by_text("Machines")).to_have_count(0)
        page.get_by_label("Control token").fill("my own")
        press(page, "Look")
        expect(page.get_by_text("No machine is rented.")).to_be_visible()
        press(page, "Stand")
        expect(page.locator(".figures")).to_contain_text("standing")


def test_the_picture_in_the_documents(page: Page, cloud: Wires, docs: Path, tmp_path: Path) -> None:
    """Draws docs/fake-cloud.png anew where UPDATE_DOCS is set; else shows that it can be drawn."""
    first = cloud.rent(displayName="gj-mia-5e10-1")
    for name in ("gj-mia-7f3a-1", "gj-mia-7f3a-2"):
        cloud.boxed(cloud.rent(displayName=name), "Running")
    cloud.running(cloud.deploy(job(name="gj-mia-91bc-1", cmd="sleep 6000")))
    cloud.deploy(job(name="gj-mia-0c2d-1", dc_list=["neimengDC1"], gpu_name_set=["H800"]))
    cloud.advance(4000)
    cloud.boxed(first, "Running")
    cloud.matrixdc("DELETE", f"{INSTANCES}?name={first}")
    eventually(lambda: first not in cloud.boxes())
    cloud.autodl("PUT", "/deployment/operate", {"deployment_uuid": "833f1cd5a764fa3", "operate": "stop"})
    press(page, "AutoDL: the next create works, its reply is lost")
    expect(page.locator(".rules")).to_be_visible()
    picture = docs / "fake-cloud.png" if os.environ.get("UPDATE_DOCS") else tmp_path / "fake-cloud.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 20_000
    assert (docs / "fake-cloud.png").stat().st_size > 20_000
