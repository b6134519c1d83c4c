"""A topic of Kafka as a source: a consumer of a group, whose offsets are committed after the bus's commit.

It was written against aiokafka and never run against a Kafka of ours: take it as not tested. A record's place is its
partition, offset and timestamp: a topic that was deleted and made again counts its offsets from 0 once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition

from eventbus_fastapi.errors import BrokerUnavailable, SourceNotFound, quote
from eventbus_fastapi.relay.brokers import CONNECT_TIMEOUT, connect, translated
from eventbus_fastapi.relay.foreign import Foreign
from eventbus_fastapi.relay.source import IDLE, Reading


class KafkaSource:
    """See the module's docstring."""

    def __init__(self, broker: Any, reading: Reading) -> None:
        self._broker = broker
        self._reading = reading
        self._consumer: Any = None

    async def open(self) -> None:
        """Join the group, which begins at the earliest record if it has not read yet."""
        reading = self._reading
        build = await connect(self._broker)
        with translated("kafka", f"cannot consume the topic {quote(reading.source)}"):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                self._consumer = build(
                    group_id=reading.reader,
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    isolation_level="read_committed",
                    max_poll_records=reading.batch,
                )
                await self._consumer.start()
                if reading.source not in await self._consumer.topics():
                    raise SourceNotFound(f"kafka has no topic {quote(reading.source)}")
                self._consumer.subscribe([reading.source])

    async def take(self) -> list[Foreign]:
        if self._consumer is None:
            raise BrokerUnavailable("kafka: it is not connected")
        with translated("kafka", "cannot take messages"):
            found = await self._consumer.getmany(timeout_ms=round(IDLE * 1_000), max_records=self._reading.batch)
        return [_foreign(record) for records in found.values() for record in records]

    async def ack(self, taken: Sequence[Foreign]) -> None:
        offsets = {TopicPartition(each.handle.topic, each.handle.partition): each.handle.offset + 1 for each in taken}
        if offsets:
            with translated("kafka", "cannot commit offsets"):
                await self._consumer.commit(offsets)

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await consumer.stop()
            except Exception:  # noqa: BLE001, S110 - the group finds out that it has left
                pass


def _foreign(record: ConsumerRecord[Any, Any]) -> Foreign:
    key = record.key
    return Foreign(
        subject=record.topic,
        body=record.value or b"",
        headers=dict(record.headers),
        key=key.decode(errors="replace") if isinstance(key, bytes) and key else None,
        place=f"{record.partition}/{record.offset}/{record.timestamp}",
        handle=record,
    )
