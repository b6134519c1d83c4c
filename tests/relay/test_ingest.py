"""Messages of real brokers become events, each exactly one."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from faststream.redis import RedisBroker

from eventbus_fastapi import EventBus
from eventbus_fastapi.errors import GroupConflict, SettingsError, SourceNotFound
from eventbus_fastapi.relay.brokers import disconnect, open_broker
from eventbus_fastapi.relay.ingest import Ingest
from eventbus_fastapi.store.dead_letters import FOREIGN_SEQS
from tests.relay import bare_amqp
from tests.relay.cable import Cable
from tests.relay.sources import Filled, RabbitQueue, RedisStream, filled
from tests.waiting import eventually

KINDS = ("rabbitmq", "nats", "redis")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{kind}_url"))


@pytest.fixture
async def source(kind: str, url: str) -> AsyncIterator[Filled]:
    """A queue or stream of its own."""
    async with filled(kind, url) as source:
        yield source


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/bus.db"


@contextlib.asynccontextmanager
async def ingesting(url: str, source: Filled, database: str, **options: Any) -> AsyncIterator[tuple[EventBus, Ingest]]:
    """Run a bus with an ingest of a source."""
    broker = open_broker(url)
    bus = EventBus(database, busy_timeout=0.2)
    ingest = bus.ingest(broker, source.name, **options)
    try:
        async with bus:
            yield bus, ingest
    finally:
        await disconnect(broker)


async def payloads(bus: EventBus) -> list[Any]:
    return [message.payload for message in (await bus.node.history(["#"], 0, limit=1_000)).messages]


def counted(bus: EventBus, ingest: Ingest) -> tuple[int, int, int]:
    """How many were stored, were there already, were refused."""
    ingested = bus.node.meters.ingested
    return (
        ingested[ingest.name, "stored"],
        ingested[ingest.name, "duplicate"],
        ingested[ingest.name, "refused"],
    )


async def test_messages_become_events_in_their_order_and_are_acknowledged(
    url: str, source: Filled, database: str
) -> None:
    await source.send_many(20)
    async with ingesting(url, source, database, batch=7) as (bus, _):
        await eventually(lambda: _has(bus, 20))
        assert await payloads(bus) == [{"n": number} for number in range(20)]
        event = (await bus.get(1)).message
        assert (event.topic, event.content_type) == (source.subject, "application/json")
    assert await source.left() == 0


async def _has(bus: EventBus, count: int) -> bool:
    return (await bus.head()).last_seq >= count


async def test_a_message_that_comes_while_it_runs_is_an_event_soon(url: str, source: Filled, database: str) -> None:
    async with ingesting(url, source, database, topic="in.one") as (bus, _):
        async with bus.subscribe("in.#") as subscription:
            await source.send(b'"now"', headers={"tenant": "a"})
            [message] = await asyncio.wait_for(subscription.next_messages(), 3)
        assert (message.topic, message.payload, message.metadata["tenant"]) == ("in.one", "now", "a")


async def test_what_was_stored_and_not_acknowledged_comes_again_and_is_not_stored_again(
    url: str, source: Filled, database: str
) -> None:
    """The process dies between the commit and the ack: the worst moment."""
    await source.send_many(5)
    async with ingesting(url, source, database, claim_after=1) as (bus, ingest):
        ingest._source.ack = _never  # type: ignore[method-assign]
        await eventually(lambda: _has(bus, 5))
        ids = [message.message_id for message in (await bus.node.history(["#"], 0, 100)).messages]
        await _die(ingest)
    async with ingesting(url, source, database, claim_after=1) as (bus, ingest):
        await eventually(lambda: counted(bus, ingest) == (0, 5, 0), 15)
        assert [message.message_id for message in (await bus.node.history(["#"], 0, 100)).messages] == ids
        await source.send(b"6")
        await eventually(lambda: _has(bus, 6))
    await eventually(lambda: _is_empty(source))


async def _never(taken: Any) -> None:
    await asyncio.Event().wait()


async def _die(ingest: Ingest) -> None:
    tasks, ingest._tasks = ingest._tasks, []
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await ingest._source.close()


async def _is_empty(source: Filled) -> bool:
    return await source.left() == 0


async def test_while_the_database_is_away_nothing_is_acknowledged_and_it_goes_on_by_itself(
    url: str, source: Filled, database: str, tmp_path: Path
) -> None:
    async with ingesting(url, source, database, batch=2, prefetch=4) as (bus, ingest):
        await source.send(b"0")
        await eventually(lambda: _has(bus, 1))
        with contextlib.closing(sqlite3.connect(tmp_path / "bus.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            await source.send_many(10)
            await eventually(lambda: bus.node.meters.publish_failures > 0)
            assert counted(bus, ingest) == (1, 0, 0)
        await eventually(lambda: _has(bus, 11))
        assert [item["n"] for item in (await payloads(bus))[1:]] == list(range(10))
    assert await source.left() == 0


async def test_a_broker_that_is_away_is_waited_for_from_the_start_on_and_when_it_is_lost(
    url: str, source: Filled, database: str
) -> None:
    async with Cable.to(url) as cable:
        cable.cut()
        # What was on its way as the cable was cut comes again when the broker has waited as long for its ack.
        async with ingesting(cable.url, source, database, claim_after=1) as (bus, ingest):
            assert bus.node.meters.ingesting == {ingest.name: False}
            await source.send(b"1")
            await cable.mend()
            await eventually(lambda: _has(bus, 1), 20)
            assert bus.node.meters.ingesting == {ingest.name: True}
            cable.cut()
            await source.send(b"2")
            await eventually(lambda: not ingest.is_connected, 20)
            await cable.mend()
            await eventually(lambda: _has(bus, 2), 20)
            assert sorted(await payloads(bus)) == [1, 2]


async def test_a_broker_that_does_not_have_it_ends_the_start_and_leaves_nothing_running(
    kind: str, url: str, source: Filled, database: str
) -> None:
    await source.delete()
    async with contextlib.AsyncExitStack() as stack:
        with pytest.raises(SourceNotFound, match=source.name):
            await stack.enter_async_context(ingesting(url, source, database))
    if kind == "rabbitmq":  # so that the fixture can delete it
        async with filled(kind, url):
            pass


async def test_a_name_that_no_stream_of_nats_can_have_ends_the_start(nats_url: str, database: str) -> None:
    broker = open_broker(nats_url)
    bus = EventBus(database)
    bus.ingest(broker, "a.b")
    with pytest.raises(SourceNotFound, match=r"JetStream has no stream 'a\.b'"):
        await bus.start()
    await disconnect(broker)


async def test_a_client_of_redis_that_reads_texts_is_refused_as_a_payload_may_be_none(
    redis_url: str, database: str
) -> None:
    async with filled("redis", redis_url) as source:
        broker = RedisBroker(f"{redis_url}?decode_responses=True")
        bus = EventBus(database)
        bus.ingest(broker, source.name)
        with pytest.raises(SettingsError, match="without decode_responses=True"):
            await bus.start()
        await disconnect(broker)


async def test_two_share_the_messages_of_a_source(url: str, source: Filled, database: str) -> None:
    async with (
        ingesting(url, source, database, batch=2, prefetch=2) as (bus, first),
        ingesting(url, source, database, batch=2, prefetch=2) as (other, second),
    ):
        await source.send_many(60)
        await eventually(lambda: _has(bus, 60))
        assert counted(bus, first)[0] + counted(other, second)[0] == 60
        assert sorted(item["n"] for item in await payloads(bus)) == list(range(60))


# --- refused ---


async def test_what_cannot_be_an_event_is_a_dead_letter_with_its_bytes_and_the_others_go_on(
    url: str, source: Filled, database: str
) -> None:
    async with ingesting(url, source, database) as (bus, ingest):
        await source.send(b"1")
        await source.send(b'{"n":')
        await source.send(b"3")
        await eventually(lambda: counted(bus, ingest) == (2, 0, 1))
        [(group, entry)] = (await bus.groups.dead_letters(ingest.name)).entries
        letter = await bus.groups.dead_letter(ingest.name, entry.seq)
        assert (group, letter.message.topic, letter.message.body) == (ingest.name, source.subject, b'{"n":')
        assert letter.message.payload == b'{"n":'
        assert "is not JSON" in letter.errors[0]["message"]
        assert entry.seq >= FOREIGN_SEQS
        assert await payloads(bus) == [1, 3]
    assert await source.left() == 0


async def test_its_group_is_behind_with_nothing_and_holds_no_event_of_the_log_back(
    url: str, source: Filled, database: str
) -> None:
    async with ingesting(url, source, database) as (bus, ingest):
        await source.send_many(3)
        await eventually(lambda: _has(bus, 3))
        [status] = await bus.groups.groups()
        assert (status.group.name, status.figures.lag, status.group.patterns) == (ingest.name, 0, ())
        assert (await bus.groups.group(ingest.name)).figures.lag == 0
        assert await bus.node.store.groups.floor() is None


async def test_a_dead_letter_that_is_tried_again_is_an_event_once_the_rules_allow_it(
    url: str, source: Filled, database: str
) -> None:
    async with ingesting(url, source, database, topic_template="{header:kind}") as (bus, ingest):
        await source.send(b"1", headers={"sort": "new"})
        await eventually(lambda: counted(bus, ingest) == (0, 0, 1))
        [(_, entry)] = (await bus.groups.dead_letters(ingest.name)).entries
        assert await bus.groups.retry(ingest.name, [entry.seq]) == 1

        async def is_dead_again() -> bool:
            found = (await bus.groups.dead_letters(ingest.name)).entries
            return bool(found) and len(found[0][1].errors) == 2

        await eventually(is_dead_again)
    async with ingesting(url, source, database, topic_template="of.{header:sort}") as (bus, ingest):
        await bus.groups.retry(ingest.name, [entry.seq])
        await eventually(lambda: _has(bus, 1))
        event = (await bus.get(1)).message
        assert (event.topic, event.payload, event.metadata["sort"]) == ("of.new", 1, "new")
        assert event.message_id == entry.message_id
        await eventually(lambda: _has_no_retries(bus, ingest))
        assert (await bus.groups.dead_letters(ingest.name)).entries == []


async def _has_no_retries(bus: EventBus, ingest: Ingest) -> bool:
    return await bus.groups.retries(ingest.name) == []


async def test_one_that_is_delivered_again_is_one_dead_letter(url: str, source: Filled, database: str) -> None:
    await source.send(b"{")
    async with ingesting(url, source, database, claim_after=1) as (bus, ingest):
        ingest._source.ack = _never  # type: ignore[method-assign]
        await eventually(lambda: counted(bus, ingest) == (0, 0, 1))
        await _die(ingest)
    async with ingesting(url, source, database, claim_after=1) as (bus, ingest):
        await eventually(lambda: counted(bus, ingest) == (0, 0, 1), 15)
        assert len((await bus.groups.dead_letters(ingest.name)).entries) == 1
        await bus.groups.discard(ingest.name, [(await bus.groups.dead_letters()).entries[0][1].seq])
        assert (await bus.groups.dead_letters()).entries == []


# --- RabbitMQ ---


@pytest.fixture
async def queue(rabbitmq_url: str) -> AsyncIterator[RabbitQueue]:
    async with filled("rabbitmq", rabbitmq_url) as queue:
        assert isinstance(queue, RabbitQueue)
        yield queue


async def test_a_message_without_an_id_is_a_dead_letter_that_says_what_to_do(
    rabbitmq_url: str, queue: RabbitQueue, database: str
) -> None:
    bare_amqp.send(rabbitmq_url, queue.name, [b"1"])
    async with ingesting(rabbitmq_url, queue, database) as (bus, ingest):
        await eventually(lambda: counted(bus, ingest) == (0, 0, 1))
        [(_, entry)] = (await bus.groups.dead_letters(ingest.name)).entries
        assert "it has no message_id" in entry.errors[0]["message"]
    async with ingesting(rabbitmq_url, queue, database, identity="delivery") as (bus, ingest):
        await bus.groups.retry(ingest.name, [entry.seq])
        await eventually(lambda: _has(bus, 1))
        assert (await bus.get(1)).message.message_id == entry.message_id


async def test_equal_messages_are_one_event_where_they_are_known_by_their_content(
    rabbitmq_url: str, queue: RabbitQueue, database: str
) -> None:
    bare_amqp.send(rabbitmq_url, queue.name, [b"1", b"1", b"2"])
    async with ingesting(rabbitmq_url, queue, database, identity="content") as (bus, ingest):
        await eventually(lambda: counted(bus, ingest) == (2, 1, 0))


async def test_a_queue_that_is_deleted_while_it_is_read_is_waited_for(
    rabbitmq_url: str, queue: RabbitQueue, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventbus_fastapi.relay.rabbitmq_source.LOOK_EVERY", 0.1)
    async with ingesting(rabbitmq_url, queue, database) as (bus, ingest):
        await queue.delete()
        await eventually(lambda: not ingest.is_connected)
        await queue._channel.declare_queue(queue.name, durable=True)
        await queue.send(b"1")
        await eventually(lambda: _has(bus, 1))


async def test_an_entry_of_redis_without_the_field_that_is_the_payload_is_one_with_all_its_fields(
    redis_url: str, database: str
) -> None:
    async with filled("redis", redis_url) as source:
        await source.send(b"1")
        async with ingesting(redis_url, source, database, field="order") as (bus, _):
            await eventually(lambda: _has(bus, 1))
            assert await payloads(bus) == [{"payload": "1", "content-type": "application/json"}]


@pytest.mark.parametrize("envelope", [b'{"data":"1","headers":5}', b'{"data":"1","headers":{"message_id":5}}'])
async def test_what_only_looks_like_a_message_of_faststream_holds_up_nothing(
    envelope: bytes, redis_url: str, database: str
) -> None:
    async with filled("redis", redis_url) as source:
        assert isinstance(source, RedisStream)
        await source.add({"__data__": envelope})
        await source.send(b"2")
        async with ingesting(redis_url, source, database) as (bus, _):
            await eventually(lambda: _has(bus, 2))


# --- what is refused at once ---


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"topic": "a..b"}, "segment 2 is empty"),
        ({"topic": "a", "topic_template": "{subject}"}, "topic or topic_template, not both"),
        ({"topic_template": "{nothing}"}, "a topic template has"),
        ({"content_type": "json"}, "expected type/subtype"),
        ({"identity": "none"}, "identity must be one of given, content, delivery"),
        ({"batch": 0}, "batch must be an int from 1 to 1,000"),
        ({"batch": 10, "prefetch": 5}, r"prefetch must be an int from batch \(10\)"),
        ({"name": "with space"}, "the name of a group of an ingest"),
        ({"claim_after": 0}, "claim_after must be 1 second or more"),
    ],
)
def test_options_that_cannot_be_used_are_refused_when_they_are_given(options: dict[str, Any], reason: str) -> None:
    bus = EventBus("sqlite+aiosqlite://")
    with pytest.raises(SettingsError, match=reason):
        bus.ingest(open_broker("nats://127.0.0.1"), "ORDERS", **options)


def test_two_ingests_of_one_name_are_refused() -> None:
    bus = EventBus("sqlite+aiosqlite://")
    bus.ingest(open_broker("nats://127.0.0.1"), "ORDERS")
    with pytest.raises(SettingsError, match=r"there is an ingest 'ingest.ORDERS' already"):
        bus.ingest(open_broker("redis://127.0.0.1"), "ORDERS")


async def test_a_group_of_its_name_that_reads_the_log_is_in_its_way() -> None:
    bus = EventBus("sqlite+aiosqlite://")
    bus.ingest(open_broker("nats://127.0.0.1"), "ORDERS", name="mail")
    async with EventBus("sqlite+aiosqlite://") as other:
        other.ingest(open_broker("nats://127.0.0.1"), "ORDERS", name="mail")
        await other.groups.declare("mail", ["user.#"])
        with pytest.raises(GroupConflict, match=r"the group 'mail' reads user.#; give another name"):
            await other.ingests[0].start()
