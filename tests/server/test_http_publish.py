"""POST /publish."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from eventbus_fastapi import EventBus, Message
from tests.server.asking import app_of, asking, assert_problem, bus_on
from tests.waiting import eventually

ID = "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3"
JSON = {"content-type": "application/json"}


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with bus_on(tmp_path, max_body=65_536, max_payload=1_000, max_batch=5, max_depth=8) as eventbus:
        yield eventbus


@pytest.fixture
async def http(eventbus: EventBus) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(app_of(eventbus)) as client:
        yield client


async def logged(eventbus: EventBus) -> list[Message]:
    return (await eventbus.node.history(["#"], 0, 1_000)).messages


# --- what is published ---------------------------------------------------------------------------


async def test_an_event_is_stored_and_answered_with_its_place(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    answer = await http.post("/publish", json={"topic": "chat.user1", "payload": "Hello"})

    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    [message] = await logged(eventbus)
    assert (message.topic, message.payload, message.content_type) == ("chat.user1", "Hello", "text/plain")
    assert answer.json() == {"seq": 1, "message_id": str(message.message_id), "duplicate": False}


async def test_the_same_is_stored_once_and_answered_with_the_first_one(
    eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    event = {"topic": "a", "payload": {"id": 1}, "tags": ["x"], "unique": {"fields": ["id"], "within": 60}}

    first = await http.post("/publish", json=event)
    again = await http.post("/publish", json=[event, {**event, "payload": {"id": 2}}])

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json()[0] == {**first.json(), "duplicate": True}
    assert [(message.payload, message.tags) for message in await logged(eventbus)] == [
        ({"id": 1}, ("x",)),
        ({"id": 2}, ("x",)),
    ]


async def test_everything_that_an_event_may_carry_is_stored(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    event = {
        "topic": "user.created",
        "payload": {"id": 1, "tags": [None, 1.5, "é"]},
        "message_id": ID,
        "key": "user-1",
        "metadata": {"source": "signup"},
        "ttl": 3600,
    }

    assert (await http.post("/publish", json=event)).json()["message_id"] == ID

    [message] = await logged(eventbus)
    assert message.payload == {"id": 1, "tags": [None, 1.5, "é"]}
    assert (message.message_id, message.key, message.metadata) == (UUID(ID), "user-1", {"source": "signup"})
    assert message.expires_at == message.created_at + 3_600_000_000


@pytest.mark.parametrize("payload", [None, False, 0, "", [], {}])
async def test_an_empty_payload_is_a_payload(eventbus: EventBus, http: httpx.AsyncClient, payload: Any) -> None:
    assert (await http.post("/publish", json={"topic": "a", "payload": payload})).status_code == 201

    assert (await logged(eventbus))[0].payload == payload


async def test_bytes_come_as_base64(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    event = {"topic": "image.added", "payload_base64": "iVBORw0KGgo=", "content_type": "image/png"}

    assert (await http.post("/publish", json=event)).status_code == 201

    [message] = await logged(eventbus)
    assert (message.body, message.content_type) == (b"\x89PNG\r\n\x1a\n", "image/png")


async def test_a_list_is_published_in_order_and_answered_in_order(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    answer = await http.post("/publish", json=[{"topic": "a", "payload": number} for number in range(5)])

    assert answer.status_code == 201
    assert [result["seq"] for result in answer.json()] == [1, 2, 3, 4, 5]
    messages = await logged(eventbus)
    assert [message.payload for message in messages] == [0, 1, 2, 3, 4]
    assert [result["message_id"] for result in answer.json()] == [str(message.message_id) for message in messages]


async def test_a_list_with_one_bad_event_stores_nothing(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    answer = await http.post("/publish", json=[{"topic": "a", "payload": 1}, {"topic": "a..b", "payload": 2}])

    assert_problem(answer, 422, "topic.invalid", "events[1]", "'a..b'", "segment 2 is empty")
    assert await logged(eventbus) == []


async def test_the_same_message_id_is_stored_once(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    event = {"topic": "a", "payload": 1, "message_id": ID}
    await http.post("/publish", json=event)

    again = await http.post("/publish", json=event)

    assert again.status_code == 201
    assert again.json() == {"seq": 1, "message_id": ID, "duplicate": True}
    assert len(await logged(eventbus)) == 1


async def test_unknown_fields_and_nulls_are_ignored(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    event = {"topic": "a", "payload": 1, "colour": "red", "seq": 99, "key": None, "ttl": None, "durable": None}

    assert (await http.post("/publish", json=event)).json()["seq"] == 1


async def test_a_delayed_event_has_no_seq_yet(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    answer = await http.post("/publish", json={"topic": "a", "payload": 1, "delay": 60, "message_id": ID})

    assert answer.status_code == 201
    assert answer.json() == {"seq": None, "message_id": ID, "duplicate": False}


async def test_an_event_that_is_not_durable_reaches_who_listens_and_is_not_stored(
    eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    async with eventbus.subscribe("#") as subscription:
        reading = asyncio.ensure_future(anext(subscription))
        await eventually(lambda: subscription.is_live)

        answer = await http.post("/publish", json={"topic": "a", "payload": 1, "durable": False, "message_id": ID})

        assert answer.json() == {"seq": None, "message_id": ID, "duplicate": False, "durable": False}
        assert (await reading).payload == 1
    assert await logged(eventbus) == []


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "code", "words"),
    [
        ({"payload": 1}, "request.invalid", ["'topic'", "missing"]),
        ({"topic": None, "payload": 1}, "request.invalid", ["'topic'", "missing"]),
        ({"topic": "a"}, "request.invalid", ["'payload'", "missing"]),
        ({"topic": 7, "payload": 1}, "request.invalid", ["'topic'", "a string", "got 7"]),
        ({"topic": "a", "payload": 1, "ttl": "1"}, "request.invalid", ["'ttl'", "seconds", "got '1'"]),
        ({"topic": "a", "payload": 1, "ttl": True}, "request.invalid", ["'ttl'", "seconds", "got true"]),
        ({"topic": "a", "payload": 1, "delay": -1}, "request.invalid", ["'delay'", "≥ 0", "got -1"]),
        ({"topic": "a", "payload": 1, "durable": "no"}, "request.invalid", ["'durable'", "true or false", "'no'"]),
        ({"topic": "a", "payload": 1, "metadata": []}, "request.invalid", ["'metadata'", "an object", "a list"]),
        ({"topic": "a", "payload": 1, "payload_base64": "aGk="}, "request.invalid", ["one of them"]),
        ({"topic": "a", "payload_base64": "!"}, "request.invalid", ["'payload_base64'", "base64"]),
        ({"topic": "user.*", "payload": 1}, "topic.invalid", ["'user.*'", "wildcard"]),
        ({"topic": "a", "payload": 1, "message_id": "1"}, "event.invalid", ["message_id", "UUID", "'1'"]),
        ({"topic": "a", "payload": 1, "metadata": {"timestamp": 1}}, "event.invalid", ["'timestamp'", "reserved"]),
        ({"topic": "a", "payload": 1, "content_type": "text/plain"}, "payload.invalid", ["text/plain", "int"]),
        ({"topic": "a", "payload": 1, "durable": False, "delay": 1}, "event.invalid", ["durable", "delay"]),
        ({"topic": "a", "payload": [[[[[[[[[1]]]]]]]]]}, "payload.invalid", ["deep"]),
        ({"topic": "a", "payload": 1, "tags": "x"}, "request.invalid", ["'tags'", "a list", "'x'"]),
        ({"topic": "a", "payload": 1, "tags": ["x", "x"]}, "event.invalid", ["'x'", "twice"]),
        ({"topic": "a", "payload": 1, "unique": True}, "request.invalid", ["'unique'", "an object", "true"]),
        ({"topic": "a", "payload": 1, "unique": {"field": []}}, "request.invalid", ["'unique'", "'field'", "fields"]),
        ({"topic": "a", "payload": 1, "unique": {"within": "1"}}, "request.invalid", ["'unique'", "'within'", "'1'"]),
        ({"topic": "a", "payload": 1, "unique": {"within": 0}}, "event.invalid", ["unique.within", "more than 0"]),
        ({"topic": "a", "payload": 1, "unique": {"fields": ["x"]}}, "event.invalid", ["JSON object", "int"]),
        ({"topic": "a", "payload": 1, "unique": {}, "durable": False}, "event.invalid", ["durable", "unique"]),
        ([], "request.invalid", ["at least one", "empty list"]),
        ([1], "request.invalid", ["events[0]", "an event object", "got 1"]),
        ([[]], "request.invalid", ["events[0]", "an event object", "a list of 0"]),
        ("a", "request.invalid", ["an event object", "'a'"]),
        (None, "request.invalid", ["an event object", "null"]),
        (
            [{"topic": "a", "payload": 1}, {"topic": "a", "payload": 1, "durable": False}],
            "request.invalid",
            ["'durable'", "same value"],
        ),
    ],
)
async def test_an_event_that_breaks_a_rule_is_refused_with_what_was_expected_and_what_came(
    eventbus: EventBus, http: httpx.AsyncClient, event: Any, code: str, words: list[str]
) -> None:
    answer = await http.post("/publish", content=json.dumps(event), headers=JSON)

    assert_problem(answer, 422, code, *words)
    assert answer.json()["retry"] is False
    assert await logged(eventbus) == []


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        '{"topic": "a", "payload": 1} 2',
        '{"topic": "a", "payload": NaN}',
        '{"topic": "a", "payload": Infinity}',
        '{"topic": "a", "payload": 1e400}',
        '{"topic": "a", "payload": "\\ud800"}',
        '{"topic": "a", "topic": "b", "payload": 1}',
        '{"topic": "a", "payload": {"x": 1, "x": 2}}',
        '{"topic": "a", "payload": ' + "[" * 30_000,
        '{"topic": "a", "payload": ' + "[" * 10_000 + "]" * 10_000 + "}",
        '{"topic": "a", "payload": ' + "9" * 5_000 + "}",
        b'\xef\xbb\xbf{"topic": "a", "payload": 1}',
        b'{"topic": "a", "payload": "\xff"}',
    ],
    ids=str,
)
async def test_json_that_not_every_database_and_reader_can_hold_is_refused(
    eventbus: EventBus, http: httpx.AsyncClient, body: str | bytes
) -> None:
    answer = await http.post("/publish", content=body, headers=JSON)

    assert_problem(answer, 422, "request.invalid", "the body cannot be used")
    assert await logged(eventbus) == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/jsonp"},
        {"content-type": "text/plain; application/json"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json; profile=" + "x" * 200},
        {**JSON, "content-encoding": "gzip"},
    ],
    ids=str,
)
async def test_a_body_of_another_type_is_refused(
    eventbus: EventBus, http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await http.post("/publish", content='{"topic": "a", "payload": 1}', headers=headers)

    assert_problem(answer, 415, "request.media_type", "expected")
    assert await logged(eventbus) == []


async def test_a_long_content_type_is_refused_at_once(http: httpx.AsyncClient) -> None:
    began = time.process_time()
    answer = await http.post(
        "/publish", content="{}", headers={"content-type": 'application/json; a="' + ";" * 150_000}
    )

    assert_problem(answer, 415, "request.media_type", "expected")
    assert time.process_time() - began < 2  # a parser that looks for each ; from the start takes ten seconds


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json;",
        "application/json; charset=UTF-8",
        "application/json;charset=utf8",
        'application/json; charset="utf-8"; version=1',
    ],
)
async def test_json_may_name_its_charset(http: httpx.AsyncClient, content_type: str) -> None:
    body = '{"topic": "a", "payload": "é"}'.encode()

    assert (await http.post("/publish", content=body, headers={"content-type": content_type})).status_code == 201


async def test_a_payload_at_its_limit_is_stored_and_one_byte_more_is_refused(
    eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    fits = await http.post("/publish", json={"topic": "a", "payload": "x" * 1_000})
    exceeds = await http.post("/publish", json={"topic": "a", "payload": "x" * 1_001})

    assert fits.status_code == 201
    assert_problem(exceeds, 413, "payload.too_large", "1,001", "1,000", "EVENTBUS_MAX_PAYLOAD")
    assert len(await logged(eventbus)) == 1


async def test_a_list_beyond_its_limit_is_refused(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    answer = await http.post("/publish", json=[{"topic": "a", "payload": 1}] * 6)

    assert_problem(answer, 413, "batch.too_large", "6 events", "limit is 5")
    assert await logged(eventbus) == []


async def test_a_body_at_its_limit_is_read_and_one_byte_more_is_refused(http: httpx.AsyncClient) -> None:
    event = b'{"topic": "a", "payload": 1}'

    fits = await http.post("/publish", content=event.ljust(65_536), headers=JSON)
    exceeds = await http.post("/publish", content=event.ljust(65_537), headers=JSON)

    assert fits.status_code == 201
    assert_problem(exceeds, 413, "request.too_large", "65,536 bytes", "EVENTBUS_MAX_BODY")


# httpx.ASGITransport hands a body over chunk by chunk, as the app asks for it.


async def test_a_body_without_a_length_is_refused_before_it_is_read_whole(http: httpx.AsyncClient) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 10_000_000:
            read += 10_000
            yield b" " * 10_000

    answer = await http.post("/publish", content=endless(), headers=JSON)

    assert_problem(answer, 413, "request.too_large")
    assert read <= 65_536 + 10_000


@pytest.mark.parametrize("length", ["65537", "9" * 30, "9" * 5_000])
async def test_a_body_whose_length_says_too_much_is_refused_unread(http: httpx.AsyncClient, length: str) -> None:
    was_read = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal was_read
        was_read = True
        yield b" "

    answer = await http.post("/publish", content=body(), headers={**JSON, "content-length": length})

    assert_problem(answer, 413, "request.too_large")
    assert not was_read


async def test_a_body_that_says_a_smaller_length_than_it_has_is_refused_all_the_same(
    http: httpx.AsyncClient,
) -> None:
    async def more() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 10_000

    answer = await http.post("/publish", content=more(), headers={**JSON, "content-length": "2"})

    assert_problem(answer, 413, "request.too_large")


async def test_what_a_stranger_sent_is_shown_escaped_and_short(http: httpx.AsyncClient) -> None:
    answer = await http.post("/publish", json={"topic": "a\n\x1b[31m" + "x" * 1_000, "payload": 1})

    message = answer.json()["message"]
    assert message.isprintable()
    assert len(message) < 300


# --- what the database cannot do now -------------------------------------------------------------


async def test_a_bus_that_is_not_started_says_so(tmp_path: Path) -> None:
    async with asking(app_of(bus_on(tmp_path))) as http:
        answer = await http.post("/publish", json={"topic": "a", "payload": 1})

    assert_problem(answer, 503, "server.not_running", "not running")
    assert answer.json()["retry"] is True


async def test_a_database_that_is_busy_is_a_matter_of_trying_again(tmp_path: Path) -> None:
    async with bus_on(tmp_path, busy_timeout=0.05) as eventbus, asking(app_of(eventbus)) as http:
        event = {"topic": "a", "payload": 1, "message_id": ID}
        with contextlib.closing(sqlite3.connect(tmp_path / "eventbus.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            busy = await http.post("/publish", json=event)
        free = await http.post("/publish", json=event)

    assert_problem(busy, 503, "store.unavailable")
    assert busy.json()["retry"] is True
    assert busy.headers["retry-after"] == "1"
    assert free.json() == {"seq": 1, "message_id": ID, "duplicate": False}


async def test_200_publish_at_once_and_one_bad_event_fails_alone(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    events = [{"topic": "a" if number != 77 else "a..", "payload": number} for number in range(200)]

    answers = await asyncio.gather(*(http.post("/publish", content=json.dumps(e), headers=JSON) for e in events))

    assert [answer.status_code for answer in answers].count(201) == 199
    assert answers[77].status_code == 422
    assert {message.payload for message in await logged(eventbus)} == set(range(200)) - {77}
