"""A JetStream stream as a source: how much of it is asked for at once."""

from __future__ import annotations

import pytest

from eventbus_fastapi.relay import jetstream_source
from eventbus_fastapi.relay.brokers import disconnect, open_broker
from eventbus_fastapi.relay.foreign import Foreign
from eventbus_fastapi.relay.jetstream_source import JetStreamSource
from eventbus_fastapi.relay.source import Reading
from tests.relay.sources import filled
from tests.waiting import eventually


async def test_large_messages_come_few_at_once_and_all_come(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NATS takes messages of 1 MiB, so two such are the least that may be asked for: three of these fit into that."""
    monkeypatch.setattr(jetstream_source, "MOST_BYTES", 1)
    async with filled("nats", nats_url) as stream:
        for _ in range(8):
            await stream.send(b"x" * 600_000)
        broker = open_broker(nats_url)
        source = JetStreamSource(broker, Reading(stream.name, f"ingest.{stream.name}", batch=100, prefetch=200))
        await source.open()
        taken = await source.take()
        waiting = source._delivered._waiting
        await eventually(lambda: any(message.data == b"" for message in waiting))  # the server says that it was all
        assert len(taken) + len([message for message in waiting if message.data]) == 3
        await source.ack(taken)
        while len(taken) < 8:
            more: list[Foreign] = await source.take()
            await source.ack(more)
            taken += more
        assert [len(foreign.body) for foreign in taken] == [600_000] * 8
        await source.close()
        await disconnect(broker)
