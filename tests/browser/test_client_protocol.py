"""`/client.js` in Chromium, against a server whose side a test plays: what ends, what fails, what lies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from playwright.async_api import Page

from tests.browser.client import load_against, seen
from tests.browser.conftest import Console
from tests.client.scripted import Peer, ScriptedServer, error, event, scripted_server
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def servers_come_and_go(console: Console) -> None:
    console.forgive("WebSocket connection to")


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


async def start_following(page: Page, server: ScriptedServer, **options: Any) -> Peer:
    """Have the page subscribe to everything from the beginning of the log."""
    await load_against(page, server, **options)
    await page.evaluate("window.subscription = bus.on('#', ({ payload }) => { seen.push(payload.n) }, { after: 0 }); 0")
    peer = await server.welcome()
    frame = await peer.subscribed()
    assert (frame["patterns"], frame["after"]) == (["#"], 0)
    return peer


async def has(page: Page, *expected: int) -> bool:
    found = await seen(page)
    assert found == list(expected)
    return True


# --- coming back ---


async def test_it_resumes_after_what_was_taken(page: Page, server: ScriptedServer) -> None:
    peer = await start_following(page, server)
    await peer.send(event(3), event(5))
    await eventually(lambda: has(page, 3, 5))
    peer.drop()
    peer = await server.welcome()
    frame = await peer.subscribed(after=5)
    assert frame["after"] == 5
    assert frame["epoch"]
    await peer.send(event(5), event(6))  # a double is not shown, even if the server sends one
    await eventually(lambda: has(page, 3, 5, 6))


async def test_what_waits_when_the_connection_is_lost_comes_once(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server)
    await page.evaluate(
        """(async () => {
            for await (const { payload } of bus.subscribe("#", { after: 0 })) {
                seen.push(payload.n);
                if (payload.n === 1) await new Promise((resolve) => (window.go_on = resolve));
            }
        })(); 0"""
    )
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1), event(2), event(3))
    await eventually(lambda: has(page, 1))
    peer.drop()
    peer = await server.welcome()
    frame = await peer.subscribed(after=1)
    assert frame["after"] == 1
    await peer.send(event(2), event(3), event(4))
    await page.evaluate("go_on()")
    await eventually(lambda: has(page, 1, 2, 3, 4))


async def test_the_replay_of_a_resumed_subscription_leaves_out_what_the_first_did(
    page: Page, server: ScriptedServer
) -> None:
    await load_against(page, server)
    await page.evaluate("bus.on('#', () => {}); 0")
    peer = await server.welcome()
    frame = await peer.expect("subscribe")
    assert "processed_before" not in frame
    await peer.ok(frame, sub=frame["sub"], after=7, processed_before=1234)
    peer.drop()
    frame = await (await server.welcome()).expect("subscribe")
    assert (frame["processed_before"], frame["after"]) == (1234, 7)


async def test_a_publish_without_an_answer_is_sent_again_with_its_message_id(
    page: Page, server: ScriptedServer
) -> None:
    await load_against(page, server)
    await page.evaluate("window.receipt = bus.publish('a.b', { n: 1 }, { ttl: 60 }); 0")
    peer = await server.welcome()
    first = await peer.expect("publish")
    peer.drop()
    peer = await server.welcome()
    second = await peer.expect("publish")
    assert second == first
    assert second["data"]["ttl"] == 60
    await peer.published(second, 9, duplicate=True)
    assert await page.evaluate("receipt") == {
        "seq": 9,
        "message_id": first["data"]["message_id"],
        "duplicate": True,
    }


async def test_what_is_not_stored_is_not_sent_twice(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server)
    await page.evaluate("window.code = bus.publish('a.b', 1, { durable: false }).catch((error) => error.code); 0")
    peer = await server.welcome()
    await peer.expect("publish")
    peer.drop()
    assert await page.evaluate("code") == "client.connection_lost"
    peer = await server.welcome()
    await page.evaluate("bus.publish('a.b', 2); 0")
    assert (await peer.expect("publish"))["data"]["payload"] == 2


async def test_what_the_server_refuses_for_the_moment_is_sent_again_and_the_order_stays(
    page: Page, server: ScriptedServer
) -> None:
    await load_against(page, server)
    await page.evaluate("window.receipts = Promise.all([bus.publish('a.b', 1)]); 0")
    peer = await server.welcome()
    first = await peer.expect("publish")
    await peer.refuse(first, error("store.unavailable", retry=True, retry_after=0.3))
    await eventually(lambda: page.evaluate("'hold' in bus._timers"))
    await page.evaluate("bus.publish('a.b', 2); 0")
    payloads = [(await peer.expect("publish"))["data"]["payload"] for _ in range(2)]
    assert payloads == [1, 2]


async def test_after_a_refusal_nothing_goes_out_before_all_that_is_on_its_way_is_answered(
    page: Page, server: ScriptedServer
) -> None:
    too_fast = error("publish.too_fast", retry=True, retry_after=0.001)
    await load_against(page, server, reconnect_interval=0.001)
    await page.evaluate("bus.publish('a.b', 1), bus.publish('a.b', 2); 0")
    peer = await server.welcome()
    first, second = await peer.expect("publish"), await peer.expect("publish")
    assert (first["wave"], second["wave"]) == (0, 0)
    await peer.refuse(first, too_fast)
    await eventually(lambda: page.evaluate("'hold' in bus._timers"))
    await page.evaluate("bus.publish('a.b', 3); 0")
    await page.evaluate("new Promise((resolve) => setTimeout(resolve, 200))")  # the wait is long over
    await peer.refuse(second, too_fast)
    again = [await peer.expect("publish") for _ in range(3)]
    assert again[:2] == [{**first, "wave": 1}, {**second, "wave": 1}]
    assert (again[2]["data"]["payload"], again[2]["wave"]) == (3, 1)


async def test_beyond_the_limit_nothing_more_is_buffered(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server, max_pending=2, url="ws://127.0.0.1:9/ws")
    found = await page.evaluate(
        """(async () => {
            bus.publish("a.b", 1).catch(() => {});
            bus.publish("a.b", 2).catch(() => {});
            return bus.publish("a.b", 3).catch((error) => error.code);
        })()"""
    )
    assert found == "client.buffer_full"


async def test_it_does_not_come_back_where_the_fault_is_its_own(
    page: Page, server: ScriptedServer, console: Console
) -> None:
    console.forgive("a subscription has ended")
    peer = await start_following(page, server)
    await page.evaluate("window.failed = bus.publish('a.b', 1).catch((error) => error.message); 0")
    await peer.close(4403, "forbidden")
    assert "4403 forbidden" in await page.evaluate("failed")
    found = await page.evaluate("[bus.state, bus.error.code, subscription.is_closed]")
    assert found == ["closed", "client.refused", True]
    assert await page.evaluate("bus.publish('a.b', 1).catch((error) => error.code)") == "client.refused"


async def test_it_does_not_come_back_when_it_is_told_so(page: Page, server: ScriptedServer, console: Console) -> None:
    console.forgive("a subscription has ended")
    peer = await start_following(page, server)
    await peer.send({"type": "bye", "error": error("auth.expired"), "reconnect": False, "after": 0})
    await peer.close(1001)
    await eventually(lambda: page.evaluate("bus.state === 'closed' && bus.error.code === 'auth.expired'"))


async def test_it_comes_back_from_every_other_end(page: Page, server: ScriptedServer) -> None:
    peer = await start_following(page, server)
    codes = [1000, 1001, 1011, 1012, 4000, 4100, 4101, 4500]
    for code in codes:
        await peer.send({"type": "bye", "error": error("server.not_running"), "reconnect": True, "after": 0.01})
        await peer.close(code)
        peer = await server.welcome()
        await peer.subscribed()
    states = await page.evaluate("states")
    assert [state["state"] for state in states[:5]] == ["connecting", "open", "waiting", "connecting", "open"]
    assert [state["code"] for state in states if state["state"] == "waiting"] == codes


async def test_it_waits_as_long_as_the_server_asks_for(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server, max_reconnect_interval=30)
    await page.evaluate("bus.connect().catch(() => {}); 0")
    peer = await server.welcome()
    await peer.send({"type": "bye", "error": error("server.not_running"), "reconnect": True, "after": 12.5})
    await peer.close(1012)
    waiting = await eventually(lambda: page.evaluate("states.find(({ state }) => state === 'waiting')"))
    assert 12.5 <= waiting["pause"] <= 13
    await page.evaluate("dispatchEvent(new Event('online'))")  # the network is back: it is worth another attempt now
    await server.welcome()


async def test_a_silent_server_counts_as_lost(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server)
    await page.evaluate("bus.connect().catch(() => {}); 0")
    await server.welcome(heartbeat=0.05)
    await server.welcome()
    waiting = await page.evaluate("states.find(({ state }) => state === 'waiting')")
    assert "silent" in waiting["reason"]


async def test_a_server_that_never_welcomes_is_left(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server, open_timeout=0.1)
    await page.evaluate(
        """bus.addEventListener("state", ({ detail }) => {
            if (detail.state === "waiting") bus._options.open_timeout = 10;
        });
        window.opened = bus.connect(); 0"""
    )
    await server.accept()
    await server.welcome()
    await page.evaluate("opened")


async def test_it_pings_when_it_hears_something_and_has_said_nothing_for_a_heartbeat(
    page: Page, server: ScriptedServer
) -> None:
    await load_against(page, server)
    await page.evaluate("window.opened = bus.connect(); 0")
    peer = await server.welcome(heartbeat=60)
    await page.evaluate("opened.then(() => { bus._sent_at -= 61_000 })")
    await peer.send({"type": "heartbeat", "head": 0})
    await peer.expect("ping")


# --- tokens ---


async def start_with_tokens(page: Page, server: ScriptedServer) -> Peer:
    """Connect a page whose tokens are t1, t2 and so on, and let it in for a second or so."""
    await load_against(page, server)
    await page.evaluate(
        "window.asked = 0; bus._options.token = async () => `t${++asked}`; window.opened = bus.connect(); 0"
    )
    peer = await server.accept()
    assert (await peer.expect("auth"))["token"] == "t1"
    return peer


async def test_the_token_is_shown_first_and_renewed_before_it_has_expired(page: Page, server: ScriptedServer) -> None:
    peer = await start_with_tokens(page, server)
    await peer.welcome()
    await peer.send({"type": "ok", "id": -1, "principal": "ann", "expires_in": 1})
    assert (await peer.expect("auth"))["token"] == "t2"
    await peer.send({"type": "ok", "id": -1, "principal": "ann", "expires_in": 3600})
    assert await page.evaluate("asked") == 2
    assert server.accepted == 1


async def test_it_comes_back_with_another_token_when_one_has_expired(page: Page, server: ScriptedServer) -> None:
    peer = await start_with_tokens(page, server)
    await peer.welcome()
    await peer.send({"type": "bye", "error": error("auth.expired", status=401), "reconnect": True, "after": 0})
    await peer.close(4401)
    peer = await server.accept()
    assert (await peer.expect("auth"))["token"] == "t2"


async def test_an_expired_token_that_is_all_there_is_ends_it(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server, token="t1")
    await page.evaluate("window.failed = bus.connect().catch((error) => error.code); 0")
    peer = await server.accept()
    await peer.expect("auth")
    await peer.send({"type": "bye", "error": error("auth.expired", status=401), "reconnect": True, "after": 0})
    await peer.close(4401)
    assert await page.evaluate("failed") == "auth.expired"


async def test_without_a_token_for_the_moment_it_tries_again(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server)
    await page.evaluate(
        """window.asked = 0;
        bus._options.token = () => {
            if (++asked < 3) throw new DOMException("no network", "AbortError");
            return "t3";
        };
        bus.connect().catch(() => {}); 0"""
    )
    peer = await server.accept()
    assert (await peer.expect("auth"))["token"] == "t3"


async def test_a_token_that_never_comes_is_asked_for_again(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server, open_timeout=0.1)
    await page.evaluate(
        """window.asked = 0;
        bus._options.token = () => (++asked < 3 ? new Promise(() => {}) : "t3");
        bus.connect().catch(() => {}); 0"""
    )
    peer = await server.accept()
    assert (await peer.expect("auth"))["token"] == "t3"
    waiting = await page.evaluate("states.find(({ state }) => state === 'waiting')")
    assert "there is no token: none in time" in waiting["reason"]


async def test_a_token_that_does_not_come_in_time_for_a_renewal_is_asked_for_again(
    page: Page, server: ScriptedServer
) -> None:
    await load_against(page, server)
    await page.evaluate(
        """window.asked = 0;
        bus.addEventListener("state", ({ detail }) => {
            if (detail.state === "open") bus._options.open_timeout = 0.1;
        });
        bus._options.token = () => (++asked === 2 ? new Promise(() => {}) : `t${asked}`);
        bus.connect().catch(() => {}); 0"""
    )
    peer = await server.accept()
    assert (await peer.expect("auth"))["token"] == "t1"
    await peer.welcome()
    await peer.send({"type": "ok", "id": -1, "principal": "ann", "expires_in": 1})
    assert (await peer.expect("auth"))["token"] == "t3"
    assert server.accepted == 1


# --- who listens to the state ---


async def test_a_page_may_subscribe_as_soon_as_it_hears_that_the_connection_is_open(
    page: Page, server: ScriptedServer
) -> None:
    await load_against(page, server)
    await page.evaluate(
        """bus.addEventListener("state", ({ detail }) => {
            if (detail.state === "open") bus.subscribe("late.*");
        });
        bus.subscribe("early.*"); 0"""
    )
    peer = await server.welcome()
    frames = [await peer.expect("subscribe") for _ in range(2)]
    await page.evaluate("bus.publish('a.b', 1); 0")
    await peer.expect("publish")  # and no third one before it
    assert [frame["patterns"] for frame in frames] == [["early.*"], ["late.*"]]


async def test_a_page_may_close_as_soon_as_it_hears_that_the_connection_is_open(
    page: Page, server: ScriptedServer
) -> None:
    await load_against(page, server)
    await page.evaluate(
        """bus.addEventListener("state", ({ detail }) => detail.state === "open" && bus.close());
        bus.connect().catch(() => {}); 0"""
    )
    peer = await server.welcome()
    assert await peer.closed() == 1000
    assert await page.evaluate("[bus.state, Object.keys(bus._timers)]") == ["closed", []]


# --- a server that lies ---


UNUSABLE: list[str | bytes] = [
    "{",
    "null",
    "17",
    '"welcome"',
    "[[1]]",
    '{"sub": 1}',
    b"\x00binary",
    '{"type": "event", "sub": 1, "seq": -1, "topic": "a.b", "payload": 1}',
    '{"type": "event", "sub": 1, "seq": 1e300, "topic": "a.b"}',
    '{"type": "event", "sub": 1, "seq": "2", "topic": "a.b"}',
    '{"type": "event", "sub": 1, "seq": 2, "topic": null}',
    '{"type": "gap", "sub": 1, "first_seq": {}, "last_seq": 3, "reason": 1}',
    '{"type": "caught_up", "sub": 1}',
    '{"type": "welcome", "heartbeat": 0}',
    '{"type": "closed", "sub": 1}',
]


async def test_after_a_frame_that_cannot_be_used_it_resumes_on_another_connection(
    page: Page, server: ScriptedServer
) -> None:
    peer = await start_following(page, server)
    for seq, text in enumerate(UNUSABLE, 1):
        await peer.send(event(seq))
        await eventually(partial(has, page, *range(1, seq + 1)))
        await peer.send_text(text)
        peer = await server.welcome()
        assert (await peer.subscribed(after=seq))["after"] == seq, text


async def test_what_it_does_not_know_is_left_alone(page: Page, server: ScriptedServer) -> None:
    peer = await start_following(page, server)
    await peer.send({"type": "fortune", "sub": 1}, {"type": "__proto__"}, event(1, sub=99), event(1))
    await peer.send({"type": "ok", "id": 4711}, {"type": "error", "error": error("what.ever")})
    await peer.send_text('{"type":"closed","sub":99,"error":{}}')
    await peer.send(event(2, __proto__={"polluted": 1}))
    await eventually(lambda: has(page, 1, 2))
    assert server.accepted == 1
    assert await page.evaluate("({}).polluted === undefined")


async def test_more_events_than_any_credit_allows_end_the_connection(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server)
    await page.evaluate("window.subscription = bus.subscribe('#'); 0")  # nobody takes them
    peer = await server.welcome()
    await peer.subscribed()
    for start in range(1, 22_000, 1_000):
        await peer.send(*[event(seq) for seq in range(start, start + 1_000)])
    await server.welcome()
    await eventually(lambda: _is_empty(page))


# --- credit, gaps, ends ---


async def test_credit_is_given_as_events_are_taken(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server, window=4)
    await page.evaluate("window.events = bus.subscribe('#')[Symbol.asyncIterator](); 0")
    peer = await server.welcome()
    assert (await peer.subscribed())["credit"] == 4
    await peer.send(event(1), event(2), event(3), event(4))
    assert await page.evaluate("events.next().then(({ value }) => value.seq)") == 1
    await page.evaluate("events.next()")
    credit = await peer.expect("credit")
    assert credit["credit"] == 2


async def test_a_gap_ends_a_loop_as_an_error_and_comes_to_who_asks_for_it(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server)
    await page.evaluate(
        """window.ended = (async () => {
            const subscription = bus.subscribe("#", { after: 2 });
            try {
                for await (const event of subscription) seen.push(event.seq);
            } catch (error) {
                return [error.code, error.gap, subscription.position];
            }
        })(); 0"""
    )
    peer = await server.welcome()
    frame = await peer.subscribed(after=2)
    gap = {"first_seq": 4, "last_seq": 9, "reason": "retention"}
    await peer.send(event(3), {"type": "gap", "sub": frame["sub"], **gap})
    assert await page.evaluate("ended") == ["log.gap", gap, 9]
    assert (await peer.expect("unsubscribe"))["sub"] == frame["sub"]


async def test_the_end_of_a_subscription_is_the_end_of_its_loop(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server)
    await page.evaluate(
        """window.ended = (async () => {
            for await (const event of bus.subscribe("#")) seen.push(event.seq);
        })().catch((error) => error.code); 0"""
    )
    peer = await server.welcome()
    frame = await peer.subscribed()
    await peer.send(event(1), {"type": "closed", "sub": frame["sub"], "error": error("group.not_found")})
    assert await page.evaluate("ended") == "group.not_found"
    assert await seen(page) == [1]


async def test_a_subscription_that_the_server_ends_for_the_moment_begins_again(
    page: Page, server: ScriptedServer
) -> None:
    peer = await start_following(page, server)
    await peer.send(event(1))
    await peer.send({"type": "closed", "sub": 1, "error": error("store.unavailable", retry=True)})
    frame = await peer.subscribed(after=1)
    assert frame["after"] == 1
    await peer.send(event(2))
    await eventually(lambda: has(page, 1, 2))


async def test_events_that_a_member_has_lost_are_named_and_not_shown(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server)
    await page.evaluate("window.events = bus.subscribe('#', { group: 'g' })[Symbol.asyncIterator](); 0")
    peer = await server.welcome()
    frame = await peer.expect("subscribe")
    sub = frame["sub"]
    await peer.ok(frame, sub=sub, group="g", patterns=["#"], ack_wait=30, credit=100)
    await peer.send(event(1, sub, attempt=1), event(2, sub, attempt=1))
    await peer.send({"type": "lost", "sub": sub, "seqs": [1]})
    named = await peer.expect("nack")
    assert (named["seq"], named["attempt"]) == (1, 1)
    assert await page.evaluate("events.next().then(({ value }) => value.seq)") == 2


async def test_a_group_is_kept_while_a_callback_is_busy(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server)
    await page.evaluate("bus.on('#', () => new Promise(() => {}), { group: 'g', ack_wait: 0.3 }); 0")
    peer = await server.welcome()
    frame = await peer.expect("subscribe")
    await peer.ok(frame, sub=frame["sub"], group="g", patterns=["#"], ack_wait=0.3, credit=100)
    await peer.send(event(1, frame["sub"], attempt=1))
    extended = await peer.expect("extend")
    assert (extended["sub"], extended["up_to"]) == (frame["sub"], 2**53 - 1)


async def test_a_url_that_is_none_is_an_error_at_once(page: Page, server: ScriptedServer) -> None:
    await load_against(page, server, url="gopher://nowhere/")
    assert await page.evaluate("bus.connect().catch((error) => error.code)") == "client.refused"


async def _is_empty(page: Page) -> bool:
    return bool(await page.evaluate("subscription._items.length === 0"))
