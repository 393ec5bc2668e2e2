"""Debian's chromium, driven by Playwright. Each tab records the errors and requests of its page."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# Loading a page with plotly takes 4 s on an idle core, and much longer on a busy machine.
TIMEOUT_SECONDS = 240


@dataclass
class Tab:
    """A page, its errors (uncaught and on the console), and the addresses that it requested."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


OpenTab = Callable[..., Tab]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The browser. Skips the test if there is none."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    reason = "playwright is not installed: pip install 'fastdraft[dev]'"
    driver = pytest.importorskip("playwright.sync_api", reason=reason)
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=TIMEOUT_SECONDS * 1000)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def open_tab(browser: Any) -> Iterator[OpenTab]:
    """A function that opens tabs of any size, light or dark."""
    contexts = []

    def run(width: int = 1280, height: int = 900, scheme: str = "light") -> Tab:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        tab = Tab(context.new_page())
        tab.page.set_default_timeout(TIMEOUT_SECONDS * 1000)
        tab.page.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
        tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        return tab

    yield run
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_tab: OpenTab) -> Any:
    """A page with the width of a desktop screen."""
    return open_tab().page
