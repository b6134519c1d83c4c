"""The dashboard in a real browser: pages that keep current, forms, the keyboard, and what strangers wrote."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI
from playwright.async_api import BrowserContext, Locator, Page, expect
from starlette.requests import HTTPConnection

from eventbus_fastapi import EventBus
from eventbus_fastapi.auth import Principal, bearer_token
from eventbus_fastapi.dashboard import sampler
from tests.browser.conftest import Console, OpenPage
from tests.browser.rendering import fill, places, render
from tests.browser.screenshots import IMAGES, take_all
from tests.browser.seeded import add_group, fill_log, show_off
from tests.serving import serving
from tests.tables import log_at
from tests.waiting import eventually


class Shown(NamedTuple):
    """A bus that serves its dashboard."""

    bus: EventBus
    url: str


@contextlib.asynccontextmanager
async def showing(bus: EventBus) -> AsyncIterator[Shown]:
    app = FastAPI()
    app.include_router(bus.router())
    async with serving(app) as served:
        yield Shown(bus, f"{served.http}/dashboard")


@pytest.fixture
async def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shown]:
    monkeypatch.setattr(sampler, "INTERVAL", 0.1)
    async with showing(EventBus(log_at(tmp_path / "bus.db"))) as shown:
        yield shown


async def open_live(page: Page, url: str) -> None:
    """Open a page and wait until it is kept current."""
    await page.goto(url)
    await page.wait_for_selector("#state[data-state=live]")


async def test_every_page_is_shown_of_a_bus_with_much_in_it(browser: BrowserContext, shown: Shown) -> None:
    """The same pages, and more of everything: python -m tests.browser.rendering."""
    await fill(shown.bus, events=3_000, groups=20, dead=120)

    rendered = await render(browser, shown.url, await places(shown.bus, 3_000), rounds=1)

    rows = {each.name: each.rows for each in rendered}
    assert (rows["log"], rows["log, its middle"], rows["log, a topic that is rare"]) == (50, 50, 0)
    assert (rows["groups"], rows["dead letters"], rows["topics"], rows["archive"]) == (20, 50, 7, 50)
    assert all(each.painted > 0 and each.bytes > 500 for each in rendered)


async def test_the_overview_keeps_current(page: Page, shown: Shown) -> None:
    await open_live(page, shown.url)
    await fill_log(shown.bus, 40)
    await add_group(shown.bus, "mail", ["#"], after=0, dead=3, again=2)

    await expect(page.locator("[data-figure=dead]")).to_have_text("3")
    await expect(page.locator("[data-figure=lag]")).to_have_text("30")
    await expect(page.get_by_role("link", name="mail").first).to_be_visible()
    line = page.locator("svg.plot.dead path.line")
    await eventually(lambda: _has_line(line))


async def _has_line(line: Locator) -> bool:
    return bool(await line.get_attribute("d"))


async def test_the_log_follows_when_it_is_told_to(page: Page, shown: Shown) -> None:
    await shown.bus.publish("first.event", 1)
    await open_live(page, f"{shown.url}/log")
    await page.get_by_label("Follow").check()
    await shown.bus.publish("second.event", 2)
    await expect(page.get_by_role("link", name="second.event")).to_be_visible()

    await page.get_by_label("Follow").uncheck()
    head = page.locator("#log tbody tr")
    await expect(head).to_have_count(2)
    await page.reload()
    assert not await page.get_by_label("Follow").is_checked()


async def test_what_somebody_is_at_is_left_alone(page: Page, shown: Shown) -> None:
    """Given a link that has the focus, when the page is brought up to date, then its list waits until it has not."""
    await fill_log(shown.bus, 20)
    await add_group(shown.bus, "mail", ["#"], after=0)
    await open_live(page, shown.url)
    await page.get_by_role("link", name="mail").focus()
    await add_group(shown.bus, "other", ["#"], after=0)
    await shown.bus.publish("a", 1)

    await expect(page.locator("#tiles")).to_contain_text("seq 21")
    assert await page.evaluate("document.activeElement.textContent") == "mail"
    await expect(page.get_by_role("link", name="other")).to_have_count(0)
    await page.evaluate("document.activeElement.blur()")
    await expect(page.get_by_role("link", name="other")).to_be_visible()


async def test_a_page_comes_back_when_its_server_does(
    page: Page, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.1)
    console.forgive("Failed to load resource")
    console.forgive("ERR_")
    app = FastAPI()
    app.include_router(EventBus(log_at(tmp_path / "bus.db")).router())
    async with serving(app) as served:
        await open_live(page, f"{served.http}/dashboard")
    await expect(page.locator("#state")).to_have_text("not live")

    bus = EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db")
    again = FastAPI()
    again.include_router(bus.router())
    async with serving(again, port=served.port):
        await expect(page.locator("#state")).to_have_text("live")
        await fill_log(bus, 7)
        await expect(page.locator("#tiles")).to_contain_text("seq 7")


async def test_an_event_is_published_with_the_keyboard_alone(page: Page, shown: Shown) -> None:
    await page.goto(shown.url)
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
    await page.goto(f"{shown.url}/publish")
    await page.get_by_label("Topic").focus()
    await page.keyboard.type("user.created")
    for _ in range(2):
        await page.keyboard.press("Tab")
    await page.keyboard.type('{"name": "Ada"}')
    await page.get_by_role("button", name="Publish").focus()
    await page.keyboard.press("Enter")

    await expect(page.get_by_role("status")).to_contain_text("It has seq 1.")
    message = (await shown.bus.get(1)).message
    assert (message.topic, message.body) == ("user.created", b'{"name": "Ada"}')


async def test_dead_letters_are_chosen_together_and_tried_again(page: Page, shown: Shown) -> None:
    await fill_log(shown.bus, 20)
    await add_group(shown.bus, "mail", ["#"], after=0, dead=5)
    await page.goto(f"{shown.url}/dead-letters")
    await page.get_by_label("Choose all of this page").check()
    await page.get_by_label("Choose 2 of mail").uncheck()
    await page.get_by_role("button", name="Retry those chosen").click()

    await expect(page.get_by_role("status")).to_contain_text("4")
    figures = (await shown.bus.groups.group("mail")).figures
    assert (figures.dead, figures.retries) == (1, 4)


async def test_a_reset_needs_its_box_and_then_is_done(page: Page, shown: Shown) -> None:
    await fill_log(shown.bus, 20)
    await add_group(shown.bus, "mail", ["#"], after=0, again=5)
    await page.goto(f"{shown.url}/group?name=mail")
    await page.get_by_label("after seq", exact=True).check()
    await page.get_by_label("After seq").and_(page.locator("input[name=seq]")).fill("12")
    await page.get_by_role("button", name="Reset the group").click()
    assert page.url.endswith("/group?name=mail")  # the browser asks for the box itself
    await page.get_by_label("Forget what is in flight").check()
    await page.get_by_role("button", name="Reset the group").click()

    await expect(page.get_by_role("status")).to_contain_text("after seq 12")
    assert (await shown.bus.groups.group("mail")).group.cursor == 12


async def test_everything_works_without_script(browser: BrowserContext, shown: Shown) -> None:
    """Given a browser that runs no script, then pages are shown and forms do what they say."""
    assert browser.browser is not None
    plain = await browser.browser.new_context(java_script_enabled=False)
    page = await plain.new_page()
    await fill_log(shown.bus, 80)
    await page.goto(f"{shown.url}/log")
    await page.get_by_role("link", name="Older").click()
    await expect(page.locator("tbody tr")).to_have_count(30)
    assert not await page.get_by_label("Follow").is_visible()
    await shown.bus.queues.scale("email", 3)
    await page.goto(f"{shown.url}/queues")
    await page.get_by_role("button", name="Pause").click()
    await expect(page.get_by_role("status")).to_contain_text("Paused")
    assert (await shown.bus.queues.queue("email")).is_paused
    await plain.close()


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/html", "image/svg+xml"])
async def test_no_payload_runs_in_the_browser(page: Page, shown: Shown, content_type: str) -> None:
    """Given payloads that are programs, when they are shown, then nothing of them is an element, and nothing runs."""
    evil = "</pre></script><script>window.ran = 1</script><img src=x onerror='window.ran = 1'><svg onload='ran=1'>"
    payload: object = {"a": evil} if content_type == "application/json" else evil.encode()
    await shown.bus.publish("a", payload, content_type=content_type, key=evil[:60], metadata={evil: evil})

    for place in ("log", "event?seq=1"):
        await page.goto(f"{shown.url}/{place}")
        assert await page.evaluate("window.ran") is None
        assert await page.locator("main img, main script, main pre svg").count() == 0
    if content_type != "image/svg+xml":
        await expect(page.locator("pre").first).to_contain_text("<script>window.ran = 1</script>")


async def test_what_turns_a_line_around_is_shown_by_its_number(page: Page, shown: Shown) -> None:
    await shown.bus.publish("a", "invoice\u202egpj.exe")
    await page.goto(f"{shown.url}/event?seq=1")

    assert await page.locator("pre").first.inner_text() == "invoiceU+202Egpj.exe"


async def test_an_admin_logs_in_and_out(page: Page, console: Console, tmp_path: Path) -> None:
    console.forgive("401")

    async def authenticate(connection: HTTPConnection) -> Principal | None:
        return Principal("root", is_admin=True) if bearer_token(connection) == "secret" else None

    async with showing(EventBus(log_at(tmp_path / "bus.db"), authenticate=authenticate)) as shown:
        await page.goto(f"{shown.url}/groups?{urlencode({'name': 'a b'})}")
        await page.get_by_label("Key or token").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_be_visible()
        await page.goto(f"{shown.url}/groups?{urlencode({'name': 'a b'})}")
        await page.get_by_label("Key or token").fill("secret")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#state[data-state=live]")
        assert page.url == f"{shown.url}/groups?name=a+b"
        assert await page.evaluate("document.cookie") == ""
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_label("Key or token")).to_be_visible()


async def test_another_site_can_neither_frame_nor_post_to_it(
    open_page: OpenPage, console: Console, shown: Shown, tmp_path: Path
) -> None:
    """Given a page of another origin that frames the dashboard and sends a form to it, then neither is done."""
    console.forgive("frame-ancestors")
    console.forgive("403")
    console.forgive("ERR_BLOCKED_BY_RESPONSE")
    evil = tmp_path / "evil.html"
    evil.write_text(
        f"<iframe src='{shown.url}'></iframe><form method=post action='{shown.url}/publish'>"
        "<input name=topic value=a><input name=payload value=1><input name=token value=x><button>go</button></form>"
    )
    await (await open_page(shown.url)).close()
    page = await open_page(evil.as_uri())
    await page.get_by_role("button", name="go").click()

    await expect(page.get_by_role("alert")).to_be_visible()
    assert (await shown.bus.head()).last_seq == 0


async def test_pages_have_landmarks_headings_and_names(page: Page, shown: Shown) -> None:
    """Every page has one main part and one first heading; each field and button has a name, each column a header."""
    await show_off(shown.bus, events=1_500)
    for place in (await places(shown.bus, 1_500)).values():
        await page.goto(f"{shown.url}/{place}")
        assert await page.get_by_role("main").count() == 1
        assert await page.get_by_role("heading", level=1).count() == 1
        assert await page.get_by_role("navigation", name="Pages").count() == 1
        assert await page.locator("nav.menu [aria-current=page]").count() == 1, place
        assert await page.evaluate(NAMELESS) == [], place


NAMELESS = """() => [
    ...[...document.querySelectorAll("input:not([type=hidden]), select, textarea")].filter(
        (each) => !each.labels?.length && !each.getAttribute("aria-label")),
    ...[...document.querySelectorAll("button, a")].filter(
        (each) => !each.textContent.trim() && !each.getAttribute("aria-label")),
    ...[...document.querySelectorAll("th")].filter((each) => !each.scope),
    ...[...document.querySelectorAll("[id]")].filter(
        (each) => document.querySelectorAll("#" + CSS.escape(each.id)).length > 1),
].map((each) => each.outerHTML)"""


async def test_nothing_is_wider_than_a_telephone(browser: BrowserContext, shown: Shown) -> None:
    await show_off(shown.bus, events=1_500)
    page = await browser.new_page()
    await page.set_viewport_size({"width": 390, "height": 800})
    for place in (await places(shown.bus, 1_500)).values():
        await page.goto(f"{shown.url}/{place}")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390, place


async def test_the_pictures_of_the_docs_can_be_taken(tmp_path: Path) -> None:
    await take_all(tmp_path)

    assert pictures(tmp_path) == pictures(IMAGES)


def pictures(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("dashboard-*.png")}
