"""A JetStream stream as a source: a durable pull consumer, which has exactly as many messages out as were asked for.

What the server sends at once is bounded in bytes, too, however large the messages are.

A message's place is its sequence in the stream and the time when it got there: a stream that was deleted and made again
counts from 1 once more.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

from eventbus_fastapi.errors import BrokerUnavailable, SettingsError, SourceNotFound, quote
from eventbus_fastapi.relay.brokers import CONNECT_TIMEOUT, connect, translated
from eventbus_fastapi.relay.foreign import Foreign
from eventbus_fastapi.relay.source import IDLE, LOOK_EVERY, Arrivals, Reading

EXPIRES = 30.0
"""Seconds after which the server forgets what was asked for and did not come."""
MOST_BYTES = 16_777_216
"""Bytes of messages that are asked for at once; where two of the largest that the server takes are more, so many."""
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
MSG_ID = "nats-msg-id"


class JetStreamSource:
    """See the module's docstring."""

    def __init__(self, broker: Any, reading: Reading) -> None:
        self._broker = broker
        self._reading = reading
        self._consumer = _UNFIT.sub("-", reading.reader)
        self._client: Any = None
        self._subscription: Any = None
        self._inbox = ""
        self._delivered: Arrivals[Msg] = Arrivals()
        self._asked = 0  # of the server, and not here yet
        self._reconnects = 0
        self._asked_at = 0.0
        self._heard_at = 0.0

    async def open(self) -> None:
        """Bind to the durable consumer; make it, from the beginning of the stream on, if there is none."""
        reading = self._reading
        client = self._client = await connect(self._broker)
        if not client.is_connected:
            raise BrokerUnavailable("nats: it is not connected")
        with translated("nats", f"cannot consume the stream {quote(reading.source)}"):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                manager = client.jsm()
                try:
                    await manager.stream_info(reading.source)
                except (NotFoundError, ValueError) as exc:  # ValueError: no stream can have this name
                    raise SourceNotFound(f"JetStream has no stream {quote(reading.source)}") from exc
                await self._make_consumer(manager)
                self._inbox = client.new_inbox()
                self._delivered = Arrivals()
                self._subscription = await client.subscribe(self._inbox, cb=self._delivered.note)
        self._asked = 0
        self._heard_at = time.monotonic()

    async def _make_consumer(self, manager: Any) -> None:
        reading = self._reading
        try:
            found = await manager.consumer_info(reading.source, self._consumer)
        except NotFoundError:
            config = ConsumerConfig(
                durable_name=self._consumer,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=reading.claim_after,
                max_ack_pending=reading.prefetch,
                filter_subject=reading.subjects,
            )
            await manager.add_consumer(reading.source, config)
            return
        if (found.config.filter_subject or None) != reading.subjects:
            raise SettingsError(
                f"the consumer {self._consumer} of the stream {quote(reading.source)} reads"
                f" {quote(found.config.filter_subject or '>')}, not {quote(reading.subjects or '>')}; give another name"
            )

    async def take(self) -> list[Foreign]:
        with translated("nats", "cannot take messages"):
            await self._ask()
            if not await self._delivered.wait(IDLE):
                await self._look()
                return []
        found = self._delivered.pop(self._reading.batch)
        self._heard_at = time.monotonic()
        messages = [message for message in found if not self._is_status(message)]
        self._asked = max(0, self._asked - len(messages))
        return [_foreign(message) for message in messages]

    async def _ask(self) -> None:
        """Have the server send as many messages as there is room for; again, where the last request has ended."""
        now = time.monotonic()
        if now - self._asked_at >= EXPIRES or self._client.stats["reconnects"] != self._reconnects:
            self._asked, self._reconnects = 0, self._client.stats["reconnects"]
        waiting = self._asked + len(self._delivered)
        if waiting > self._reading.batch // 2:
            return
        wanted = {
            "batch": self._reading.batch - waiting,
            "max_bytes": max(MOST_BYTES, 2 * self._client.max_payload),
            "expires": int(EXPIRES * 1_000_000_000),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._reading.source}.{self._consumer}"
        await self._client.publish(subject, json.dumps(wanted).encode(), self._inbox)
        self._asked += self._reading.batch - waiting
        self._asked_at = now

    def _is_status(self, message: Msg) -> bool:
        """Say whether it is no message, but the server's word on what was asked for."""
        status = (message.headers or {}).get("Status")
        if status is None or message.reply:
            return False
        self._asked = 0
        if status not in ("404", "408", "409", "100"):
            raise BrokerUnavailable(f"nats: the consumer answers {status}")
        return True

    async def _look(self) -> None:
        """Find out that the connection is lost, or the stream deleted."""
        if not self._client.is_connected:
            raise BrokerUnavailable("nats: the connection is lost")
        if time.monotonic() - self._heard_at < LOOK_EVERY:
            return
        try:
            await self._client.jsm().consumer_info(self._reading.source, self._consumer)
        except NotFoundError as exc:
            raise SourceNotFound(f"JetStream has no consumer {self._consumer} any more") from exc
        self._heard_at = time.monotonic()

    async def ack(self, taken: Sequence[Foreign]) -> None:
        with translated("nats", "cannot acknowledge"):
            for foreign in taken:
                await foreign.handle.ack()
            await self._client.flush(timeout=CONNECT_TIMEOUT)

    async def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                async with asyncio.timeout(IDLE):
                    await subscription.unsubscribe()
            except Exception:  # noqa: BLE001, S110 - the connection is gone, and the subscription with it
                pass


def _foreign(message: Msg) -> Foreign:
    headers = message.headers or {}
    given = next((value for name, value in headers.items() if name.lower() == MSG_ID), None)
    tokens = message.reply.split(".")
    sequence, stored_at = (tokens[5], tokens[7]) if len(tokens) == 9 else (tokens[7], tokens[9])
    return Foreign(
        subject=message.subject,
        body=message.data,
        headers=headers,
        given_id=given,
        place=f"{sequence}/{stored_at}",
        handle=message,
    )
