"""A plain `EventSource` in a real browser: wildcards, only events in `onmessage`, and no hole when it comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.async_api import Page

from tests.browser.conftest import Console
from tests.server.sockets import ServedBus, serving_bus
from tests.waiting import eventually

LISTEN = """
async (query) => {
  window.got = [];
  window.words = [];
  window.opened = 0;
  const source = window.source = new EventSource("/events/stream?" + query);
  source.onopen = () => window.opened++;
  source.onmessage = (message) => window.got.push([message.lastEventId, JSON.parse(message.data).payload]);
  for (const word of ["caught_up", "gap", "bye"])
    source.addEventListener(word, (message) => window.words.push([word, JSON.parse(message.data)]));
  await new Promise((resolve) => source.addEventListener("caught_up", resolve, { once: true }));
}
"""


async def listen(page: Page, served: ServedBus, query: str) -> None:
    await page.goto(served.served.http + "/healthz")
    await page.evaluate(LISTEN, query)


async def got(page: Page) -> list[Any]:
    return list(await page.evaluate("window.got"))


async def test_on_message_gets_events_that_match_and_nothing_else(page: Page, tmp_path: Path) -> None:
    async with serving_bus(tmp_path) as served:
        await served.bus.publish_many([("chat.user1", "one"), ("other", "two"), ("logs.a.b", "three")])

        await listen(page, served, "pattern=chat.*&pattern=logs.%23&from=earliest")
        await served.bus.publish("chat.user2", "vier\u2028fünf\nsechs")

        await eventually(lambda: _is(page, [["1", "one"], ["3", "three"], ["4", "vier\u2028fünf\nsechs"]]))
        assert await page.evaluate("window.words") == [["caught_up", {"seq": 3}]]


async def test_a_browser_that_is_sent_away_comes_back_without_a_hole_or_a_double(page: Page, tmp_path: Path) -> None:
    async with serving_bus(tmp_path, stream_lifetime=0.3) as served:
        await listen(page, served, "pattern=%23")
        count = 0

        async def publish_until_it_has_come_back() -> bool:
            nonlocal count
            await served.bus.publish("a", count)
            count += 1
            return int(await page.evaluate("window.opened")) >= 4

        await eventually(publish_until_it_has_come_back, timeout=30)

        await eventually(lambda: _is(page, [[str(number + 1), number] for number in range(count)]))
        words = await page.evaluate("window.words")
        assert {word for word, _ in words} == {"caught_up", "bye"}


async def test_a_browser_that_saw_nothing_yet_misses_nothing_while_the_server_restarts(
    page: Page, console: Console, tmp_path: Path
) -> None:
    console.forgive("net::ERR_")
    async with serving_bus(tmp_path) as served:
        port = served.served.port
        await listen(page, served, "pattern=a")
    async with serving_bus(tmp_path, server={"port": port}) as served:
        await served.bus.publish("a", "while it was away")

        await eventually(lambda: _is(page, [["1", "while it was away"]]), timeout=30)


async def _is(page: Page, expected: list[Any]) -> bool:
    return await got(page) == expected
