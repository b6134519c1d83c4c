"""The subprotocol `cloudevents.json`: each message is one CloudEvent, either way."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from eventbus_fastapi.errors import StoreUnavailable
from tests.server.sockets import V1, Peer, ServedBus, is_left_alone, peer, serving_bus
from tests.waiting import eventually

CLOUDEVENTS = Subprotocol("cloudevents.json")
LEAST: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/orders", "type": "order.paid"}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_bus(tmp_path) as served:
        yield served


def speaking(served: ServedBus, query: str = "", **options: Any) -> contextlib.AbstractAsyncContextManager[Peer]:
    return peer(f"{served.served.ws}?{query}", **{"subprotocols": [CLOUDEVENTS], **options})


async def test_a_client_of_the_sdk_publishes_and_reads(served: ServedBus) -> None:
    event = CloudEvent({"type": "order.paid", "source": "/orders", "id": "7", "subject": "s"}, {"total": 9.5})
    async with speaking(served, "pattern=order.*") as client:
        assert client.socket.subprotocol == "cloudevents.json"
        await client.socket.send(JSONFormat().write(event).decode())

        again = JSONFormat().read(None, json.dumps(await client.next()))

    assert (again.get_id(), again.get_source(), again.get_subject()) == ("7", "/orders", "s")
    assert (again.get_time(), again.get_data()) == (event.get_time(), {"total": 9.5})


async def test_a_url_says_what_to_read_and_from_where(served: ServedBus) -> None:
    await served.bus.publish_many([("a.b", 1), ("c", 2), ("d.e.f", 3), ("a.b", 4)])

    async with speaking(served, "pattern=a.*&pattern=d.%23&after=1") as client:
        seqs = [(await client.next())["seq"] for _ in range(2)]
        await served.bus.publish("a.x", 5)
        seqs.append((await client.next())["seq"])
    async with speaking(served, "pattern=c&from=earliest") as client:
        seqs.append((await client.next())["seq"])

    assert seqs == ["3", "4", "5", "2"]


async def test_without_a_pattern_nothing_is_read_and_everything_may_be_published(served: ServedBus) -> None:
    async with speaking(served) as client:
        await client.socket.send(json.dumps({**LEAST, "data": 1}))
        await client.socket.send(json.dumps({**LEAST, "id": "2", "data": 2}))
        await eventually(lambda: served.bus.node.dispatcher.head == 2)
        assert not served.bus.node._subscriptions

    assert [message.payload for message in (await served.bus.node.store.read(0, 10)).messages] == [1, 2]


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (json.dumps({**LEAST, "id": ""}), "cloudevent.invalid", "'id'"),
        (json.dumps({**LEAST, "type": "a..b"}), "topic.invalid", "'type'"),
        (json.dumps([LEAST]), "cloudevent.invalid", "a list of 1"),
        ('{"type": "subscribe", "pattern": "#"}', "cloudevent.invalid", "'specversion'"),
        ("no json", "frame.bad", "not usable JSON"),
        (b"{}", "frame.binary", "binary"),
        (json.dumps({**LEAST, "data": "x" * 300_000}), "payload.too_large", "262,144"),
    ],
)
async def test_a_message_that_is_refused_is_answered_by_a_cloudevent_and_others_go_on(
    served: ServedBus, message: str | bytes, code: str, words: str
) -> None:
    async with speaking(served, "pattern=%23") as client:
        await client.socket.send(json.dumps(LEAST))
        await client.socket.send(message)
        await client.socket.send(json.dumps({**LEAST, "id": "2"}))
        came = [await client.next() for _ in range(3)]

    [refusal] = [each for each in came if each["type"] == "eventbus.error"]
    assert [each["seq"] for each in came if each is not refusal] == ["1", "2"]
    event = from_structured_event(HTTPMessage({}, json.dumps(refusal).encode()))
    assert (event.get_source(), event.get_subject(), event.get_extension("seq")) == ("/eventbus", "2", None)
    assert refusal["data"]["code"] == code
    assert words in refusal["data"]["message"]


async def test_a_publish_that_the_database_refuses_is_told(served: ServedBus, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: Any) -> Any:
        raise StoreUnavailable("no database")

    monkeypatch.setattr(served.bus.node.store, "append", fail)
    async with speaking(served) as client:
        await client.socket.send(json.dumps(LEAST))
        refusal = await client.next()

    assert (refusal["type"], refusal["subject"]) == ("eventbus.error", "1")
    assert refusal["data"]["code"] == "store.unavailable"


async def test_what_retention_has_removed_is_told(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, retention_count=1) as served:
        await served.bus.publish_many([("a", 1), ("a", 2), ("a", 3)])
        await served.bus.node.retention.run_once()
        async with speaking(served, "pattern=a&after=0") as client:
            gap, event = await client.next(), await client.next()

    assert gap["type"] == "eventbus.gap"
    assert gap["data"] == {"first_seq": 1, "last_seq": 2, "reason": "retention"}
    assert event["seq"] == "3"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("pattern=a..b", 422),
        ("pattern=a&after=-1", 422),
        ("pattern=a&after=1&from=now", 422),
        ("pattern=a&from=later", 422),
        ("&".join(["pattern=a"] * 101), 422),
    ],
)
async def test_a_url_that_cannot_be_meant_is_refused_before_the_handshake(
    served: ServedBus, query: str, status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with speaking(served, query):
            pass

    assert refused.value.response.status_code == status
    assert refused.value.response.headers["content-type"] == "application/problem+json"


async def test_who_offers_both_speaks_v1(served: ServedBus) -> None:
    async with speaking(served, subprotocols=[CLOUDEVENTS, V1]) as client:
        assert client.socket.subprotocol == "eventbus.v1"


async def test_nothing_is_left_of_clients_that_leave(served: ServedBus) -> None:
    async with speaking(served, "pattern=%23&from=earliest") as client:
        await client.socket.send(json.dumps(LEAST))
        await client.next()

    await eventually(lambda: is_left_alone(served) and not served.bus.node._subscriptions)
