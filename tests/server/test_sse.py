"""GET /events/stream: what is sent, to whom, and from where on."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import pytest

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.store import Ack
from tests.server.asking import assert_problem
from tests.server.sockets import ServedBus, serving_bus
from tests.server.streams import streaming
from tests.unavailable import unavailable
from tests.waiting import eventually


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_bus(tmp_path) as served:
        yield served


@pytest.fixture
def bus(served: ServedBus) -> EventBus:
    return served.bus


@pytest.fixture
def base(served: ServedBus) -> str:
    return served.served.http


# --- what is sent --------------------------------------------------------------------------------


async def test_an_event_is_a_message_whose_id_is_its_seq(bus: EventBus, base: str) -> None:
    receipt = await bus.publish("chat.user1", {"text": "Hello"}, key="k", metadata={"n": 1})

    async with streaming(base, after=0) as stream:
        block = await stream.next_of("")

    assert (block.name, block.id, block.retry) == ("", "1", None)
    timestamp = block.data["metadata"].pop("timestamp")
    assert type(timestamp) is int
    assert block.data == {
        "seq": 1,
        "message_id": str(receipt.message_id),
        "topic": "chat.user1",
        "key": "k",
        "payload": {"text": "Hello"},
        "metadata": {"n": 1, "content_type": "application/json"},
    }


async def test_nobody_on_the_way_keeps_or_holds_back_a_stream(base: str) -> None:
    async with streaming(base) as stream:
        headers = stream.answer.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert "content-length" not in headers


async def test_history_comes_first_then_what_is_live(bus: EventBus, base: str) -> None:
    await bus.publish_many([("a.b", 1), ("c", 2), ("a.b", 3)])

    async with streaming(base, pattern=["a.*"], from_="earliest") as stream:
        blocks = [await stream.next() for _ in range(4)]
        await bus.publish_many([("c", 4), ("a.x", 5)])
        live = await stream.next()

    assert [(block.name, block.id) for block in blocks] == [
        ("position", "0"),
        ("", "1"),
        ("", "3"),
        ("caught_up", None),
    ]
    assert blocks[-1].data == {"seq": 3}
    assert (live.id, live.data["topic"], live.data["payload"]) == ("5", "a.x", 5)


async def test_several_patterns_are_one_stream_in_the_order_of_the_log(bus: EventBus, base: str) -> None:
    await bus.publish_many([("a", 1), ("b.c", 2), ("d", 3), ("b.c.d", 4), ("a", 5)])

    async with streaming(base, pattern=["a", "b.#"], after=0) as stream:
        assert [event["seq"] for event in await stream.events(4)] == [1, 2, 4, 5]


async def test_without_a_pattern_it_is_the_whole_log_from_now_on(bus: EventBus, base: str) -> None:
    await bus.publish("old", 1)

    async with streaming(base) as stream:
        await stream.next_of("caught_up")
        await bus.publish("new", 2)

        assert [event["topic"] for event in await stream.events(1)] == ["new"]


async def test_a_time_begins_with_the_first_event_that_came_then(bus: EventBus, base: str) -> None:
    await bus.publish("a", 1)

    async with streaming(base, from_="2020-01-01T00:00:00Z") as past:
        assert [event["seq"] for event in await past.events(1)] == [1]
    async with streaming(base, from_="2999-01-01T00:00:00+02:00") as future:
        assert (await future.next_of("caught_up")).data == {"seq": 1}


async def test_from_with_a_seq_is_after_it(bus: EventBus, base: str) -> None:
    await bus.publish_many([("a", 1), ("a", 2)])

    async with streaming(base, from_="1") as stream:
        assert [event["seq"] for event in await stream.events(1)] == [2]


async def test_what_was_acknowledged_is_part_of_the_log_and_of_the_stream(bus: EventBus, base: str) -> None:
    await bus.publish_many([("a", 1), ("a", 2)])
    await bus.node.acknowledge([Ack(1)])

    async with streaming(base, after=0) as stream:
        assert [event["seq"] for event in await stream.events(2)] == [1, 2]


async def test_what_is_not_stored_has_no_id_to_resume_from(bus: EventBus, base: str) -> None:
    async with streaming(base) as stream:
        await stream.next_of("caught_up")
        await bus.publish("cursor.moved", {"x": 1}, durable=False)

        block = await stream.next()

    assert (block.name, block.id, block.data["seq"], block.data["payload"]) == ("", None, 0, {"x": 1})


@pytest.mark.parametrize(
    "payload",
    [
        "two\nlines\r\nand\rmore",
        "data: x\n\nid: 99\nevent: bye\n\n",
        "\u2028 and \u2029 and \x85 and \x0b",
        "",
        b"\x00\xff\n",
    ],
)
async def test_no_payload_can_leave_its_data_line(bus: EventBus, base: str, payload: str | bytes) -> None:
    await bus.publish("a", payload)
    await bus.publish("a", b'{\n "x":\r\n [1,\r2]\n}\n', content_type="application/json")

    async with streaming(base, after=0) as stream:
        blocks = [await stream.next() for _ in range(4)]

    assert [block.id for block in blocks] == ["0", "1", "2", None]
    assert [block.name for block in blocks] == ["position", "", "", "caught_up"]
    assert blocks[1].data.get("payload", "AP8K") == (payload if isinstance(payload, str) else "AP8K")
    assert blocks[2].data["payload"] == {"x": [1, 2]}


async def test_many_events_leave_in_few_writes(bus: EventBus, base: str) -> None:
    await bus.publish_many([("a", number) for number in range(1_000)])

    async with streaming(base, after=0) as stream:
        assert [event["payload"] for event in await stream.events(1_000)] == list(range(1_000))

    assert len(stream.writes) < 100


async def test_readers_share_the_text_of_what_is_live(bus: EventBus, base: str) -> None:
    async with streaming(base) as one, streaming(base) as other:
        for stream in (one, other):
            await stream.next_of("caught_up")
        await bus.publish("a", 1)
        for stream in (one, other):
            await stream.events(1)
        [channel] = {subscription._channel for subscription in bus.node._subscriptions}

        assert channel is not None
        assert [list(batch._texts) for batch in channel.batches] == [["sse"]]


# --- resuming ------------------------------------------------------------------------------------


async def test_the_last_event_id_wins_over_where_the_stream_began(bus: EventBus, base: str) -> None:
    await bus.publish_many([("a", 1), ("a", 2), ("a", 3)])

    for start in ({"after": 0}, {"from_": "now"}, {"from_": "earliest"}, {}):
        async with streaming(base, headers={"Last-Event-ID": "1"}, **start) as stream:
            assert [event["seq"] for event in await stream.events(2)] == [2, 3]


async def test_who_began_now_and_saw_nothing_misses_nothing_while_away(bus: EventBus, base: str) -> None:
    """A browser asks for `from=now` again, and has no event to resume from: the first block is one."""
    await bus.publish("a", "old")
    async with streaming(base, pattern=["a"]) as stream:
        position = await stream.next()
    await bus.publish("a", "while away")

    async with streaming(base, pattern=["a"], headers={"Last-Event-ID": position.id or ""}) as again:
        assert (position.name, position.data) == ("position", {"seq": 1})
        assert [event["payload"] for event in await again.events(1)] == ["while away"]


async def test_a_silence_moves_the_position_past_what_does_not_match(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.05) as served, streaming(served.served.http, pattern=["a"]) as stream:
        await stream.next_of("caught_up")
        await served.bus.publish_many([("b", number) for number in range(7)])

        position = await stream.next_of("position")

        assert (position.id, position.data) == ("7", {"seq": 7})
        assert "heartbeat" in stream.comments


async def test_an_empty_log_that_was_made_anew_is_told_once(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.05) as served:
        async with streaming(served.served.http, headers={"Last-Event-ID": "1000"}) as stream:
            position = await stream.next_of("position")
        async with streaming(served.served.http, headers={"Last-Event-ID": position.id or ""}) as again:
            words = [(await again.next()).name for _ in range(2)]

    assert position.id == "0"
    assert words == ["position", "caught_up"]


async def test_a_position_never_takes_a_reader_back(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.002) as served, streaming(served.served.http) as stream:
        ids: list[int] = []
        for number in range(300):
            await served.bus.publish("a" if number % 2 else "b", number)
        while not ids or ids[-1] < 300:
            block = await stream.next()
            if block.id is not None:
                ids.append(int(block.id))

    assert ids == sorted(ids)


async def test_an_id_beyond_the_log_is_of_one_that_was_made_anew(bus: EventBus, base: str) -> None:
    await bus.publish_many([("a", 1), ("a", 2)])

    async with streaming(base, headers={"Last-Event-ID": "1000"}) as stream:
        gap = await stream.next_of("gap")

        assert (gap.id, gap.data) == (None, {"first_seq": 0, "last_seq": 0, "reason": "epoch"})
        assert [event["seq"] for event in await stream.events(2)] == [1, 2]


async def test_what_retention_has_removed_is_told(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, retention_count=1) as served:
        await served.bus.publish_many([("a", 1), ("a", 2), ("a", 3)])
        await served.bus.node.retention.run_once()

        async with streaming(served.served.http, after=0) as stream:
            position, gap = await stream.next(), await stream.next()

            assert position.id == "0"  # whoever is cut off here is told of the gap when they come back
            assert (gap.id, gap.data) == (None, {"first_seq": 1, "last_seq": 2, "reason": "retention"})
            assert [event["seq"] for event in await stream.events(1)] == [3]


async def test_no_word_of_the_bus_but_its_position_has_an_id(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, stream_lifetime=0.3, retention_count=1) as served:
        await served.bus.publish_many([("a", 1), ("a", 2)])
        await served.bus.node.retention.run_once()
        async with streaming(served.served.http, after=0) as stream:
            blocks = await stream.rest()

    words = {block.name: block.id for block in blocks if block.name}
    assert words == {"position": "0", "gap": None, "caught_up": None, "bye": None}


# --- refusals ------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], dict[str, str], str, tuple[str, ...]]] = [
    ({"pattern": "user.*x"}, {}, "pattern.invalid", ("segment 2",)),
    ({"pattern": ""}, {}, "pattern.invalid", ("empty",)),
    ({"pattern": "a\r\nb"}, {}, "pattern.invalid", ()),
    ({"pattern": ["a"] * 101}, {}, "request.invalid", ("pattern", "100")),
    ({"after": "-1"}, {}, "request.invalid", ("after",)),
    ({"after": "soon"}, {}, "request.invalid", ("after", "soon")),
    ({"after": str(2**63)}, {}, "request.invalid", ("after",)),
    ({"after": "1", "from": "now"}, {}, "request.invalid", ("'after' and 'from'",)),
    ({"from": "later"}, {}, "request.invalid", ("'from'", "'later'")),
    ({"from": "2026-01-01T00:00:00"}, {}, "request.invalid", ("'from'", "RFC 3339")),
    ({"from": "-5"}, {}, "request.invalid", ("'from'",)),
    ({"from": "٣"}, {}, "request.invalid", ("'from'",)),
    ({"from": "9" * 10_000}, {}, "request.invalid", ("'from'",)),
    ({"overflow": "block"}, {}, "request.invalid", ("overflow", "drop_oldest")),
    ({"buffer": "0"}, {}, "request.invalid", ("buffer",)),
    ({}, {"Last-Event-ID": "seventeen"}, "request.invalid", ("Last-Event-ID", "seventeen")),
    ({}, {"Last-Event-ID": "-1"}, "request.invalid", ("Last-Event-ID",)),
    ({}, {"Last-Event-ID": str(2**63)}, "request.invalid", ("Last-Event-ID",)),
    ({}, {"Last-Event-ID": "9" * 5_000}, "request.invalid", ("Last-Event-ID",)),
]


@pytest.mark.parametrize(("params", "headers", "code", "words"), REFUSED)
async def test_a_request_that_cannot_be_meant_is_refused_before_the_stream(
    base: str, params: dict[str, Any], headers: dict[str, str], code: str, words: tuple[str, ...]
) -> None:
    async with httpx.AsyncClient(base_url=base, timeout=30) as http:
        answer = await http.get("/events/stream", params=params, headers=headers)

    assert_problem(answer, 422, code, *words)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "PATCH"])
async def test_other_methods_are_refused(base: str, method: str) -> None:
    async with httpx.AsyncClient(base_url=base, timeout=30) as http:
        answer = await http.request(method, "/events/stream")

    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_bus_that_does_not_run_begins_no_stream(served: ServedBus, base: str) -> None:
    await served.bus.stop()
    async with httpx.AsyncClient(base_url=base, timeout=30) as http:
        answer = await http.get("/events/stream")

    assert_problem(answer, 503, "server.not_running")


# --- other people's clients ----------------------------------------------------------------------


async def test_httpx_sse_reads_events_and_sees_no_empty_ones(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.02) as served, httpx.AsyncClient(timeout=30) as http:
        url = served.served.http + "/events/stream"
        got: list[httpx_sse.ServerSentEvent] = []
        async with httpx_sse.aconnect_sse(http, "GET", url, params={"pattern": "a.#"}) as source:
            async for sse in source.aiter_sse():
                got.append(sse)
                if sse.event == "caught_up":
                    await served.bus.publish_many([("a.\u0062", "line\u2028separator"), ("b", 0), ("a.c", {"n": 1})])
                    await eventually(lambda: served.bus.node.dispatcher.position == 3)
                if sse.id == "3":
                    break

    assert all(sse.data for sse in got)
    events = [sse.json() for sse in got if sse.event == "message"]
    assert [(event["seq"], event["payload"]) for event in events] == [(1, "line\u2028separator"), (3, {"n": 1})]


async def test_curl_shows_events_as_they_come(bus: EventBus, base: str) -> None:
    curl = shutil.which("curl") or unavailable("curl is not installed")
    await bus.publish("chat.user1", "Hello")
    running = await asyncio.create_subprocess_exec(
        curl,
        "--silent",
        "--no-buffer",
        f"{base}/events/stream?pattern=chat.%23&after=0",
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert running.stdout is not None
        async with asyncio.timeout(10):
            lines = [(await running.stdout.readline()).decode().rstrip("\n") for _ in range(7)]
    finally:
        running.terminate()
        await running.wait()

    assert lines[0].startswith("retry: ")
    assert lines[1:4] == ["id: 0", "event: position", 'data: {"seq":0}']
    assert lines[5] == "id: 1"
    assert json.loads(lines[6].removeprefix("data: "))["payload"] == "Hello"
