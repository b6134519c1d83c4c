"""What the pages show of a bus."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from websockets.asyncio.client import connect

from eventbus_fastapi import EventBus
from tests.browser.seeded import add_group, fill_log
from tests.dashboard.browsing import Browser, Page
from tests.server.asking import app_of, bus_on
from tests.serving import serving


def seqs(page: Page) -> list[int]:
    """Return the events that a list links to."""
    return [int(link.partition("seq=")[2]) for link in page.links if "/event?seq=" in link]


async def test_the_overview_tells_of_lag_retries_dead_letters_and_pauses(eventbus: EventBus, browser: Browser) -> None:
    await fill_log(eventbus, 50)
    await add_group(eventbus, "mail", ["#"], after=0, dead=2, again=3, held=4)
    await eventbus.groups.pause("mail")
    await eventbus.queues.pause("email")

    answer = await browser.get()
    page = Page(answer.text)

    figures = {given["data-figure"]: tag for tag, given in page.elements if "data-figure" in given}
    assert figures.keys() == {"published", "delivered", "lag", "in_flight", "retries", "dead"}
    for name, value in (("lag", 36), ("in_flight", 4), ("retries", 3), ("dead", 2)):
        assert f'data-figure="{name}">{value}<' in answer.text
    assert "Paused" in page.text
    assert "/dashboard/group?name=mail" in page.links
    assert "/dashboard/dead-letters?group=mail" in page.links


async def test_a_bus_that_is_empty_has_pages_all_the_same(browser: Browser) -> None:
    for page in (
        "",
        "log",
        "topics",
        "groups",
        "dead-letters",
        "queues",
        "recurring",
        "rate-limits",
        "archive",
        "nodes",
    ):
        assert (await browser.get(page)).status_code == 200


# --- the log ---


async def test_the_log_is_shown_from_its_end_and_leads_to_what_is_older(eventbus: EventBus, browser: Browser) -> None:
    await fill_log(eventbus, 120)

    first = await browser.see("log")
    (older,) = [link for link in first.links if "before=" in link]
    second = Page((await browser.http.get(older)).text)
    (newer,) = [link for link in second.links if "after=" in link]
    back = Page((await browser.http.get(newer)).text)

    assert seqs(first) == list(range(120, 70, -1))
    assert seqs(second) == list(range(70, 20, -1))
    assert seqs(back) == seqs(first)


async def test_the_log_is_searched_by_topic_and_time(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.publish_many([("user.created", 1), ("user.renamed", 2), ("order.paid", 3)])
    now = datetime.now(UTC)
    soon, before = (now + timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M"), (now - timedelta(hours=1)).isoformat()

    async def found(**query: str) -> list[int]:
        return seqs(await browser.see(f"log?{urlencode(query)}"))

    assert await found(pattern="user.*") == [2, 1]
    assert await found(pattern="*.created order.#") == [3, 1]
    assert await found(pattern="user.*", since=before, until=soon) == [2, 1]
    assert await found(since=soon) == []
    assert await found(until=before) == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("pattern=a..b", "segment 2 is empty"),
        ("before=-1", "expected an integer"),
        ("before=99999999999999999999", "expected an integer"),
        ("after=x", "expected an integer"),
        ("since=yesterday", "expected a time"),
        ("until=2026-13-01", "expected a time"),
        ("pattern=a&pattern=b", "given 2 times"),
        ("pattern=" + "+".join("a" * 200), "at most"),
    ],
)
async def test_a_search_that_cannot_be_meant_says_what_is_wrong(browser: Browser, query: str, said: str) -> None:
    answer = await browser.get(f"log?{query}")

    assert 400 <= answer.status_code < 500
    assert said in Page(answer.text).text
    assert "Nothing was changed" not in answer.text


async def test_an_event_is_shown_with_its_payload_and_who_reads_it(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.groups.declare("mail", ["user.#"])
    await eventbus.groups.declare("other", ["order.#"])
    receipt = await eventbus.publish("user.created", {"id": 7, "name": "Ada"}, key="k", metadata={"by": "x"}, ttl=3_600)

    page = await browser.see("event?seq=1")

    for text in (
        str(receipt.message_id),
        "user.created",
        '"name": "Ada"',
        '"by": "x"',
        "application/json",
        "not reached",
    ):
        assert text in page.text
    assert "/dashboard/group?name=mail" in page.links
    assert "/dashboard/group?name=other" not in page.links


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("event?seq=1", 404),
        ("event?seq=0", 422),
        ("event", 422),
        ("event?seq=9223372036854775808", 422),
        ("group?name=none", 404),
        ("group?name=..", 422),
        ("group", 422),
        ("dead-letter?group=none&seq=1", 404),
        ("dead-letter?group=none", 422),
        ("ending?id=1", 404),
        ("ending", 422),
        ("nowhere", 404),
        ("payload?seq=1", 404),
        ("%00", 404),
        ("static/../__init__.py", 404),
        ("static/", 404),
    ],
)
async def test_what_is_not_there_is_a_page_that_says_so(browser: Browser, address: str, status: int) -> None:
    answer = await browser.get(address)

    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert 'role="alert"' in answer.text
    assert "Traceback" not in answer.text


# --- lists ---


async def test_topics_are_those_of_the_newest_events_with_their_readers(eventbus: EventBus, browser: Browser) -> None:
    await eventbus.groups.declare("mail", ["user.#"])
    await eventbus.publish_many([("user.created", 1), ("user.created", 2), ("order.paid", 3)])

    every, some = await browser.see("topics"), await browser.see("topics?pattern=order.*")

    assert "/dashboard/log?pattern=user.created" in every.links
    assert "/dashboard/group?name=mail" in every.links
    assert "/dashboard/log?pattern=user.created" not in some.links
    assert "/dashboard/log?pattern=order.paid" in some.links


async def test_groups_are_paged_and_found_by_a_part_of_their_name(eventbus: EventBus, browser: Browser) -> None:
    for number in range(60):
        await eventbus.groups.declare(f"group-{number:02}", ["#"])

    def names(page: Page) -> list[str]:
        return [link.partition("name=")[2] for link in page.links if "/group?name=" in link]

    assert names(await browser.see("groups")) == [f"group-{number:02}" for number in range(50)]
    assert names(await browser.see("groups?page=2")) == [f"group-{number:02}" for number in range(50, 60)]
    assert names(await browser.see("groups?page=99")) == [f"group-{number:02}" for number in range(50, 60)]
    assert names(await browser.see("groups?name=-07")) == ["group-07"]


async def test_a_group_shows_its_retries_a_page_at_a_time_and_the_keys_that_wait(
    eventbus: EventBus, browser: Browser
) -> None:
    await fill_log(eventbus, 100)
    await add_group(eventbus, "mail", ["#"], after=0, again=70)
    await eventbus.groups.declare("mail", ["#"], ordered_by="key")

    first = await browser.see("group?name=mail")
    (following,) = [link for link in first.links if "after=" in link]
    second = Page((await browser.http.get(following)).text)

    retries = seqs(first)[:50] + [seq for seq in seqs(second) if seq > 50][:20]
    assert retries == list(range(1, 71))
    assert "Keys that wait" in first.text
    assert "httpx.ConnectTimeout" in first.text


async def test_dead_letters_are_found_by_filter_and_shown_with_all_that_went_wrong(
    eventbus: EventBus, browser: Browser
) -> None:
    await fill_log(eventbus, 100)
    await add_group(eventbus, "mail", ["#"], after=0, dead=60)
    await add_group(eventbus, "other", ["#"], after=0, dead=1)

    first = await browser.see("dead-letters?group=mail")
    (following,) = [link for link in first.links if "after=" in link]
    second = Page((await browser.http.get(following)).text)
    by_error = await browser.see("dead-letters?error=ValueError&group=mail")
    none = await browser.see("dead-letters?attempts=9")
    one = await browser.see("dead-letter?group=mail&seq=3")

    def letters(page: Page) -> list[int]:
        return [int(link.partition("seq=")[2]) for link in page.links if "/dead-letter?" in link]

    assert (letters(first), letters(second)) == (list(range(1, 51)), list(range(51, 61)))
    assert letters(by_error) == list(range(2, 61, 3))
    assert letters(none) == []
    assert "attempt 3" in one.text
    assert "attempt 1" in one.text
    assert "in send_welcome" in one.text


async def test_endings_are_found_and_shown(eventbus: EventBus, browser: Browser) -> None:
    await fill_log(eventbus, 20)
    await add_group(eventbus, "mail", ["#"], after=0, dead=2)

    every, dead = await browser.see("archive"), await browser.see("archive?outcome=dead&group=mail")
    (one, _) = [link for link in dead.links if "/ending?id=" in link]
    shown = Page((await browser.http.get(one)).text)

    assert len([link for link in every.links if "/ending?" in link]) == 7
    assert "worker-1-4711-0a1b2c3d" in shown.text
    assert (await browser.get("archive?outcome=odd")).status_code == 422


async def test_nodes_show_the_subscriptions_of_this_one(eventbus: EventBus, browser: Browser) -> None:
    async with eventbus.subscribe("user.*", "logs.#"):
        page = await browser.see("nodes")

    assert "user.* logs.#" in page.text
    assert "live" in page.text
    assert eventbus.node.consumers.owner in page.text


async def test_files_are_not_sent_again_to_who_has_them(browser: Browser) -> None:
    for name in ("dashboard.css", "dashboard.js", "icon.svg"):
        first = await browser.get(f"static/{name}")
        again = await browser.get(f"static/{name}", headers={"if-none-match": first.headers["etag"]})
        assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


async def test_nodes_show_who_is_connected_to_this_one(tmp_path: Path) -> None:
    eventbus = bus_on(tmp_path)
    async with serving(app_of(eventbus)) as served, httpx.AsyncClient(base_url=served.http) as http, connect(served.ws):
        page = Page((await http.get("/dashboard/nodes")).text)

    assert "1 open" in page.text
    assert "127.0.0.1" in page.text
