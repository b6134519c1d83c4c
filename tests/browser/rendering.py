"""How long Chromium takes to show each page of the dashboard, of a bus with much in it.

python -m tests.browser.rendering --help
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from playwright.async_api import BrowserContext, async_playwright

from eventbus_fastapi import EventBus, Settings
from eventbus_fastapi.app import create_app
from tests.browser.chromium import running_chromium
from tests.browser.seeded import TOPICS, add_group, fill_log
from tests.serving import serving
from tests.tables import log_at

TIMES = """() => {
    const [page] = performance.getEntriesByType("navigation");
    const paint = performance.getEntriesByName("first-contentful-paint")[0];
    return [page.responseEnd, paint ? paint.startTime : page.domContentLoadedEventEnd, page.loadEventEnd];
}"""


class Rendered(NamedTuple):
    """How a page came to be seen. Milliseconds from the moment that somebody asked for it; the median of all rounds."""

    name: str
    answered: float
    """All of the HTML is there."""
    painted: float
    """Something is to be seen."""
    loaded: float
    """Everything is there."""
    bytes: int
    rows: int
    """Of its lists."""


async def fill(bus: EventBus, *, events: int, groups: int, dead: int) -> None:
    """Have so much in the bus. The dead letters are of the first groups; every other group is behind."""
    await fill_log(bus, events)
    per_group = -(-dead // max(1, groups // 5))
    for number in range(groups):
        dying = min(per_group, dead)
        dead -= dying
        after = max(0, events - 2 * dying - 100 - (number % 7) * events // 20)
        patterns = ["#"] if number % 3 == 0 else [TOPICS[number % len(TOPICS)], "user.#"]
        await add_group(
            bus, f"service-{number:03}.handle", patterns, after=after, dead=dying, again=number % 4, held=20
        )


async def places(bus: EventBus, events: int) -> dict[str, str]:
    """Return the addresses of the pages, by name."""
    (group, letter), *_ = (await bus.groups.dead_letters()).entries
    of = urlencode({"group": group})
    return {
        "overview": "",
        "log": "log",
        "log, its middle": f"log?before={events // 2}",
        "log, a topic": "log?pattern=user.*",
        "log, a topic that is rare": "log?pattern=nowhere.at.all",
        "log, a time": "log?since=2020-01-01T00:00",
        "event": f"event?seq={events}",
        "topics": "topics",
        "groups": "groups",
        "group": f"group?{urlencode({'name': group})}",
        "dead letters": "dead-letters",
        "dead letters of a group": f"dead-letters?{of}",
        "dead letters by error": "dead-letters?error=NoSuchError",
        "dead letter": f"dead-letter?{of}&seq={letter.seq}",
        "queues": "queues",
        "recurring": "recurring",
        "rate limits": "rate-limits",
        "archive": "archive",
        "nodes": "nodes",
        "publish": "publish",
    }


async def render(context: BrowserContext, base: str, pages: dict[str, str], rounds: int) -> list[Rendered]:
    """Show every page so many times, in turn.

    Raises:
        AssertionError: one is not there.
    """
    page = await context.new_page()
    found: dict[str, list[tuple[list[float], int, int]]] = {name: [] for name in pages}
    for _ in range(rounds):
        for name, place in pages.items():
            answer = await page.goto(f"{base}/{place}", wait_until="load")
            assert answer is not None
            assert answer.status == 200, (name, answer.status)
            rows = await page.locator("tbody tr").count()
            found[name].append((await page.evaluate(TIMES), len(await answer.body()), rows))
    await page.close()
    return [_rendered(name, each) for name, each in found.items()]


def _rendered(name: str, rounds: Sequence[tuple[list[float], int, int]]) -> Rendered:
    answered, painted, loaded = (statistics.median(times[place] for times, _, _ in rounds) for place in range(3))
    return Rendered(name, answered, painted, loaded, rounds[-1][1], rounds[-1][2])


@contextlib.asynccontextmanager
async def chromium_context() -> AsyncIterator[BrowserContext]:
    with tempfile.TemporaryDirectory() as profile, running_chromium(Path(profile)) as endpoint:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.connect_over_cdp(endpoint)
            context = await browser.new_context(viewport={"width": 1280, "height": 900})
            yield context
            await context.close()
            await browser.close()


async def run(database_url: str | None, events: int, groups: int, dead: int, rounds: int) -> list[Rendered]:
    with tempfile.TemporaryDirectory() as directory:
        app = create_app(Settings(database_url=database_url or log_at(Path(directory) / "bus.db")))
        async with serving(app) as served:
            bus: EventBus = app.state.eventbus
            if (await bus.head()).last_seq == 0:
                await fill(bus, events=events, groups=groups, dead=dead)
            async with chromium_context() as context:
                return await render(context, f"{served.http}/dashboard", await places(bus, events), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="in the log (%(default)s)")
    parser.add_argument("--groups", type=int, default=50, help="that read it (%(default)s)")
    parser.add_argument("--dead", type=int, default=1_000, help="dead letters (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="times that each page is shown (%(default)s)")
    parser.add_argument("--database-url", help="a database of its own, with tables (a SQLite file that is made anew)")
    given = parser.parse_args()
    done = asyncio.run(run(given.database_url, given.events, given.groups, given.dead, given.rounds))
    print(f"{'page':<28}{'answered':>10}{'painted':>10}{'loaded':>10}{'kB':>8}{'rows':>6}   milliseconds, median")  # noqa: T201
    for each in done:
        print(  # noqa: T201
            f"{each.name:<28}{each.answered:>10.0f}{each.painted:>10.0f}{each.loaded:>10.0f}"
            f"{each.bytes / 1_000:>8.0f}{each.rows:>6}"
        )


if __name__ == "__main__":
    main()
