"""What the tests of the browser client do with a page: load the client into it, and have it note what it sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.async_api import Page

import eventbus_fastapi
from tests.client.scripted import ScriptedServer
from tests.serving import Served

SCRIPT = Path(eventbus_fastapi.__file__).parent / "server" / "static" / "client.js"

FAST = {"reconnect_interval": 0.02, "max_reconnect_interval": 0.1}
"""Options of a client that comes back fast."""


async def load(page: Page, served: Served, **options: Any) -> None:
    """Open a page of a served bus with a client of it, `bus`, and a list, `seen`."""
    await page.goto(served.http + "/healthz")
    await page.evaluate(
        """async (options) => {
            const { EventBusClient } = await import("/client.js");
            window.bus = new EventBusClient(options);
            window.seen = [];
        }""",
        {**FAST, **options},
    )


async def load_against(page: Page, server: ScriptedServer, **options: Any) -> None:
    """Open a page with a client of a server that the test plays."""
    script = SCRIPT.read_text() + "\nwindow.EventBusClient = EventBusClient;"
    await page.add_script_tag(type="module", content=script)
    await page.wait_for_function("() => window.EventBusClient !== undefined")
    await page.evaluate(
        "(options) => { window.bus = new EventBusClient(options); window.seen = []; window.states = [];"
        " bus.addEventListener('state', ({ detail }) => states.push(detail)); }",
        {**FAST, "url": server.url, **options},
    )


async def follow(page: Page, patterns: str = "#", **options: Any) -> None:
    """Subscribe, as `subscription`, and note the payload of each event in `seen`. It is confirmed on return."""
    await page.evaluate(
        """async ([patterns, options]) => {
            window.subscription = bus.on(patterns, (event) => { seen.push(event.payload); }, options);
            await subscription.ready;
        }""",
        [patterns, options],
    )


async def seen(page: Page) -> Any:
    """What the page has noted so far."""
    return await page.evaluate("seen")
