"""Kafka as a destination of a relay. Nothing of this was tested by us against a Kafka.

The topic is the subject, the key is the event's. A broker made from a URL is an idempotent producer; one that the
program hands in should be (`KafkaBroker(…, enable_idempotence=True)`), or a lost answer may change the order.
FastStream's `publish` with `no_confirm` gives a future for each message, so a batch is in flight at once.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from eventbus_fastapi.errors import BrokerUnavailable, InvalidRelay, quote
from eventbus_fastapi.relay.destination import CONFIRMED, Outcome, refused, shown, unknown, unsent
from eventbus_fastapi.relay.opening import BrokerSource
from eventbus_fastapi.relay.parcel import Parcel

LONGEST_TOPIC = 249
_OTHER = re.compile(r"[^A-Za-z0-9._-]")
FAILURES = (KafkaError, OSError, TimeoutError, RuntimeError)


class Kafka:
    """See the module's docstring."""

    kind = "kafka"
    prefix = "ce_"

    def __init__(self, source: BrokerSource) -> None:
        self._source = source
        self._is_connected = False

    def write_key(self, key: str) -> str:
        return key

    def prepare(self, relay: str, epoch: str, template: str, patterns: Sequence[str]) -> None:
        literal = template.replace("{topic}", "").replace("{key}", "")
        if _OTHER.search(literal):
            raise InvalidRelay(f"subject template {quote(template)} is no topic of Kafka: letters, digits, . _ and -")

    async def connect(self) -> None:
        if self._is_connected:
            return
        try:
            await self._source.connect()
        except FAILURES as exc:
            await self._source.discard()
            raise BrokerUnavailable(f"Kafka cannot be reached: {shown(exc)}") from exc
        self._is_connected = True

    async def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        sent = [await self._publish(parcel) for parcel in parcels]
        waiting = [each for each in sent if isinstance(each, asyncio.Future)]
        await asyncio.gather(*waiting, return_exceptions=True)
        return [_outcome_of(each) if isinstance(each, asyncio.Future) else each for each in sent]

    async def _publish(self, parcel: Parcel) -> asyncio.Future[Any] | Outcome:
        topic = _OTHER.sub("_", parcel.subject)
        if len(topic) > LONGEST_TOPIC:
            return refused(f"a topic of Kafka has at most {LONGEST_TOPIC} characters")
        key = parcel.message.key
        try:
            future: asyncio.Future[Any] = await self._source.broker.publish(
                parcel.body,
                topic=topic,
                key=None if key is None else key.encode(),
                headers=parcel.headers,
                timestamp_ms=parcel.message.created_at // 1_000,
                no_confirm=True,
            )
        except MessageSizeTooLargeError as exc:
            return refused(exc)
        except FAILURES as exc:
            return unsent(exc)
        return future

    async def close(self) -> None:
        self._is_connected = False
        await self._source.close()


def _outcome_of(future: asyncio.Future[Any]) -> Outcome:
    if future.cancelled():  # its producer was stopped
        return unknown("no answer came")
    error = future.exception()
    if error is None:
        return CONFIRMED
    return refused(error) if isinstance(error, MessageSizeTooLargeError) else unknown(error)
