"""`/client.js` in Chromium, against a real bus."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.async_api import Page
from starlette.requests import HTTPConnection

from eventbus_fastapi.app import create_app
from eventbus_fastapi.auth import Principal, bearer_token
from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.events import Message
from eventbus_fastapi.settings import Settings
from tests.browser.client import follow, load, seen
from tests.browser.conftest import Console, OpenPage
from tests.serving import serving
from tests.tables import log_at
from tests.waiting import eventually


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return create_app(Settings(database_url=log_at(tmp_path / "bus.db")))


@pytest.fixture(autouse=True)
def servers_come_and_go(console: Console) -> None:
    """The server of a test ends before its page does, and Chromium tells of each attempt to connect that fails."""
    console.forgive("WebSocket connection to")


def bus_of(app: FastAPI) -> EventBus:
    bus: EventBus = app.state.eventbus
    return bus


async def test_a_published_event_comes_to_who_subscribes_with_all_that_belongs_to_it(page: Page, app: FastAPI) -> None:
    async with serving(app) as served:
        await load(page, served)
        found = await page.evaluate(
            """async () => {
                const subscription = bus.subscribe("chat.*");
                await subscription.ready;
                const receipt = await bus.publish("chat.lobby", { text: "Hello" }, { key: "ann", metadata: { n: 1 } });
                for await (const event of subscription) return [receipt, event, subscription.position];
            }"""
        )
    receipt, event, position = found
    assert receipt == {"seq": 1, "message_id": event["message_id"], "duplicate": False}
    assert position == event["seq"] == 1
    assert (event["topic"], event["payload"], event["key"]) == ("chat.lobby", {"text": "Hello"}, "ann")
    assert event["metadata"]["n"] == 1


async def test_the_same_message_id_is_stored_once(page: Page, app: FastAPI) -> None:
    async with serving(app) as served:
        await load(page, served)
        publish = "bus.publish('a.b', 1, { message_id: '00000000-0000-4000-8000-000000000007' })"
        first, second = await page.evaluate(f"Promise.all([{publish}, {publish}])")
    assert [first["duplicate"], second["duplicate"]] == [False, True]
    assert first["seq"] == second["seq"]


async def test_what_the_server_refuses_is_an_error_with_its_code(page: Page, app: FastAPI) -> None:
    async with serving(app) as served:
        await load(page, served)
        code = await page.evaluate(
            "bus.publish('no topic', 1).catch((error) => [error.name, error.code, error.status])"
        )
        assert code == ["EventBusError", "topic.invalid", 422]
        code = await page.evaluate("bus.subscribe('a..b').ready.catch((error) => error.code)")
        assert code == "pattern.invalid"
        assert await page.evaluate("bus.publish('a.b', 'x'.repeat(2 << 20)).catch((error) => error.code)") == (
            "frame.too_large"
        )
        assert (await page.evaluate("bus.publish('a.b', 2)"))["seq"] == 1


async def test_a_subscription_replays_from_where_it_is_told_to_and_goes_on_live(page: Page, app: FastAPI) -> None:
    async with serving(app) as served:
        for n in range(1, 6):
            await bus_of(app).publish("a.b", n)
        await load(page, served)
        await follow(page, "a.*", after=2)
        await eventually(lambda: _has(page, [3, 4, 5]))
        await bus_of(app).publish("a.b", 6)
        await eventually(lambda: _has(page, [3, 4, 5, 6]))
        assert await page.evaluate("subscription.position") == 6


async def test_an_event_without_storage_reaches_who_listens(open_page: OpenPage, app: FastAPI) -> None:
    async with serving(app) as served:
        here, there = await open_page(), await open_page()
        await load(here, served)
        await load(there, served)
        await follow(there, "cursor.*")
        receipt = await here.evaluate("bus.publish('cursor.ann', { x: 1 }, { durable: false })")
        assert receipt["seq"] is None
        await eventually(lambda: _has(there, [{"x": 1}]))
        assert await there.evaluate("subscription.position") == 0
        assert await _stored(app) == []


async def test_leaving_the_loop_ends_the_subscription_on_the_server(page: Page, app: FastAPI) -> None:
    async with serving(app) as served:
        await load(page, served)
        await page.evaluate("for (let n = 0; n < 100; n++) bus.publish('a.b', n)")
        for _ in range(101):  # one more than a connection may have at a time
            await page.evaluate(
                "(async () => { for await (const { seq } of bus.subscribe('#', { after: 0 })) if (seq > 2) break; })()"
            )


async def test_a_slow_loop_gets_everything_in_order_with_a_small_window(page: Page, app: FastAPI) -> None:
    async with serving(app) as served:
        for n in range(200):
            await bus_of(app).publish("a.b", n)
        await load(page, served, window=7)
        most = await page.evaluate(
            """async () => {
                const subscription = bus.subscribe("#", { after: 0 });
                let most = 0;
                for await (const event of subscription) {
                    seen.push(event.payload);
                    most = Math.max(most, subscription._items.length);
                    if (seen.length === 200) return most;
                    if (seen.length % 10 === 0) await new Promise((resolve) => setTimeout(resolve));
                }
            }"""
        )
        assert await seen(page) == list(range(200))
        assert most <= 7


async def test_over_a_restart_there_is_no_hole_and_no_double(page: Page, tmp_path: Path) -> None:
    settings = Settings(database_url=log_at(tmp_path / "bus.db"))
    app = create_app(settings)
    async with serving(app) as served:
        await load(page, served)
        await follow(page)
        for n in range(30):
            await bus_of(app).publish("a.b", n)
        await eventually(lambda: _has(page, list(range(30))))
    async with EventBus(settings=settings) as meanwhile:
        for n in range(30, 60):
            await meanwhile.publish("a.b", n)
    app = create_app(settings)
    async with serving(app, port=served.port):
        await eventually(lambda: _has(page, list(range(60))))
        await bus_of(app).publish("a.b", 60)
        await eventually(lambda: _has(page, list(range(61))))


async def test_what_is_published_offline_is_stored_once_and_in_order(page: Page, tmp_path: Path) -> None:
    settings = Settings(database_url=log_at(tmp_path / "bus.db"))
    async with serving(create_app(settings)) as served:
        await load(page, served)
        await page.evaluate("bus.connect()")
    await page.evaluate("window.sent = Promise.all([...Array(50).keys()].map((n) => bus.publish('a.b', n))); 0")
    assert await page.evaluate("bus.state") in {"waiting", "connecting"}
    app = create_app(settings)
    async with serving(app, port=served.port):
        receipts = await page.evaluate("sent")
        stored = await _stored(app)
    assert [message.payload for message in stored] == list(range(50))
    assert [receipt["seq"] for receipt in receipts] == [message.seq for message in stored]


async def test_who_publishes_faster_than_the_server_allows_is_slowed_down_and_loses_nothing(
    page: Page, tmp_path: Path
) -> None:
    app = create_app(Settings(database_url=log_at(tmp_path / "bus.db"), publish_rate=30, publish_burst=30))
    async with serving(app) as served:
        await load(page, served)
        await page.evaluate("Promise.all([...Array(80).keys()].map((n) => bus.publish('a.b', n)))")
        assert [message.payload for message in await _stored(app)] == list(range(80))
        assert await page.evaluate("bus.state") == "open"


async def test_another_log_is_told_as_a_gap_and_read_from_its_beginning(page: Page, tmp_path: Path) -> None:
    first = create_app(Settings(database_url=log_at(tmp_path / "first.db")))
    async with serving(first) as served:
        await load(page, served)
        await page.evaluate("window.gaps = []; 0")
        await page.evaluate(
            "const on_gap = (gap) => gaps.push(gap);bus.on('#', ({ payload }) => seen.push(payload), { on_gap }).ready"
        )
        await bus_of(first).publish("a.b", "old")
        await eventually(lambda: _has(page, ["old"]))
    second = create_app(Settings(database_url=log_at(tmp_path / "second.db")))
    async with serving(second, port=served.port):
        await bus_of(second).publish("a.b", "new")
        await eventually(lambda: _has(page, ["old", "new"]))
        assert await page.evaluate("gaps") == [{"first_seq": 0, "last_seq": 0, "reason": "epoch"}]


async def test_closing_waits_for_answers_and_ends_everything(page: Page, app: FastAPI) -> None:
    async with serving(app) as served:
        await load(page, served)
        result = await page.evaluate(
            """async () => {
                const looping = (async () => { for await (const event of bus.subscribe("#")) seen.push(event); })();
                await bus.connect();
                const published = bus.publish("a.b", 1);
                await bus.close();
                await looping;
                const late = await bus.publish("a.b", 2).catch((error) => error.code);
                return [(await published).seq, bus.state, bus.error ?? null, late];
            }"""
        )
    assert result == [1, "closed", None, "client.closed"]


# --- tokens ---


def authenticate(connection: HTTPConnection) -> Principal | None:
    if bearer_token(connection) != "anns-token":
        return None
    return Principal("ann", publish=["chat.#"], subscribe=["chat.#"], expires_at=datetime.now(UTC) + timedelta(hours=1))


@pytest.fixture
def guarded(tmp_path: Path) -> FastAPI:
    """The routes of a bus that lets Ann in, and nobody else."""
    app = FastAPI()
    app.include_router(EventBus(log_at(tmp_path / "bus.db"), authenticate=authenticate).router())
    return app


async def test_a_token_opens_the_connection_and_what_is_not_granted_is_refused(page: Page, guarded: FastAPI) -> None:
    async with serving(guarded) as served:
        await load(page, served, token="anns-token")
        await follow(page, "chat.*")
        assert (await page.evaluate("bus.publish('chat.lobby', 'Hello')"))["seq"] == 1
        await eventually(lambda: _has(page, ["Hello"]))
        assert await page.evaluate("bus.publish('job.new', 1).catch((error) => error.code)") == "auth.forbidden"


async def test_a_wrong_token_ends_the_client_and_the_page_knows_why(page: Page, guarded: FastAPI) -> None:
    async with serving(guarded) as served:
        await load(page, served, token="mallory")
        found = await page.evaluate("bus.connect().catch((error) => [error.code, error.status, bus.state])")
    assert found == ["auth.unauthenticated", 401, "closed"]


# --- groups ---


async def test_each_event_of_a_group_goes_to_one_page_until_it_is_acked(open_page: OpenPage, app: FastAPI) -> None:
    async with serving(app) as served:
        pages = [await open_page(), await open_page()]
        for page in pages:
            await load(page, served)
            await follow(page, "job.*", group="jobs", credit=5)
        for n in range(40):
            await bus_of(app).publish("job.new", n)
        await eventually(lambda: _have(pages, list(range(40))))
        await eventually(lambda: _is_done(app, "jobs"))


async def test_nacked_events_come_again_rejected_ones_are_dead_and_extended_ones_stay(page: Page, app: FastAPI) -> None:
    async with serving(app) as served:
        await load(page, served)
        await page.evaluate(
            """async () => {
                window.subscription = bus.subscribe("job.*", { group: "jobs", ack_wait: 5 });
                await subscription.ready;
                (async () => {
                    for await (const event of subscription) {
                        seen.push([event.payload, event.attempt]);
                        const { payload, attempt } = event;
                        if (payload === "again" && attempt === 1) await event.nack({ delay: 0, reason: "not yet" });
                        else if (payload === "never") await event.reject({ reason: "no use" });
                        else await event.extend().then(() => event.ack());
                    }
                })();
            }"""
        )
        for payload in ("again", "never", "fine"):
            await bus_of(app).publish("job.new", payload)
        await eventually(lambda: _is_done(app, "jobs"))
        assert sorted(await seen(page)) == [["again", 1], ["again", 2], ["fine", 1], ["never", 1]]
        [(_, letter)] = (await bus_of(app).groups.dead_letters("jobs")).entries
        assert letter.seq == 2


async def test_a_callback_that_throws_has_its_event_tried_again(page: Page, console: Console, app: FastAPI) -> None:
    console.forgive("a callback failed at seq")
    async with serving(app) as served:
        await load(page, served)
        await page.evaluate(
            """async () => {
                window.subscription = bus.on("job.*", (event) => {
                    seen.push(event.attempt);
                    if (event.attempt === 1) throw new Error("not today");
                }, { group: "jobs" });
                await subscription.ready;
            }"""
        )
        await bus_of(app).publish("job.new", 1)
        await eventually(lambda: _has(page, [1]))
        retries = await eventually(lambda: bus_of(app).groups.retries("jobs"))
        assert "not today" in str(retries)


async def test_what_a_closed_page_held_comes_to_another_page(open_page: OpenPage, app: FastAPI) -> None:
    async with serving(app) as served:
        first, second = await open_page(), await open_page()
        await load(first, served)
        await first.evaluate(
            """(async () => {
                for await (const event of bus.subscribe("job.*", { group: "jobs" })) seen.push(event.payload);
            })();
            bus.connect()"""
        )
        await eventually(lambda: _group_exists(app, "jobs"))
        for n in range(3):
            await bus_of(app).publish("job.new", n)
        await eventually(lambda: _has(first, [0, 1, 2]))
        await load(second, served)
        await second.evaluate(
            "bus.on('job.*', ({ payload, attempt }) => { seen.push([payload, attempt]) }, { group: 'jobs' }).ready"
        )
        await first.close()
        await eventually(lambda: _has_all(second, [[0, 2], [1, 2], [2, 2]]))  # retries have no order
        await eventually(lambda: _is_done(app, "jobs"))


async def test_an_ack_over_a_connection_that_has_ended_is_refused(page: Page, app: FastAPI) -> None:
    async with serving(app) as served:
        await load(page, served)
        await page.evaluate("window.subscription = bus.subscribe('job.*', { group: 'jobs' }); subscription.ready")
        await bus_of(app).publish("job.new", 1)
        await page.evaluate(
            "(async () => { window.held = (await subscription[Symbol.asyncIterator]().next()).value; })()"
        )
    assert await page.evaluate("held.ack().catch((error) => error.code)") == "lease.lost"


# --- what is looked at ---


async def _has(page: Page, expected: list[Any]) -> bool:
    found = await seen(page)
    assert found == expected
    return True


async def _has_all(page: Page, expected: list[Any]) -> bool:
    found = await seen(page)
    assert sorted(found) == expected
    return True


async def _have(pages: list[Page], expected: list[Any]) -> bool:
    found = await asyncio.gather(*map(seen, pages))
    assert sorted(payload for each in found for payload in each) == expected
    assert all(found), "one of them got nothing"
    return True


async def _group_exists(app: FastAPI, name: str) -> bool:
    await bus_of(app).groups.group(name)
    return True


async def _is_done(app: FastAPI, name: str) -> bool:
    figures = (await bus_of(app).groups.group(name)).figures
    return figures.lag == 0 and figures.in_flight == 0 and figures.retries == 0


async def _stored(app: FastAPI) -> list[Message]:
    return list((await bus_of(app).node.history(["#"], 0, 100)).messages)
