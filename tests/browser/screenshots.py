"""Makes the pictures of docs/dashboard.md anew: `make screenshots`."""

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from playwright.async_api import Page, async_playwright
from websockets.asyncio.client import connect

from eventbus_fastapi import EventBus, Settings
from eventbus_fastapi.app import create_app
from eventbus_fastapi.dashboard.sampler import INTERVAL, KEPT, Sampler
from tests.browser.chromium import running_chromium
from tests.browser.seeded import show_off
from tests.processes import CHECKOUT
from tests.serving import serving
from tests.tables import log_at

IMAGES = CHECKOUT / "docs" / "images"
WIDTH, HEIGHT = 1180, 760
TALLEST = 1_000
"""Pixels of a picture at most; what is below is left out."""


async def take_all(directory: Path) -> None:
    """Serve a bus that has something to show, and take a picture of every page."""
    with tempfile.TemporaryDirectory() as place:
        app = create_app(Settings(database_url=log_at(Path(place) / "bus.db")))
        bus: EventBus = app.state.eventbus
        async with serving(app) as served:
            await show_off(bus)
            async with (
                bus.subscribe("user.*"),
                bus.subscribe("order.#", "mail.#"),
                bus.subscribe("audit.login", after=0),
                connect(served.ws),
                connect(served.ws),
            ):
                await remember(bus)
                with running_chromium(Path(place)) as endpoint:
                    await take(endpoint, f"{served.http}/dashboard", await places(bus), directory)


async def places(bus: EventBus) -> dict[str, str]:
    """Return the address of each page that has a picture, by the name of the picture."""
    (group, letter), *_ = (await bus.groups.dead_letters("shop.send_welcome")).entries
    lists = ("log", "topics", "groups", "queues", "recurring", "rate-limits", "archive", "nodes", "publish")
    return {
        "overview": "",
        **{page: page for page in lists},
        "event": f"event?seq={(await bus.head()).last_seq}",
        "group": "group?name=shop.charge",
        "dead-letters": f"dead-letters?group={group}",
        "dead-letter": f"dead-letter?{urlencode({'group': group, 'seq': letter.seq})}",
    }


async def remember(bus: EventBus) -> None:
    """Have the plots show ten minutes that were not."""
    (sampler,) = [stage for stage in bus.node._running if isinstance(stage, Sampler)]
    now = await sampler.sample()
    count = int(KEPT / INTERVAL)
    seq = delivered = 0
    made = []
    for number in range(count):
        wave = math.sin(number / 17) + 0.4 * math.sin(number / 3.1)
        burst = 14 if 120 < number < 138 else 0
        seq += round(3 * (9 + 4 * wave + burst))
        delivered += round(3 * (17 + 7 * wave + 2 * burst))
        lag = max(0, round(now.lag * (0.25 + 0.1 * wave + (0.75 * (number - 118) / count if number > 118 else 0))))
        made.append(
            now._replace(
                time=now.time - (count - number) * INTERVAL,
                last_seq=seq,
                delivered=delivered,
                lag=lag,
                in_flight=max(0, round(22 + 9 * wave + burst)),
                retries=max(0, round(3 + 2 * wave + burst / 3)),
                dead=min(now.dead, number // 16),
            )
        )
    sampler._samples.clear()
    sampler._samples.extend(
        each._replace(
            last_seq=each.last_seq - made[-1].last_seq + now.last_seq,
            delivered=each.delivered - made[-1].delivered + now.delivered,
        )
        for each in made
    )


async def take(endpoint: str, base: str, places: dict[str, str], directory: Path) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(endpoint)
        for scheme in ("light", "dark"):
            context = await browser.new_context(
                viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="dark" if scheme == "dark" else "light"
            )
            page = await context.new_page()
            for name, place in places.items():
                if scheme == "light" or name == "overview":
                    await page.goto(f"{base}/{place}")
                    await shoot(page, directory / f"dashboard-{name}{'-dark' if scheme == 'dark' else ''}.png")
            await context.close()
        await browser.close()


async def shoot(page: Page, path: Path) -> None:
    """Take a picture of a page that says that it is live."""
    await page.wait_for_selector("#state[data-state=live]")
    tall = await page.evaluate("document.documentElement.scrollHeight")
    await page.set_viewport_size({"width": WIDTH, "height": min(max(tall, 400), TALLEST)})
    await page.screenshot(path=path)
    await page.set_viewport_size({"width": WIDTH, "height": HEIGHT})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=IMAGES, help="where they go (%(default)s)")
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    asyncio.run(take_all(directory))


if __name__ == "__main__":
    main()
