"""GET /events, GET /events/{seq}, GET /healthz and GET /readyz."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.store import Ack
from tests.server.asking import app_of, asking, assert_problem, bus_on


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with bus_on(tmp_path, page_size=10) as eventbus:
        yield eventbus


@pytest.fixture
async def http(eventbus: EventBus) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(app_of(eventbus)) as client:
        yield client


def seqs(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [event["seq"] for event in answer.json()["events"]]


# --- history -------------------------------------------------------------------------------------


async def test_an_empty_log_is_an_empty_page(http: httpx.AsyncClient) -> None:
    answer = await http.get("/events")

    assert answer.status_code == 200
    assert answer.json() == {"events": [], "next": None, "head": 0, "first_seq": 1}


async def test_an_event_looks_as_it_does_on_the_wire(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    receipt = await eventbus.publish("chat.user1", "Hello", key="user-1", metadata={"source": "test"})
    [message] = (await eventbus.node.history(["#"], 0, 1)).messages

    answer = await http.get("/events")

    assert answer.json() == {
        "events": [
            {
                "seq": 1,
                "message_id": str(receipt.message_id),
                "topic": "chat.user1",
                "payload": "Hello",
                "key": "user-1",
                "metadata": {
                    "source": "test",
                    "timestamp": message.created_at // 1_000_000,
                    "content_type": "text/plain",
                },
            }
        ],
        "next": None,
        "head": 1,
        "first_seq": 1,
    }


@pytest.mark.parametrize(
    ("payload", "member", "value"),
    [
        ({"a": [1, None]}, "payload", {"a": [1, None]}),
        (None, "payload", None),
        ("é\u2028", "payload", "é\u2028"),
        (b"\x00\xff", "payload_base64", "AP8="),
    ],
)
async def test_a_payload_comes_back_as_it_was_published(
    eventbus: EventBus, http: httpx.AsyncClient, payload: Any, member: str, value: Any
) -> None:
    await eventbus.publish("a", payload)

    [event] = (await http.get("/events")).json()["events"]

    assert event[member] == value


async def test_pages_lead_through_the_whole_log_once_and_in_order(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await eventbus.publish_many([("a", number) for number in range(25)])
    seen: list[int] = []
    after: int | None = 0

    while after is not None:
        answer = await http.get("/events", params={"after": after, "limit": 7})
        seen += seqs(answer)
        after = answer.json()["next"]
        assert answer.json()["head"] == 25

    assert seen == list(range(1, 26))


async def test_a_full_page_at_the_end_of_the_log_is_the_last(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await eventbus.publish_many([("a", number) for number in range(3)])

    answer = await http.get("/events", params={"limit": 3})

    assert answer.json()["next"] is None


async def test_only_what_matches_any_of_the_patterns_is_answered(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await eventbus.publish_many([("a.x", 1), ("b.x", 2), ("b.y", 3), ("c", 4)])

    assert seqs(await http.get("/events", params={"pattern": "b.*"})) == [2, 3]
    assert seqs(await http.get("/events", params={"pattern": ["a.#", "c", "c"]})) == [1, 4]
    assert seqs(await http.get("/events", params={"pattern": "nothing"})) == []


async def test_a_rare_pattern_is_found_by_following_next(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    # More than one request looks through: ten pages of ten events.
    await eventbus.publish_many([("often", number) for number in range(250)])
    await eventbus.publish("rare", "here")
    found: list[int] = []
    after: int | None = 0
    pages = 0

    while after is not None:
        answer = await http.get("/events", params={"pattern": "rare", "after": after})
        found += seqs(answer)
        after = answer.json()["next"]
        pages += 1

    assert found == [251]
    assert pages > 1


async def test_a_page_has_100_events_unless_told(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await eventbus.publish_many([("a", number) for number in range(101)])

    answer = await http.get("/events", params={"after": "0"})

    assert seqs(answer) == list(range(1, 101))
    assert answer.json()["next"] == 100


async def test_history_beyond_the_head_is_empty(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await eventbus.publish("a", 1)

    answer = await http.get("/events", params={"after": 2**53 - 1})

    assert answer.json() == {"events": [], "next": None, "head": 1, "first_seq": 1}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("after=-1", ["query parameter 'after'", "greater than or equal to 0", "got '-1'"]),
        ("after=1e3", ["query parameter 'after'", "integer", "got '1e3'"]),
        ("after=9223372036854775808", ["query parameter 'after'", "less than or equal"]),
        ("after=" + "9" * 5_000, ["query parameter 'after'"]),
        ("limit=0", ["query parameter 'limit'", "greater than or equal to 1", "got '0'"]),
        ("limit=1001", ["query parameter 'limit'", "less than or equal to 1000", "got '1001'"]),
        ("limit=x%0A", ["query parameter 'limit'", "integer", r"got 'x\n'"]),
        ("after=x&limit=y", ["'after'", "'limit'"]),
        ("pattern=a&" * 101, ["query parameter 'pattern'", "at most 100 items"]),
    ],
)
async def test_a_parameter_that_cannot_be_used_is_refused(
    http: httpx.AsyncClient, query: str, words: list[str]
) -> None:
    answer = await http.get(f"/events?{query}")

    assert_problem(answer, 422, "request.invalid", *words)
    assert len(answer.text) < 2_000


async def test_a_bad_pattern_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.get("/events", params={"pattern": ["a.*", "a..b"]})

    assert_problem(answer, 422, "pattern.invalid", "'a..b'", "segment 2 is empty")


# --- one event -----------------------------------------------------------------------------------


async def test_one_event_tells_whether_it_was_acknowledged(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await eventbus.publish("a", {"x": 1})

    before = await http.get("/events/1")
    await eventbus.node.acknowledge([Ack(1, None)])
    after = await http.get("/events/1")

    assert before.status_code == after.status_code == 200
    assert before.json()["payload"] == {"x": 1}
    assert (before.json()["status"], after.json()["status"]) == ("pending", "processed")
    assert {**before.json(), "status": "processed"} == after.json()


async def test_an_event_that_is_not_in_the_log_is_not_found(http: httpx.AsyncClient) -> None:
    assert_problem(await http.get("/events/17"), 404, "event.not_found", "17")


@pytest.mark.parametrize("seq", ["0", "-1", "x", "1.5", "9223372036854775808"])
async def test_a_seq_that_cannot_be_one_is_refused(http: httpx.AsyncClient, seq: str) -> None:
    assert_problem(await http.get(f"/events/{seq}"), 422, "request.invalid", "path parameter 'seq'", repr(seq))


# --- health --------------------------------------------------------------------------------------


async def test_a_running_bus_is_healthy_and_ready(http: httpx.AsyncClient) -> None:
    health, ready = await http.get("/healthz"), await http.get("/readyz")

    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


async def test_a_bus_whose_fan_out_is_away_is_ready_and_says_so(tmp_path: Path) -> None:
    async with bus_on(tmp_path, fanout="nats://127.0.0.1:1") as eventbus, asking(app_of(eventbus)) as http:
        ready = await http.get("/readyz")

    remarks = ["fan-out is away; live events are read from the database"]
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "remarks": remarks})


async def test_a_bus_that_is_not_started_is_healthy_and_not_ready(tmp_path: Path) -> None:
    async with asking(app_of(bus_on(tmp_path))) as http:
        health, ready = await http.get("/healthz"), await http.get("/readyz")

    assert health.status_code == 200
    assert ready.status_code == 503
    assert ready.headers["content-type"] == "application/problem+json"
    assert ready.headers["retry-after"] == "1"
    assert ready.json()["code"] == "server.not_ready"
    assert ready.json()["problems"] == ["the bus is not running"]


async def test_a_bus_whose_tables_are_of_another_version_is_not_ready(http: httpx.AsyncClient, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "eventbus.db") as database:
        database.execute("UPDATE bus_alembic_version SET version_num = '9999'")
    database.close()

    ready = await http.get("/readyz")

    assert ready.status_code == 503
    assert "9999" in ready.json()["problems"][0]


async def test_answers_are_not_kept_by_caches(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await eventbus.publish("a", 1)

    for path in ("/events", "/events/1", "/events/2", "/healthz", "/readyz"):
        assert (await http.get(path)).headers["cache-control"] == "no-store"
