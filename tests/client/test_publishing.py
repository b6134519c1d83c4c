"""What becomes of what a program publishes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from eventbus_fastapi.client import EventBusClient
from eventbus_fastapi.client.drafts import Draftable
from eventbus_fastapi.errors import (
    BatchTooLarge,
    ConnectionLost,
    FrameTooLarge,
    InvalidEvent,
    InvalidTopic,
    NotRunning,
    PayloadTooLarge,
    PublishBufferFull,
    RemoteError,
)
from eventbus_fastapi.events import Event, Receipt
from tests.client.scripted import ScriptedServer, error
from tests.waiting import eventually

ID = UUID("0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3")


class UserCreated(Event, topic="user.created"):
    id: int


def publishing(client: EventBusClient, *payloads: object) -> list[asyncio.Task[Receipt]]:
    return [asyncio.create_task(client.publish("t", payload)) for payload in payloads]


async def test_a_publish_returns_the_server_s_receipt(server: ScriptedServer, client: EventBusClient) -> None:
    publish = asyncio.create_task(client.publish("user.created", {"id": 1}, message_id=ID))
    peer = await server.welcome()
    await peer.published(await peer.expect("publish"), 17, duplicate=True)
    assert await publish == Receipt(ID, 17, duplicate=True)


async def test_all_that_describes_an_event_reaches_the_server(server: ScriptedServer, client: EventBusClient) -> None:
    publish = asyncio.create_task(
        client.publish(
            "a.b",
            b"\xff",
            message_id=str(ID),
            ttl=timedelta(hours=1),
            key="k",
            metadata={"trace": "x"},
            delay=2.5,
            content_type="image/png",
        )
    )
    peer = await server.welcome()
    frame = await peer.expect("publish")
    assert frame["data"] == {
        "topic": "a.b",
        "payload_base64": "/w==",
        "message_id": str(ID),
        "ttl": 3600,
        "key": "k",
        "metadata": {"trace": "x"},
        "delay": 2.5,
        "content_type": "image/png",
    }
    await peer.ok(frame, seq=None, message_id=str(ID), duplicate=False)
    assert (await publish).seq is None


async def test_a_typed_event_brings_its_topic(server: ScriptedServer, client: EventBusClient) -> None:
    publish = asyncio.create_task(client.publish(UserCreated(id=7)))
    peer = await server.welcome()
    frame = await peer.expect("publish")
    assert (frame["data"]["topic"], frame["data"]["payload"]) == ("user.created", {"id": 7})
    await peer.published(frame, 1)
    await publish


async def test_a_batch_is_one_frame_and_gets_a_receipt_for_each(server: ScriptedServer, client: EventBusClient) -> None:
    batch: list[Draftable] = [UserCreated(id=1), ("t", "text"), {"topic": "t", "payload": None, "key": "k", "ttl": 5}]
    publish = asyncio.create_task(client.publish_many(batch))
    peer = await server.welcome()
    frame = await peer.expect("publish_batch")
    assert [(each["topic"], each["payload"]) for each in frame["messages"]] == [
        ("user.created", {"id": 1}),
        ("t", "text"),
        ("t", None),
    ]
    results = [
        {"seq": seq, "message_id": each["message_id"], "duplicate": False}
        for seq, each in enumerate(frame["messages"], start=5)
    ]
    await peer.ok(frame, results=results)
    assert [receipt.seq for receipt in await publish] == [5, 6, 7]


async def test_an_empty_batch_asks_nobody(client: EventBusClient) -> None:
    assert await client.publish_many([]) == []
    assert not client.connected


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (("t",), "a topic and a payload, got a tuple of 1"),
        ({"topic": "t", "payload": 1, "prio": 2}, "unknown field 'prio'"),
        ({"payload": 1}, "got NoneType"),
        ({"topic": "t"}, "has no payload"),
    ],
)
async def test_a_batch_names_what_is_wrong_with_an_event(client: EventBusClient, event: object, said: str) -> None:
    with pytest.raises(InvalidEvent, match=said):
        await client.publish_many([("t", 1), event])  # type: ignore[list-item]


async def test_an_invalid_event_is_refused_before_it_is_sent(client: EventBusClient) -> None:
    with pytest.raises(InvalidTopic, match="wildcard"):
        await client.publish("user.*", {})
    assert not client.connected


async def test_a_batch_beyond_the_servers_limit_is_refused_at_the_call(
    server: ScriptedServer, client: EventBusClient
) -> None:
    connecting = asyncio.create_task(client.wait_connected())
    await server.welcome(max_batch=2)
    await connecting
    with pytest.raises(BatchTooLarge, match="batch has 3 events, limit is 2"):
        await client.publish_many([("t", 1)] * 3)


async def test_the_server_s_limit_of_payloads_holds_once_it_is_known(
    server: ScriptedServer, client: EventBusClient
) -> None:
    connecting = asyncio.create_task(client.wait_connected())
    await server.welcome(max_payload=10)
    await connecting
    with pytest.raises(PayloadTooLarge):
        await client.publish("t", "x" * 11)


async def test_what_exceeds_the_server_s_frames_fails_alone(server: ScriptedServer, client: EventBusClient) -> None:
    large, small = publishing(client, "x" * 2_000, "x")
    peer = await server.welcome(max_frame=1_024)
    with pytest.raises(FrameTooLarge):
        await large
    await peer.published(await peer.expect("publish"), 1)
    assert (await small).seq == 1


async def test_the_server_s_error_is_raised_with_its_code(server: ScriptedServer, client: EventBusClient) -> None:
    bad, good = publishing(client, "bad", "good")
    peer = await server.welcome()
    await peer.refuse(await peer.expect("publish"), error("payload.invalid", status=422))
    await peer.published(await peer.expect("publish"), 1)
    with pytest.raises(RemoteError, match=r"this is payload\.invalid") as caught:
        await bad
    assert (caught.value.code, caught.value.status, caught.value.retry) == ("payload.invalid", 422, False)
    assert (await good).seq == 1


async def test_a_refusal_for_the_moment_is_tried_again_in_order(server: ScriptedServer, client: EventBusClient) -> None:
    publishes = publishing(client, 1, 2)
    peer = await server.welcome()
    first, second = await peer.expect("publish"), await peer.expect("publish")
    for frame in (first, second):
        await peer.refuse(frame, error("store.unavailable", retry=True, retry_after=0.01))
    await eventually(lambda: client._session.due() is not None)
    publishes += publishing(client, 3)
    again = [await peer.expect("publish") for _ in range(3)]
    assert again[:2] == [{**first, "wave": 1}, {**second, "wave": 1}]
    assert (again[2]["data"]["payload"], again[2]["wave"]) == (3, 1)
    for seq, frame in enumerate(again, start=1):
        await peer.published(frame, seq)
    assert [receipt.seq for receipt in await asyncio.gather(*publishes)] == [1, 2, 3]


async def test_after_a_refusal_nothing_goes_out_before_all_that_is_on_its_way_is_answered(
    server: ScriptedServer, client: EventBusClient
) -> None:
    """What has no answer yet may be refused as well: then it goes again, before those that were published later."""
    too_fast = error("publish.too_fast", retry=True, retry_after=0.001)
    publishes = publishing(client, 1, 2, 3)
    peer = await server.welcome()
    first, second, third = [await peer.expect("publish") for _ in range(3)]
    await peer.refuse(first, too_fast)
    await eventually(lambda: client._session._requests._held_until is not None)
    publishes += publishing(client, 4)
    publishes[1].cancel()
    await asyncio.gather(publishes[1], return_exceptions=True)
    assert client._session.due() is None  # however much time goes by
    await peer.refuse(third, too_fast)

    again = [await peer.expect("publish") for _ in range(3)]

    assert [(frame["data"]["payload"], frame["wave"]) for frame in again] == [(1, 1), (3, 1), (4, 1)]
    await peer.refuse(second, too_fast)  # of no interest any more
    for seq, frame in enumerate(again, start=1):
        await peer.published(frame, seq)
    del publishes[1]
    assert [receipt.seq for receipt in await asyncio.gather(*publishes)] == [1, 2, 3]


async def test_a_cancelled_publish_whose_answer_was_waited_for_does_not_hold_up_the_others(
    server: ScriptedServer, client: EventBusClient
) -> None:
    refused, cancelled = publishing(client, 1, 2)
    peer = await server.welcome()
    first, _ = await peer.expect("publish"), await peer.expect("publish")
    await peer.refuse(first, error("publish.too_fast", retry=True, retry_after=0.001))
    await eventually(lambda: client._session._requests._held_until is not None)

    cancelled.cancel()

    again = await peer.expect("publish")
    assert again == {**first, "wave": 1}
    await peer.published(again, 1)
    assert (await refused).seq == 1


async def test_refusals_for_the_moment_end_with_max_retries(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(max_retries=2)) as client:
        (publish,) = publishing(client, 1)
        peer = await server.welcome()
        for _ in range(3):
            await peer.refuse(await peer.expect("publish"), error("store.unavailable", retry=True))
        with pytest.raises(RemoteError) as caught:
            await publish
        assert caught.value.code == "store.unavailable"


async def test_what_is_published_offline_goes_out_in_order(server: ScriptedServer, client: EventBusClient) -> None:
    await server.stop()
    publishes = publishing(client, *range(100))
    await eventually(lambda: client._session.has_frame())
    await server.start()
    peer = await server.welcome()
    frames = [await peer.expect("publish") for _ in range(100)]
    assert [frame["data"]["payload"] for frame in frames] == list(range(100))
    for seq, frame in enumerate(frames):
        await peer.published(frame, seq)
    await asyncio.gather(*publishes)


async def test_what_was_not_answered_is_sent_again_with_the_same_message_id(
    server: ScriptedServer, client: EventBusClient
) -> None:
    publishes = publishing(client, 1, 2, 3)
    peer = await server.welcome()
    first, second, third = [await peer.expect("publish") for _ in range(3)]
    await peer.published(first, 1)
    await publishes[0]
    peer.drop()
    publishes += publishing(client, 4)
    peer = await server.welcome()
    again = [await peer.expect("publish") for _ in range(3)]
    assert again[:2] == [second, third]
    assert again[2]["data"]["payload"] == 4
    await peer.published(again[0], 2, duplicate=True)
    await peer.published(again[1], 3)
    await peer.published(again[2], 4)
    assert [receipt.seq for receipt in await asyncio.gather(*publishes)] == [1, 2, 3, 4]


async def test_an_event_without_storage_is_never_sent_twice(server: ScriptedServer, client: EventBusClient) -> None:
    sent = asyncio.create_task(client.publish("t", 1, durable=False))
    peer = await server.welcome()
    assert (await peer.expect("publish"))["data"]["durable"] is False
    peer.drop()
    with pytest.raises(ConnectionLost):
        await sent


async def test_a_full_buffer_takes_nothing(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(max_pending=3, close_timeout=0)) as client:
        publishes = publishing(client, 1, 2)
        await eventually(lambda: client._session.has_frame())
        with pytest.raises(PublishBufferFull, match="max_pending"):
            await client.publish_many([("t", 3), ("t", 4)])
        publishes += publishing(client, 3)
        peer = await server.welcome()
        for seq in range(1, 4):
            frame = await peer.expect("publish")
            assert frame["data"]["payload"] == seq
            await peer.published(frame, seq)
        await asyncio.gather(*publishes)


async def test_the_buffer_is_bounded_in_bytes_as_well(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(max_pending_bytes=1_000, close_timeout=0)) as client:
        with pytest.raises(PublishBufferFull, match="max_pending_bytes"):
            await client.publish("t", "x" * 1_000)


async def test_a_cancelled_publish_that_waits_is_never_sent(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(max_pending=2, close_timeout=0)) as client:
        cancelled, kept = publishing(client, "cancelled", "kept")
        await eventually(lambda: client._session.has_frame())
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        (also_kept,) = publishing(client, "its place is free")
        peer = await server.welcome()
        for payload in ("kept", "its place is free"):
            frame = await peer.expect("publish")
            assert frame["data"]["payload"] == payload
            await peer.published(frame, 1)
        await asyncio.gather(kept, also_kept)


async def test_the_answer_to_a_cancelled_publish_is_ignored(server: ScriptedServer, client: EventBusClient) -> None:
    cancelled, kept = publishing(client, 1, 2)
    peer = await server.welcome()
    frames = [await peer.expect("publish") for _ in range(2)]
    cancelled.cancel()
    await asyncio.wait([cancelled])
    for seq, frame in enumerate(frames, start=1):
        await peer.published(frame, seq)
    assert (await kept).seq == 2


async def test_a_timeout_of_the_caller_s_leaves_the_client_usable(
    server: ScriptedServer, client: EventBusClient
) -> None:
    deadline = asyncio.timeout(None)

    async def publish_in_time() -> None:
        async with deadline:
            await client.publish("t", 1)

    late = asyncio.create_task(publish_in_time())
    peer = await server.welcome()
    await peer.expect("publish")
    deadline.reschedule(asyncio.get_running_loop().time())
    with pytest.raises(TimeoutError):
        await late
    (publish,) = publishing(client, 2)
    await peer.published(await peer.expect("publish"), 1)
    assert (await publish).seq == 1


async def test_closing_waits_for_answers_then_fails_the_rest(server: ScriptedServer) -> None:
    client = EventBusClient(server.config(close_timeout=0.2))
    answered, unanswered = publishing(client, 1, 2)
    peer = await server.welcome()
    first = await peer.expect("publish")
    closing = asyncio.create_task(client.close())
    await peer.published(first, 1)
    assert (await answered).seq == 1
    with pytest.raises(NotRunning):
        await unanswered
    await closing
    with pytest.raises(NotRunning):
        await client.publish("t", 3)


async def test_publishes_that_wait_together_share_a_frame(server: ScriptedServer, client: EventBusClient) -> None:
    publishes = publishing(client, *range(50))
    await eventually(lambda: client._session.has_frame())
    peer = await server.welcome()
    text = await peer.socket.recv(decode=True)
    assert text.count('"publish"') == 50
    for publish in publishes:
        publish.cancel()
    await asyncio.wait(publishes)
