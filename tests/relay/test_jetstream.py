"""A relay into NATS JetStream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from uuid import uuid4

import nats
import pytest
from faststream.nats import NatsBroker
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from eventbus_fastapi import EventBus
from eventbus_fastapi.errors import InvalidRelay
from eventbus_fastapi.relay import jetstream
from eventbus_fastapi.relay.destination import Outcome
from eventbus_fastapi.relay.opening import open_destination
from eventbus_fastapi.relay.parcel import Packer
from eventbus_fastapi.relay.relay import Relay
from eventbus_fastapi.relay.subject import SubjectTemplate
from tests.brokers import BrokerServer, own_broker
from tests.relay.cable import Cable
from tests.relay.scripted import drained
from tests.waiting import eventually


class Nats(NamedTuple):
    """A connection, and names of the test's own."""

    url: str
    client: Client
    name: str

    @property
    def js(self) -> JetStreamContext:
        return self.client.jetstream()

    def topic(self, rest: str = "created") -> str:
        return f"{self.name}.{rest}"

    def relay(self, bus: EventBus, **options: Any) -> Relay:
        options = {"name": "relay", "start": "earliest", "stream": self.name, "create_stream": True, **options}
        return bus.relay(self.url, f"{self.name}.#", **options)

    async def messages(self) -> list[Any]:
        state = (await self.js.stream_info(self.name)).state
        return [await self.js.get_msg(self.name, seq) for seq in range(state.first_seq, state.last_seq + 1)]

    async def seqs(self) -> list[int]:
        return [int(message.headers["eventbus-seq"]) for message in await self.messages()]


@pytest.fixture
async def at(nats_url: str) -> AsyncIterator[Nats]:
    client = await nats.connect(nats_url)
    name = f"test-{uuid4().hex[:12]}"
    at = Nats(nats_url, client, name)
    yield at
    with contextlib.suppress(NotFoundError):
        await at.js.delete_stream(name)
    await client.close()


async def publish(bus: EventBus, at: Nats, count: int) -> None:
    await bus.publish_many([(at.topic(), {"n": number}) for number in range(count)])


async def test_events_arrive_in_order_once_and_with_their_headers(bus: EventBus, at: Nats) -> None:
    await bus.publish(at.topic(), {"n": 0}, key="k", metadata={"a": 1})
    await publish(bus, at, 1_200)
    relay = at.relay(bus)
    await relay.start()
    await drained(bus)
    await relay.join(5)
    assert await at.seqs() == list(range(1, 1_202))
    first = await at.js.get_msg(at.name, 1)
    assert first.data == b'{"n":0}'
    assert first.headers is not None
    assert first.headers["Nats-Msg-Id"] == first.headers["eventbus-message-id"]
    assert (first.headers["eventbus-key"], first.headers["eventbus-attempt"]) == ("k", "1")


async def test_who_takes_over_a_stream_of_its_own_leaves_out_what_is_there_whatever_its_window(
    bus: EventBus, at: Nats
) -> None:
    """The group reads again from its beginning, as after any loss of what it knew."""
    await at.js.add_stream(name=at.name, subjects=[f"{at.name}.>"], duplicate_window=0.1)
    await publish(bus, at, 30)
    relay = at.relay(bus, exclusive=True)
    await relay.start()
    await drained(bus)
    await relay.join(5)
    await bus.groups.reset("relay", 0)
    await publish(bus, at, 10)
    await relay.start()
    await drained(bus)
    await relay.join(5)
    assert await at.seqs() == list(range(1, 41))


async def test_a_zombie_is_refused_by_a_stream_of_the_relays_own(bus: EventBus, at: Nats) -> None:
    """It looked where the stream is before another has written to it."""
    await publish(bus, at, 2)
    relay = at.relay(bus)
    await relay.start()
    await drained(bus)
    headers = {"eventbus-seq": "100", "eventbus-relay": "relay", "eventbus-epoch": str((await bus.head()).epoch)}
    await at.js.publish(at.topic(), b"of who took over", headers=headers)
    await publish(bus, at, 1)
    await drained(bus)
    assert [message.data for message in (await at.messages())[2:]] == [b"of who took over"]
    await relay.join(5)


async def test_a_dead_letter_that_is_retried_comes_late_and_the_stream_goes_on_behind_it(
    bus: EventBus, at: Nats
) -> None:
    await at.js.add_stream(name=at.name, subjects=[f"{at.name}.>"], max_msg_size=1_500)
    await bus.publish_many([(at.topic(), "a"), (at.topic(), "b" * 1_500), (at.topic(), "c")])
    relay = at.relay(bus, exclusive=True)
    await relay.start()
    await drained(bus)
    letter = await bus.groups.dead_letter("relay", 2)
    assert "message size exceeds maximum allowed" in letter.errors[0]["message"]
    assert await at.seqs() == [1, 3]
    await at.js.update_stream(name=at.name, subjects=[f"{at.name}.>"], max_msg_size=5_000)
    await bus.groups.retry("relay", [2])
    await drained(bus)
    await relay.join(5)
    await publish(bus, at, 1)
    await relay.start()
    await drained(bus)
    assert await at.seqs() == [1, 3, 2, 4]
    await relay.join(5)


async def test_what_is_too_large_for_nats_becomes_a_dead_letter(bus: EventBus, at: Nats) -> None:
    size = at.client.max_payload
    await bus.publish_many([(at.topic(), b"x" * (size - 10)), (at.topic(), "b")])
    relay = at.relay(bus)
    await relay.start()
    await drained(bus)
    assert "NATS takes 1,048,576" in (await bus.groups.dead_letter("relay", 1)).errors[0]["message"]
    assert await at.seqs() == [2]
    await relay.join(5)


async def test_what_has_too_large_headers_for_nats_becomes_a_dead_letter(bus: EventBus, at: Nats) -> None:
    """Metadata is in the headers twice where it is an attribute of a CloudEvent, too."""
    await bus.publish(at.topic(), 1, metadata={"text": "ü" * 8_000})
    await bus.publish(at.topic(), 2)
    relay = at.relay(bus, cloudevents="binary")
    await relay.start()
    await drained(bus)
    assert "header size exceeds" in (await bus.groups.dead_letter("relay", 1)).errors[0]["message"]
    assert await at.seqs() == [2]
    await relay.join(5)


async def test_an_ack_of_a_stream_that_has_the_name_error_is_one(bus: EventBus, at: Nats) -> None:
    await at.js.add_stream(name="error", subjects=[f"{at.name}.>"])
    try:
        await publish(bus, at, 3)
        relay = at.relay(bus, stream="error", create_stream=False)
        await relay.start()
        await drained(bus)
        assert bus.node.meters.relayed["relay", "confirmed"] == 3
        await relay.join(5)
    finally:
        await at.js.delete_stream("error")


async def test_what_no_stream_takes_becomes_a_dead_letter(bus: EventBus, at: Nats) -> None:
    await at.js.add_stream(name=at.name, subjects=[at.topic("b")])
    await bus.publish_many([(at.topic("a"), 1), (at.topic("b"), 2)])
    relay = at.relay(bus, stream=None, create_stream=False)
    await relay.start()
    await drained(bus)
    assert "no stream of NATS takes the subject" in (await bus.groups.dead_letter("relay", 1)).errors[0]["message"]
    assert await at.seqs() == [2]
    await relay.join(5)


async def test_a_full_stream_stops_the_relay_and_it_goes_on_when_there_is_room(bus: EventBus, at: Nats) -> None:
    await at.js.add_stream(name=at.name, subjects=[f"{at.name}.>"], max_msgs=5, discard="new")
    await publish(bus, at, 8)
    relay = at.relay(bus, exclusive=True)
    await relay.start()
    await eventually(lambda: not relay.is_broker_up and bus.node.meters.relayed["relay", "confirmed"] == 5)
    await at.js.update_stream(name=at.name, subjects=[f"{at.name}.>"], max_msgs=50, discard="new")
    await drained(bus)
    assert await at.seqs() == list(range(1, 9))
    await relay.join(5)


async def test_a_stream_that_is_not_there_is_named(bus: EventBus, at: Nats) -> None:
    with pytest.raises(InvalidRelay, match=f"NATS has no stream '{at.name}'"):
        await at.relay(bus, create_stream=False).start()


@pytest.mark.parametrize("exclusive", [False, True])
async def test_a_stream_that_is_deleted_stops_the_relay_and_it_goes_on_when_there_is_one_again(
    bus: EventBus, at: Nats, exclusive: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await at.js.add_stream(name=at.name, subjects=[f"{at.name}.>"])
    await publish(bus, at, 2)
    relay = at.relay(bus, create_stream=False, exclusive=exclusive)
    await relay.start()
    await drained(bus)
    await at.js.delete_stream(at.name)
    await publish(bus, at, 3)
    await eventually(lambda: f"NATS has no stream '{at.name}'; make it" in caplog.text)
    figures = (await bus.groups.group("relay")).figures
    assert (figures.in_flight, figures.dead) == (3, 0)
    assert not relay.is_broker_up
    await at.js.add_stream(name=at.name, subjects=[f"{at.name}.>"])
    await drained(bus)
    assert await at.seqs() == [3, 4, 5]
    await relay.join(5)


async def test_a_stream_that_the_relay_has_made_and_that_is_deleted_is_made_anew(bus: EventBus, at: Nats) -> None:
    await publish(bus, at, 2)
    relay = at.relay(bus)
    await relay.start()
    await drained(bus)
    await at.js.delete_stream(at.name)
    await publish(bus, at, 3)
    await drained(bus)
    assert await at.seqs() == [3, 4, 5]
    assert (await bus.groups.group("relay")).figures.dead == 0
    await relay.join(5)


async def test_a_name_that_no_stream_can_have_is_refused_at_the_start(bus: EventBus, at: Nats) -> None:
    with pytest.raises(InvalidRelay, match=r"NATS cannot have the stream 'a\.b'"):
        await at.relay(bus, stream="a.b").start()


async def test_a_stream_of_another_relay_stops_this_one(
    bus: EventBus, at: Nats, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(bus, at, 1)
    first = at.relay(bus, name="first")
    await first.start()
    await drained(bus, "first")
    second = at.relay(bus, name="second", exclusive=True)
    await second.start()
    await eventually(lambda: "is not this relay's alone" in caplog.text)
    assert await at.seqs() == [1]
    for relay in (first, second):
        await relay.join(5)


async def test_a_connection_that_is_lost_between_two_slices_takes_the_end_of_the_batch(
    bus: EventBus, at: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is written on a connection that came later, before what was lost with the first."""
    monkeypatch.setattr(jetstream, "SLICE", 1)
    destination = await shared_stream(at, at.url)
    sending = await begin_to_send(bus, at, destination)
    assert destination._client is not None
    await destination._client.close()
    verdicts = [outcome.verdict for outcome in await sending]
    await destination.close()
    assert verdicts == sorted(verdicts, key=["confirmed", "unknown", "unsent"].index)
    assert verdicts[-1] == "unsent"
    assert verdicts.count("unsent") < 500


async def test_what_waited_to_be_written_is_not_written_in_front_of_what_was_lost(
    bus: EventBus, at: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a client that connects again by itself, and that writes then what it had not yet written."""
    monkeypatch.setattr(jetstream, "SLICE", 1)
    lost = asyncio.Event()

    async def note_loss() -> None:
        lost.set()

    async with Cable.to(at.url) as cable:
        broker = NatsBroker(
            cable.url, max_reconnect_attempts=-1, reconnect_time_wait=0, disconnected_cb=note_loss, logger=None
        )
        destination = await shared_stream(at, broker)
        sending = await begin_to_send(bus, at, destination)
        client = await broker.connect()
        cable.cut()
        await cable.mend()
        await lost.wait()
        await client.publish(at.topic("own"), b"the program's own")
        verdicts = [outcome.verdict for outcome in await sending]
        await eventually(lambda: client.is_connected)
        await client.flush()
        messages = await at.messages()
        await destination.close()
        await broker.stop()
    seqs = [int(message.headers["eventbus-seq"]) for message in messages if message.headers is not None]
    assert verdicts[-1] == "unsent"
    assert seqs == list(range(1, len(seqs) + 1))
    assert messages[-1].data == b"the program's own"


async def shared_stream(at: Nats, to: Any) -> jetstream.JetStream:
    """Return a destination, connected, into a stream that is not the relay's alone."""
    destination = open_destination(to, stream=at.name, create_stream=True, exclusive=False)
    assert isinstance(destination, jetstream.JetStream)
    destination.prepare("relay", "e", "{topic}", [f"{at.name}.#"])
    await destination.connect()
    return destination


async def begin_to_send(bus: EventBus, at: Nats, destination: jetstream.JetStream) -> asyncio.Task[list[Outcome]]:
    """Have 500 events sent, and return when some of them are written."""
    await publish(bus, at, 500)
    packer = Packer(SubjectTemplate(), relay="relay", epoch="e")
    parcels = [packer.pack(message, 1) for message in (await bus.node.history(["#"], 0, 500)).messages]
    sending = asyncio.create_task(destination.send(parcels))
    for _ in range(50):  # turns of the loop, in each of which one message is written
        await asyncio.sleep(0)
    return sending


async def test_a_broker_that_is_handed_in_stays_connected_and_has_nothing_left_of_the_relay(
    bus: EventBus, at: Nats
) -> None:
    broker = NatsBroker(at.url, logger=None)
    client = await broker.connect()
    await client.jetstream().account_info()  # for whose answer it subscribes once
    subscriptions = {*client._subs}
    await publish(bus, at, 3)
    relay = bus.relay(broker, f"{at.name}.#", name="relay", start="earliest", stream=at.name, create_stream=True)
    await relay.start()
    await drained(bus)
    await relay.join(5)
    assert await at.seqs() == [1, 2, 3]
    assert client.is_connected
    assert {*client._subs} == subscriptions
    await broker.stop()


@pytest.mark.parametrize("is_handed_in", [False, True])
async def test_a_server_that_is_stopped_and_started_gets_each_event_once(bus: EventBus, is_handed_in: bool) -> None:
    with own_broker("nats") as server:
        broker = (
            NatsBroker(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0, logger=None)
            if is_handed_in
            else None
        )
        relay = bus.relay(broker or server.url, "a", name="relay", stream="a", create_stream=True, start="earliest")
        await relay.start()
        for is_killed in (False, True):
            await bus.publish_many([("a", number) for number in range(3_000)])
            server.kill() if is_killed else server.stop()
            await bus.publish_many([("a", number) for number in range(500)])
            await eventually(lambda: not relay.is_broker_up)
            server.start()
            await drained(bus, timeout=30)
        seqs = await _seqs_on(server)
        assert seqs == list(range(1, 7_001))
        await relay.join(5)
        if broker is not None:
            await broker.stop()


async def _seqs_on(server: BrokerServer) -> list[int]:
    client = await nats.connect(server.url)
    reader = await client.jetstream().subscribe("a", ordered_consumer=True)
    count = (await client.jetstream().stream_info("a")).state.messages
    found = []
    for _ in range(count):
        message = await reader.next_msg(timeout=5)
        assert message.headers is not None
        found.append(int(message.headers["eventbus-seq"]))
    await client.close()
    return found
