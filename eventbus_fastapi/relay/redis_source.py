"""A Redis stream as a source: a consumer of a group, which also takes over what consumers that died have left.

An entry is a set of fields. The payload is the one that `field` names; else `payload`, `data` or `body`, whichever is
there, or FastStream's `__data__`; where there is none, the payload is all fields as a JSON object. The other fields are
headers. Its place is its id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from faststream.redis.parser import BinaryMessageFormatV1
from redis.exceptions import ResponseError

from eventbus_fastapi import codec
from eventbus_fastapi.errors import SettingsError, SourceNotFound, quote
from eventbus_fastapi.pipeline.consumers import name_node
from eventbus_fastapi.relay.brokers import CONNECT_TIMEOUT, connect, translated
from eventbus_fastapi.relay.foreign import Foreign
from eventbus_fastapi.relay.headers import MESSAGE_ID
from eventbus_fastapi.relay.source import IDLE, Reading

BODIES = ("payload", "data", "body")
FASTSTREAM = "__data__"
OURS = "eventbus-"
"""What the names of our consumers begin with."""


class RedisSource:
    """See the module's docstring."""

    def __init__(self, broker: Any, reading: Reading) -> None:
        self._broker = broker
        self._reading = reading
        self._consumer = f"{OURS}{name_node()}"
        self._client: Any = None
        self._claim_from = "0-0"
        self._claimed_at = 0.0

    async def open(self) -> None:
        """Join the group; make it, from the beginning of the stream on, if there is none."""
        reading = self._reading
        client = self._client = await connect(self._broker)
        pool = getattr(client, "connection_pool", None)
        if pool is not None and pool.connection_kwargs.get("decode_responses"):
            raise SettingsError("an ingest reads bytes: hand in a RedisBroker without decode_responses=True")
        with translated("redis", f"cannot read the stream {quote(reading.source)}"):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if not await client.exists(reading.source):
                    raise SourceNotFound(f"redis has no stream {quote(reading.source)}")
                try:
                    await client.xgroup_create(reading.source, reading.reader, id="0")
                except ResponseError as exc:
                    if "BUSYGROUP" not in str(exc):
                        raise
        self._claim_from, self._claimed_at = "0-0", 0.0

    async def take(self) -> list[Foreign]:
        reading = self._reading
        with translated("redis", "cannot take messages"):
            entries = await self._claim()
            if not entries:
                answer = await self._client.xreadgroup(
                    reading.reader,
                    self._consumer,
                    {reading.source: ">"},
                    count=reading.batch,
                    block=round(IDLE * 1_000),
                )
                entries = _entries_in(answer)
        return [_foreign(entry_id, fields, reading) for entry_id, fields in entries if fields is not None]

    async def _claim(self) -> list[tuple[Any, Any]]:
        """Take over entries that some consumer has held for too long, now and then."""
        reading = self._reading
        now = time.monotonic()
        if self._claim_from == "0-0" and now - self._claimed_at < reading.claim_after / 4:
            return []
        answer = await self._client.xautoclaim(
            reading.source,
            reading.reader,
            self._consumer,
            min_idle_time=round(reading.claim_after * 1_000),
            start_id=self._claim_from,
            count=reading.batch,
        )
        self._claim_from = _text(answer[0])
        if self._claim_from == "0-0":
            self._claimed_at = now
            await self._forget_the_dead()
        return list(answer[1])

    async def _forget_the_dead(self) -> None:
        """Remove consumers of ours that hold nothing and were not heard of for long: each process has its own."""
        reading = self._reading
        longest = max(3_600.0, 10 * reading.claim_after) * 1_000
        for consumer in await self._client.xinfo_consumers(reading.source, reading.reader):
            name = _text(consumer["name"])
            if name.startswith(OURS) and not consumer["pending"] and consumer["idle"] > longest:
                await self._client.xgroup_delconsumer(reading.source, reading.reader, name)

    async def ack(self, taken: Sequence[Foreign]) -> None:
        if taken:
            with translated("redis", "cannot acknowledge"):
                await self._client.xack(
                    self._reading.source, self._reading.reader, *[foreign.handle for foreign in taken]
                )

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            async with asyncio.timeout(IDLE):
                consumers = await client.xinfo_consumers(self._reading.source, self._reading.reader)
                if any(_text(each["name"]) == self._consumer and not each["pending"] for each in consumers):
                    await client.xgroup_delconsumer(self._reading.source, self._reading.reader, self._consumer)
        except Exception:  # noqa: BLE001, S110 - others forget it later
            pass


def _entries_in(answer: Any) -> list[tuple[Any, Any]]:
    """Return the entries of the one stream that was read; RESP3 has a mapping where RESP2 has a list."""
    if isinstance(answer, Mapping):
        return [entry for batches in answer.values() for batch in batches for entry in batch]
    return [entry for _, entries in answer or () for entry in entries]


def _foreign(entry_id: Any, fields: Mapping[Any, Any], reading: Reading) -> Foreign:
    named = {_text(name): value.encode() if isinstance(value, str) else value for name, value in fields.items()}
    bodies = (*BODIES, FASTSTREAM) if reading.field is None else (reading.field,)
    name = next((each for each in bodies if each in named), None)
    content_type = None
    if name is None:
        body = codec.encode_json({each: value.decode(errors="backslashreplace") for each, value in named.items()})
        headers: dict[str, Any] = {}
        content_type = codec.JSON
    else:
        body = named.pop(name)
        headers = named
    if name == FASTSTREAM:
        content, said = BinaryMessageFormatV1.parse(body)
        if isinstance(said, dict):  # else it only looks like FastStream's
            body, headers = content, said
    given = headers.get(MESSAGE_ID) or headers.get("message_id")
    if isinstance(given, bytes):
        given = given.decode(errors="replace")
    return Foreign(
        subject=reading.source,
        body=body,
        headers=headers,
        content_type=content_type,
        given_id=given if isinstance(given, str) else None,
        place=_text(entry_id),
        handle=entry_id,
    )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
