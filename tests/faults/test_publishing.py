"""Many publish at once, through both doors of a real node: each gets the answer that is its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import pytest
from websockets.asyncio.client import connect

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.client import ClientConfig, EventBusClient
from eventbus_fastapi.errors import InvalidPayload, RemoteError
from eventbus_fastapi.events import Receipt
from tests.faults.conftest import Standing
from tests.faults.followers import V1, SocketFollower, following
from tests.faults.processes import prepare
from tests.waiting import eventually

TASKS = 200


@pytest.fixture
def topic() -> str:
    """A topic that no other test has."""
    return f"t{uuid4().hex}"


@contextlib.asynccontextmanager
async def asking(standing: Standing) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=standing.node.http, trust_env=False, timeout=30, limits=limits) as client:
        yield client


async def in_log(standing: Standing, pattern: str) -> list[dict[str, Any]]:
    """Return the events of a pattern, as history answers them."""
    events: list[dict[str, Any]] = []
    after: int | None = 0
    async with asking(standing) as client:
        while after is not None:
            page = (await client.get("/events", params={"pattern": pattern, "after": after, "limit": 1_000})).json()
            events += page["events"]
            after = page["next"]
    return events


async def test_a_bad_event_among_many_fails_alone_in_process(database_url: str) -> None:
    await prepare(database_url)
    async with EventBus(database_url) as bus:
        payloads: list[Any] = [*range(TASKS - 1), float("nan")]

        results = await asyncio.gather(*(bus.publish("t", payload) for payload in payloads), return_exceptions=True)

        assert [result.seq for result in results[:-1] if isinstance(result, Receipt)] == list(range(1, TASKS))
        assert isinstance(results[-1], InvalidPayload)
        assert (await bus.head()).last_seq == TASKS - 1


async def test_a_bad_event_among_many_fails_alone_over_http(standing: Standing, topic: str) -> None:
    bodies = [json.dumps({"topic": topic, "payload": number}) for number in range(TASKS)]
    bodies[77] = f'{{"topic": "{topic}", "payload": NaN}}'
    headers = {"content-type": "application/json"}
    async with asking(standing) as client:
        answers = await asyncio.gather(*(client.post("/publish", content=body, headers=headers) for body in bodies))

    assert Counter(answer.status_code for answer in answers) == {201: TASKS - 1, 422: 1}
    assert answers[77].json()["code"] in ("request.invalid", "payload.invalid")
    seqs = {event["payload"]: event["seq"] for event in await in_log(standing, topic)}
    assert seqs == {number: answer.json()["seq"] for number, answer in enumerate(answers) if number != 77}


async def test_a_bad_event_among_many_fails_alone_over_one_socket(standing: Standing, topic: str) -> None:
    config = ClientConfig(url=standing.node.ws, proxy=None)
    async with EventBusClient(config) as client:
        await client.wait_connected()
        publishing = [client.publish(topic, number) for number in range(TASKS - 1)]
        too_much = b"x" * 300_000
        publishing.insert(77, EventBusClient.publish(client, topic, too_much, content_type="a/b"))

        results = await asyncio.gather(*publishing, return_exceptions=True)

    failed = results.pop(77)
    assert getattr(failed, "code", None) == "payload.too_large"
    assert not isinstance(failed, RemoteError) or failed.status == 413
    seqs = {event["payload"]: event["seq"] for event in await in_log(standing, topic)}
    assert seqs == {number: result.seq for number, result in enumerate(results) if isinstance(result, Receipt)}
    assert len(seqs) == TASKS - 1


async def test_one_message_id_from_twenty_connections_is_one_event(standing: Standing, topic: str) -> None:
    message_id = str(uuid4())

    async def over_http(number: int) -> tuple[int, bool]:
        async with asking(standing) as client:
            event = {"topic": topic, "payload": number, "message_id": message_id}
            answer = await client.post("/publish", json=event)
        assert answer.status_code == 201, answer.text
        return answer.json()["seq"], answer.json()["duplicate"]

    async def over_a_socket(number: int) -> tuple[int, bool]:
        async with connect(standing.node.ws, proxy=None, subprotocols=[V1] if number % 2 else None) as socket:
            event = {"topic": topic, "payload": number, "message_id": message_id}
            await socket.send(json.dumps({"type": "publish", "id": 1, "data": event}))
            while (answer := json.loads(await socket.recv()))["type"] != "ok":
                assert answer["type"] == "welcome", answer
        return answer["seq"], answer["duplicate"]

    answers = await asyncio.gather(*map(over_http, range(10)), *map(over_a_socket, range(10)))

    (event,) = await in_log(standing, topic)
    assert {seq for seq, _ in answers} == {event["seq"]}
    assert Counter(duplicate for _, duplicate in answers) == {False: 1, True: 19}


async def test_patterns_mean_the_same_from_end_to_end(standing: Standing, topic: str) -> None:
    wanted = {
        f"{topic}.logs.#": ["logs", "logs.web", "logs.web.error"],
        f"{topic}.logs.*": ["logs.web"],
        f"{topic}.*.error": ["web.error"],
        f"{topic}.#.error": ["logs.web.error", "error", "web.error"],
        f"{topic}.logs": ["logs"],
    }
    followers = [SocketFollower(standing.node.ws, pattern=pattern, after=None) for pattern in wanted]
    async with following(*followers), asking(standing) as client:
        for name in ("logs", "logs.web", "logs.web.error", "error", "web.error", "logsx", "last"):
            answer = await client.post("/publish", json={"topic": f"{topic}.{name}", "payload": None})
            assert answer.status_code == 201
        for follower, names in zip(followers, wanted.values(), strict=True):
            await eventually(partial(_has_seen, follower, len(names)))

    for follower, names in zip(followers, wanted.values(), strict=True):
        assert [event.topic for event in follower.seen] == [f"{topic}.{name}" for name in names]


def _has_seen(follower: SocketFollower, count: int) -> bool:
    return len(follower.seen) == count
