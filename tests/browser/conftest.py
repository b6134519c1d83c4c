"""Fixtures for what is tested in a real Chromium: `page`, and `open_page` where a test needs several.

Chromium is started once for all tests of a run; each test has a context of its own in it, so cookies and storage of
others are out of its sight. An uncaught error of a page, and what it writes to the console as an error, fails the test
at its end unless the test has said `console.forgive("…")`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from playwright.async_api import BrowserContext, ConsoleMessage, Error, Page, async_playwright, expect

from tests.browser.chromium import running_chromium

expect.set_options(timeout=20_000)  # milliseconds: as long as `eventually`, twice over, for a loaded machine


class Console:
    """What the pages of a test have complained about."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self._forgiven: list[str] = []

    def forgive(self, text: str) -> None:
        """Expect complaints with this text in them, as those of a connection that a test cuts."""
        self._forgiven.append(text)

    @property
    def unforgiven(self) -> list[str]:
        return [each for each in self.complaints if not any(text in each for text in self._forgiven)]

    def watch(self, page: Page) -> None:
        page.on("console", self._note)
        page.on("pageerror", self._note_error)

    def _note(self, message: ConsoleMessage) -> None:
        source = message.location["url"]
        if message.type in {"error", "assert"} and not source.endswith("/favicon.ico"):  # Chromium asks by itself
            self.complaints.append(f"{message.text} ({source})")

    def _note_error(self, error: Error) -> None:
        self.complaints.append(f"uncaught {error.stack or error.message}")


OpenPage = Callable[..., Awaitable[Page]]
"""Opens a page of the test's browser: `await open_page(url)`, or without a URL an empty one."""


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the Chromium of this run is driven from."""
    with running_chromium(tmp_path_factory.mktemp("chromium")) as endpoint:
        yield endpoint


@pytest.fixture
def console() -> Iterator[Console]:
    """What the test's pages have complained about; it is an error if that is anything."""
    console = Console()
    yield console
    assert not console.unforgiven, "the page complained:\n" + "\n".join(console.unforgiven)


@pytest.fixture
async def browser(chromium: str, console: Console) -> AsyncIterator[BrowserContext]:
    """A context of the browser for this test alone."""
    async with async_playwright() as playwright:
        connected = await playwright.chromium.connect_over_cdp(chromium)
        context = await connected.new_context()
        context.set_default_timeout(20_000)
        context.on("page", console.watch)
        yield context
        await context.close()
        await connected.close()


@pytest.fixture
def open_page(browser: BrowserContext) -> OpenPage:
    """Open pages that belong together, as tabs do."""

    async def open_page(url: str = "", **options: Any) -> Page:
        page = await browser.new_page()
        if url:
            await page.goto(url, **options)
        return page

    return open_page


@pytest.fixture
async def page(open_page: OpenPage) -> Page:
    """An empty page."""
    return await open_page()
