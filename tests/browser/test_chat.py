"""browser_chat/: the page survives that its server is killed, and shows everything as text."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Dialog, Page

from tests.browser.conftest import Console, OpenPage
from tests.examples.running import free_port
from tests.processes import CHECKOUT, Process, environment
from tests.waiting import eventually

CHAT = CHECKOUT / "examples" / "browser_chat"
HOSTILE = "<img src=x onerror=alert(1)><script>document.title='owned'</script>&lt;b&gt; \u202e \u0000 {{7*7}}"

Serve = Callable[[], contextlib.AbstractAsyncContextManager[Process]]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def serve(tmp_path: Path, port: int) -> Serve:
    """Run the example until the block ends, and then kill it with SIGKILL; it answers when the block begins."""
    directory = tmp_path / "browser_chat"
    shutil.copytree(CHAT, directory)

    @contextlib.asynccontextmanager
    async def serve() -> AsyncIterator[Process]:
        command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
        async with Process.running(command, cwd=directory, env=environment()) as process:
            await process.line(f"running on http://127.0.0.1:{port}")
            yield process

    return serve


async def say(page: Page, *texts: str) -> None:
    """Type messages and send them."""
    for text in texts:
        await page.fill("#name", "Ann")
        await page.fill("#text", text)
        await page.click("button")


async def shown(page: Page) -> list[str]:
    return [str(text).removeprefix("Ann: ") for text in await page.locator("#messages li").all_text_contents()]


async def shows(page: Page, expected: list[str]) -> bool:
    assert await shown(page) == expected
    return True


async def publish(port: int, *texts: str) -> None:
    events = [{"topic": "chat.lobby", "payload": {"name": "Ann", "text": text}} for text in texts]
    async with httpx.AsyncClient(trust_env=False) as http:
        (await http.post(f"http://127.0.0.1:{port}/publish", json=events)).raise_for_status()


@pytest.mark.timeout(240)  # pages come back after pauses that grow, half a minute in all; longer on a busy machine
async def test_the_page_survives_kills_of_its_server_without_a_hole_or_a_double(
    open_page: OpenPage, console: Console, serve: Serve, port: int
) -> None:
    """Given two pages, when the server is killed and started again twice while both write, then both show the same."""
    console.forgive("WebSocket connection to")
    url = f"http://127.0.0.1:{port}/"
    expected = [f"before {n}" for n in range(20)]
    async with serve():
        pages = [await open_page(url), await open_page(url)]
        await publish(port, *expected)
        for page in pages:
            await eventually(partial(shows, page, expected))
    for turn in range(2):
        typed = [f"offline {turn}.{n}" for n in range(5)]
        await eventually(lambda: is_away(pages[0]))
        await say(pages[0], *typed)
        assert await pages[0].text_content("#waiting") == "5"
        async with serve():
            told = [f"from elsewhere {turn}.{n}" for n in range(20)]
            await publish(port, *told)
            expected += [*typed, *told]
            for page in pages:
                await eventually(partial(has_all, page, expected), 60)
            assert await shown(pages[0]) == await shown(pages[1])
            expected = await shown(pages[0])
            assert [text for text in expected if text.startswith("offline")] == [
                f"offline {earlier}.{n}" for earlier in range(turn + 1) for n in range(5)
            ]
            await eventually(lambda: pages[0].locator("#waiting", has_text="0").is_visible())
    seqs = await pages[1].locator("#messages li").evaluate_all("items => items.map((item) => Number(item.dataset.seq))")
    assert seqs == list(range(1, 71))


async def is_away(page: Page) -> bool:
    return await page.text_content("#state") in {"waiting", "connecting"}


async def has_all(page: Page, expected: list[str]) -> bool:
    """It shows each of these once. Who was first, those who write at the same time cannot know."""
    assert sorted(await shown(page)) == sorted(expected)
    return True


async def test_what_a_page_publishes_while_its_server_is_killed_is_stored_once_and_in_order(
    open_page: OpenPage, console: Console, serve: Serve, port: int
) -> None:
    """Given a page that publishes all the time, when its server is killed twice, then nothing is lost or doubled."""
    console.forgive("WebSocket connection to")
    url = f"http://127.0.0.1:{port}/"
    async with serve():
        writer, reader = await open_page(url), await open_page(url)
        await writer.evaluate(
            """async () => {
                const { EventBusClient } = await import("/client.js");
                const bus = new EventBusClient({ reconnect_interval: 0.05, max_reconnect_interval: 0.2 });
                window.sent = 0;
                window.stored = [];
                window.timer = setInterval(() => {
                    if (sent - stored.length >= 300) return; // its client keeps 1000, and a server may start slowly
                    const text = String(sent++);
                    bus.publish("chat.lobby", { name: "Ann", text }).then(({ seq }) => stored.push(seq));
                }, 5);
            }"""
        )
        await eventually(lambda: writer.evaluate("stored.length > 50"), 30)
    await eventually(lambda: writer.evaluate("sent > stored.length + 50"), 30)
    async with serve():
        await has_stored_all_so_far_and_more(writer)
    await eventually(lambda: writer.evaluate("sent > stored.length + 50"), 30)
    async with serve():
        await has_stored_all_so_far_and_more(writer)
        await writer.evaluate("clearInterval(timer)")
        await eventually(lambda: writer.evaluate("stored.length === sent"), 30)
        sent = int(await writer.evaluate("sent"))
        assert await writer.evaluate("stored") == list(range(1, sent + 1))
        await eventually(lambda: shows(reader, [str(n) for n in range(sent)]), 30)


async def has_stored_all_so_far_and_more(writer: Page) -> None:
    so_far = await writer.evaluate("sent")
    await eventually(lambda: writer.evaluate(f"stored.length > {so_far + 50}"), 30)


async def test_a_plain_event_source_resumes_when_the_server_was_killed(
    page: Page, console: Console, serve: Serve, port: int
) -> None:
    console.forgive("net::ERR_")
    console.forgive("WebSocket connection to")
    first, second = [f"one {n}" for n in range(10)], [f"two {n}" for n in range(10)]
    async with serve():
        await page.goto(f"http://127.0.0.1:{port}/")
        await page.evaluate(
            """() => {
                window.got = [];
                const source = new EventSource("/events/stream?from=earliest&pattern=chat.*");
                source.onmessage = ({ data }) => got.push(JSON.parse(data).payload.text);
            }"""
        )
        await publish(port, *first)
        await eventually(lambda: has_got(page, first))
    async with serve():
        await publish(port, *second)
        await eventually(lambda: has_got(page, first + second), 30)


async def has_got(page: Page, expected: list[str]) -> bool:
    assert await page.evaluate("got") == expected
    return True


async def test_whatever_a_message_contains_is_shown_as_text(open_page: OpenPage, serve: Serve, port: int) -> None:
    async with serve():
        pages = [await open_page(f"http://127.0.0.1:{port}/") for _ in range(2)]
        dialogs: list[Dialog] = []
        for page in pages:
            page.on("dialog", lambda dialog: dialogs.append(dialog))
        await publish(port, HOSTILE)
        await say(pages[0], "fine")
        for page in pages:
            await eventually(partial(shows, page, [HOSTILE, "fine"]))
            assert await page.title() == "Chat"
            assert await page.locator("#messages li *").count() == 0
        assert dialogs == []
        for page in pages:
            await page.close()  # before its server ends, which it would complain about


def test_the_page_is_as_short_as_it_says() -> None:
    assert len((CHAT / "chat.html").read_text().splitlines()) <= 60
