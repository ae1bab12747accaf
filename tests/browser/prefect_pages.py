"""Prefect's pages as a researcher clicks through them, with generous deadlines and no pauses."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

DOCS = Path(__file__).parent.parent.parent / "docs"
SEEN_MS = 90_000  # a deadline for a busy machine
PICTURE_BYTES = 200_000
_DRAWN_BYTES = 9_000  # a graph with nothing in it is a third of that


@dataclass(frozen=True)
class Pages:
    """One tab of the browser, at a controller's pages."""

    page: Page
    url: str  # of the server
    pictures: Path  # where they go while the documents' own stay as they are

    def open(self, deployment: str) -> None:
        """Go to a deployment by the list of all."""
        self.page.goto(self.url)
        self.page.get_by_role("link", name="Deployments").click()
        self.page.get_by_role("link", name=deployment, exact=True).click()
        self.seen(self.button("Run"))

    def form(self) -> None:
        """Open the form of a deployment's run."""
        self.button("Run").click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        self.seen(self.button("Submit"))

    def submit(self) -> str:
        """Send the form, and go to the run that it made; give its flow run id."""
        self.sent(self.button("Submit").click, "/create_flow_run")
        self.button("View run").click()
        self.page.wait_for_url("**/flow-run/**")
        return self.flow_run_id()

    def follow(self, run: Locator) -> None:
        """Go to the page of a run that a list names; a list that is drawn anew just then may lose a click."""
        path = run.get_attribute("href")
        assert path
        self.page.goto(self.url + path)
        self.page.wait_for_url("**/flow-run/**")

    def flow_run_id(self) -> str:
        """Read the flow run's id from the address of its page."""
        found = re.search(r"/flow-run/([0-9a-f-]{36})", self.page.url)
        assert found, self.page.url
        return found[1]

    def choose(self, field: str, value: str) -> None:
        """Choose one of the values that a field of the form offers."""
        self.button(f"Select {field}").click()
        self.page.get_by_role("option", name=value, exact=True).click()
        self.page.keyboard.press("Escape")

    def menu(self, item: str, confirm: str) -> None:
        """Change a run by its menu, and say yes to the question."""

        def press() -> None:
            self.page.get_by_role("button", name="Open menu").first.click()
            self.page.get_by_role("menuitem", name=item).click()
            self.page.get_by_role("alertdialog").get_by_role("button", name=confirm, exact=True).click()

        self.sent(press, "/set_state")

    def sent(self, press: Callable[[], object], path: str) -> None:
        """Press until the server has taken it."""
        status = self.answer(press, path)
        assert status < 300, f"{path} is answered with {status}"

    def answer(self, press: Callable[[], object], path: str) -> int:
        """Press, and press again while the server is too busy (503: writers met in SQLite); give its answer."""
        deadline = time.monotonic() + SEEN_MS / 1000
        while True:
            with self.page.expect_response(
                lambda reply: path in reply.url and reply.request.method != "GET", timeout=SEEN_MS
            ) as found:
                press()
            if found.value.status != 503 or time.monotonic() > deadline:
                return found.value.status

    def newest_logs(self) -> Locator:
        """Open the run's log with its end on top: the page holds only those of its lines that are in sight."""
        logs = self.tab("Logs")
        logs.get_by_role("combobox", name="log sort order").click()
        self.page.get_by_role("option", name="Newest to oldest").click()
        return logs

    def tab(self, name: str) -> Locator:
        """Open a tab of the page; give what it shows."""
        self.page.get_by_role("tab", name=name, exact=True).click()
        return self.page.get_by_role("tabpanel", name=name, exact=True)

    def button(self, name: str) -> Locator:
        """Find a button by its whole label."""
        return self.page.get_by_role("button", name=name, exact=True)

    def field(self, title: str) -> Locator:
        """Find a text field of the form by its title."""
        return self.page.get_by_role("textbox", name=re.compile(rf"^{re.escape(title)}( \(Optional\))?$"))

    def ended(self, state: str) -> None:
        """Wait for the run's last state in the head of its page, then look at the page anew.

        The page asks for more lines each 5 s and no more after the end: of a brief run it may show none before that.
        """
        self.seen(self.page.get_by_text(state, exact=True).first)
        self.page.reload()
        self.seen(self.page.get_by_text(state, exact=True).first)

    def says(self, text: str) -> None:
        """Wait until the page says so."""
        self.seen(self.page.get_by_text(text).first)

    def seen(self, what: Locator) -> None:
        """Wait until it is to be seen."""
        expect(what).to_be_visible(timeout=SEEN_MS)

    def picture(self, name: str) -> None:
        """Draw docs/`name`.png anew where UPDATE_DOCS is set; else show that it can be drawn."""
        folder = DOCS if os.environ.get("UPDATE_DOCS") else self.pictures
        path = folder / f"{name}.png"
        self.page.screenshot(path=path, animations="disabled")
        assert 20_000 < path.stat().st_size < PICTURE_BYTES
        assert 20_000 < (DOCS / path.name).stat().st_size < PICTURE_BYTES

    def graph(self) -> None:
        """Wait until the run's graph is drawn; it is a canvas, in which nothing can be looked for."""
        canvas = self.page.locator("canvas").first
        deadline = time.monotonic() + SEEN_MS / 1000
        while len(canvas.screenshot()) < _DRAWN_BYTES:
            assert time.monotonic() < deadline, "the graph stays empty"
