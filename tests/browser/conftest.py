"""A real headless Chromium, looking at a fake cloud."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from fake_server.server import FakeServer
from tests.fake_server.wires import Wires

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",  # no other host can be reached
)


# One for each test: while Playwright lives, its event loop counts as running, and no other test's could start.
@pytest.fixture
def browser() -> Iterator[Browser]:
    """Debian's Chromium; the tests are skipped, loudly, where there is none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("NO CHROMIUM HERE: the page was not tested in a browser; install it with `make machine`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=list(FLAGS))
        yield browser
        browser.close()  # kills it after 30 s; to close a page or a window waits for ever for a renderer that has died


@pytest.fixture
def cloud() -> Iterator[Wires]:
    """A fake with real machines whose clock runs."""
    with FakeServer(seed=7) as fake:
        wires = Wires(fake)
        with wires.session:
            yield wires


@pytest.fixture
def window(browser: Browser) -> Iterator[BrowserContext]:
    """A fresh profile; whatever is asked of another host, and whatever a script complains of, fails the test."""
    window = browser.new_context(viewport={"width": 1280, "height": 900})
    window.set_default_timeout(20_000)
    strangers: list[str] = []
    window.on("request", lambda asked: None if _is_ours(asked.url) else strangers.append(asked.url))
    window.on("weberror", lambda error: strangers.append(str(error.error)))
    window.on("console", lambda said: strangers.append(said.text) if _complains(said) else None)
    yield window
    assert strangers == []


@pytest.fixture
def page(window: BrowserContext, cloud: Wires) -> Page:
    page = window.new_page()
    page.goto(cloud.fake.url)
    return page


@pytest.fixture
def docs() -> Path:
    return Path(__file__).parent.parent.parent / "docs"


def _complains(said: ConsoleMessage) -> bool:
    """A fake that has ended is no script's error."""
    return said.type == "error" and "net::ERR_CONNECTION" not in said.text


def _is_ours(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "http://localhost:", "data:", "about:"))
