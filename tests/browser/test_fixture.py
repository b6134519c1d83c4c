"""The fixtures themselves: a page of a real server, and complaints that are not missed."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import Page

from eventbus_fastapi.app import create_app
from eventbus_fastapi.settings import Settings
from tests.browser.conftest import Console, OpenPage
from tests.serving import serving
from tests.tables import log_at
from tests.waiting import eventually


async def test_a_page_of_a_served_bus_is_shown(page: Page, tmp_path: Path) -> None:
    app = create_app(Settings(database_url=log_at(tmp_path / "bus.db")))
    async with serving(app) as served:
        await page.goto(served.http + "/healthz")
        assert "ok" in await page.inner_text("body")


async def test_two_pages_share_what_is_stored_and_no_other_test_sees_it(open_page: OpenPage, tmp_path: Path) -> None:
    app = create_app(Settings(database_url=log_at(tmp_path / "bus.db")))
    async with serving(app) as served:
        first, second = [await open_page(served.http + "/healthz") for _ in range(2)]
        assert await first.evaluate("localStorage.length") == 0
        await first.evaluate("localStorage.setItem('n', '1')")
        assert await second.evaluate("localStorage.getItem('n')") == "1"


async def test_errors_of_a_page_are_noted_and_may_be_forgiven(page: Page, console: Console) -> None:
    console.forgive("said on purpose")
    await page.evaluate("console.error('said on purpose'); setTimeout(() => { throw new Error('not caught') }); 0")
    await eventually(lambda: len(console.complaints) == 2)
    assert len(console.unforgiven) == 1
    assert "not caught" in console.unforgiven[0]
    console.forgive("not caught")
