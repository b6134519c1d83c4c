"""`Idempotency-Key` on POST /publish: a request that is repeated publishes once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from eventbus_fastapi import EventBus
from tests.server.asking import app_of, asking, assert_problem

UUID_KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"
EVENT = {"topic": "a", "payload": {"n": 1}}


@pytest.fixture
async def http(bus: EventBus) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a bus, on each database in turn."""
    async with asking(app_of(bus)) as client:
        yield client


async def publish(http: httpx.AsyncClient, body: Any, key: str | bytes = "first") -> httpx.Response:
    value = key if isinstance(key, bytes) else key.encode()
    return await http.post("/publish", json=body, headers={b"Idempotency-Key": value})


async def head(http: httpx.AsyncClient) -> int:
    return int((await http.get("/events")).json()["head"])


async def test_a_repeated_request_is_answered_as_the_first_one(http: httpx.AsyncClient) -> None:
    first = await publish(http, EVENT)
    again = await publish(http, EVENT)

    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["duplicate"] is False
    assert again.json() == {**first.json(), "duplicate": True}
    assert await head(http) == 1


async def test_a_list_is_known_again_as_a_whole(http: httpx.AsyncClient) -> None:
    body = [{"topic": "a", "payload": 1, "metadata": {"b": 1, "a": [2]}}, {"topic": "b", "payload": "x", "key": "k"}]
    first = (await publish(http, body)).json()
    again = (await publish(http, body)).json()

    assert again == [{**receipt, "duplicate": True} for receipt in first]
    assert await head(http) == 2


@pytest.mark.databases("sqlite")
async def test_a_key_that_is_a_uuid_is_the_message_id_of_one_event(http: httpx.AsyncClient) -> None:
    assert (await publish(http, EVENT, UUID_KEY)).json()["message_id"] == UUID_KEY
    same = await publish(http, {**EVENT, "message_id": UUID_KEY}, UUID_KEY)
    assert same.json() == {"seq": 1, "message_id": UUID_KEY, "duplicate": True}


@pytest.mark.databases("sqlite")
async def test_other_keys_are_other_requests(http: httpx.AsyncClient) -> None:
    seqs = [(await publish(http, EVENT, key)).json()["seq"] for key in ("a", "b", "A", "a b", UUID_KEY)]

    assert seqs == [1, 2, 3, 4, 5]


@pytest.mark.databases("sqlite")
async def test_a_key_in_quotes_is_the_same_as_without(http: httpx.AsyncClient) -> None:
    assert (await publish(http, EVENT, 'a"b\\c')).json()["duplicate"] is False
    assert (await publish(http, EVENT, '"a\\"b\\\\c"')).json()["duplicate"] is True


@pytest.mark.parametrize(
    "other",
    [
        {"topic": "b", "payload": {"n": 1}},
        {"topic": "a", "payload": {"n": 2}},
        {"topic": "a", "payload": {"n": 1}, "key": "k"},
        {"topic": "a", "payload": {"n": 1}, "metadata": {"x": 1}},
        {"topic": "a", "payload": {"n": 1}, "content_type": "application/x+json"},
        [{"topic": "a", "payload": {"n": 1}}],
    ],
)
@pytest.mark.databases("sqlite")
async def test_a_key_that_was_used_for_something_else_is_refused_and_stores_nothing(
    http: httpx.AsyncClient, other: Any
) -> None:
    await publish(http, EVENT)

    assert_problem(await publish(http, other), 422, "idempotency.reused")
    assert await head(http) == 1


LIST = [{"topic": "a", "payload": number} for number in range(3)]


@pytest.mark.parametrize(
    "other",
    [LIST[:2], [*LIST, LIST[0]], [LIST[1], LIST[0], LIST[2]], [*LIST[:2], {"topic": "a", "payload": 9}], LIST[0]],
)
@pytest.mark.databases("sqlite")
async def test_a_list_that_is_another_is_refused_and_stores_nothing(http: httpx.AsyncClient, other: Any) -> None:
    await publish(http, LIST)

    assert_problem(await publish(http, other), 422, "idempotency.reused")
    assert await head(http) == 3


async def test_of_requests_that_come_together_one_publishes(http: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(publish(http, LIST) for _ in range(5)))

    assert {answer.status_code for answer in answers} == {201}
    assert sorted(answer.json()[0]["duplicate"] for answer in answers) == [False, True, True, True, True]
    assert {tuple(receipt["seq"] for receipt in answer.json()) for answer in answers} == {(1, 2, 3)}


@pytest.mark.databases("sqlite")
async def test_what_waits_for_its_time_is_known_again(http: httpx.AsyncClient) -> None:
    later = {**EVENT, "delay": 600}
    first, again = (await publish(http, later)).json(), (await publish(http, later)).json()

    assert (first["seq"], first["duplicate"]) == (None, False)
    assert again == {**first, "duplicate": True}


async def test_a_list_of_which_a_part_waits_is_known_again(http: httpx.AsyncClient) -> None:
    body = [EVENT, {**EVENT, "delay": 600}]
    first, again = (await publish(http, body)).json(), await publish(http, body)

    assert [receipt["seq"] for receipt in first] == [1, None]
    assert (again.status_code, again.json()) == (201, [{**receipt, "duplicate": True} for receipt in first])
    assert_problem(await publish(http, body[:1]), 422, "idempotency.reused")


@pytest.mark.databases("sqlite")
async def test_of_different_lists_that_come_together_one_is_refused(http: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(publish(http, LIST), publish(http, LIST[:2]))

    assert sorted(answer.status_code for answer in answers) == [201, 422]


@pytest.mark.databases("sqlite")
async def test_what_retention_has_removed_is_published_anew(bus: EventBus, http: httpx.AsyncClient) -> None:
    await publish(http, EVENT)
    await bus.node.store._remove([1], is_oldest=True)

    assert (await publish(http, EVENT)).json()["duplicate"] is False


REFUSED: list[tuple[str | bytes, str]] = [
    ("", "1 to 255"),
    ('""', "1 to 255"),
    ("x" * 256, "256"),
    ("é".encode(), "visible ASCII"),
    ("a\tb", "visible ASCII"),
    ('"unfinished', "in quotes"),
    ('"a"b"', "in quotes"),
    ('"a\\b"', "in quotes"),
]


@pytest.mark.parametrize(("key", "words"), REFUSED)
@pytest.mark.databases("sqlite")
async def test_a_key_that_cannot_be_used_is_refused(http: httpx.AsyncClient, key: str | bytes, words: str) -> None:
    assert_problem(await publish(http, EVENT, key), 400, "idempotency.invalid", words)
    assert await head(http) == 0


@pytest.mark.databases("sqlite")
async def test_the_longest_key_is_taken(http: httpx.AsyncClient) -> None:
    assert (await publish(http, EVENT, "x" * 255)).status_code == 201


@pytest.mark.databases("sqlite")
async def test_several_keys_are_refused(http: httpx.AsyncClient) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    assert_problem(await http.post("/publish", json=EVENT, headers=headers), 400, "idempotency.invalid", "got 2")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({**EVENT, "message_id": "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3"}, "they differ"),
        ([{**EVENT, "message_id": UUID_KEY}], "they differ"),
        ({**EVENT, "durable": False}, "not stored"),
    ],
)
@pytest.mark.databases("sqlite")
async def test_a_key_beside_what_says_otherwise_is_refused(http: httpx.AsyncClient, body: Any, words: str) -> None:
    assert_problem(await publish(http, body, UUID_KEY), 400, "idempotency.invalid", words)


@pytest.mark.databases("sqlite")
async def test_a_cloudevent_needs_no_key(http: httpx.AsyncClient) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "a"}
    headers = {"Idempotency-Key": "k", "content-type": "application/cloudevents+json"}
    answer = await http.post("/publish", json=event, headers=headers)

    assert_problem(answer, 400, "idempotency.invalid", "source and id")
