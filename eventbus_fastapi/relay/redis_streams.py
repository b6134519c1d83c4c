"""Redis Streams as a destination of a relay: a stream per subject, an entry per event.

An entry has the headers of a parcel as fields, and the body as `data`. In streams that are the relay's alone, its id
is the event's seq (`1234-0`), so Redis itself refuses a second copy, and anything out of order. A batch is one
transaction: all of it is there or nothing.

FastStream's `publish` sends one entry at a time, and a client of Redis sends what it has sent again by itself when a
connection is lost, so that nobody would know of the doubles. So this holds a connection of the broker's pool for as
long as it is connected, and tries nothing again by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from eventbus_fastapi.errors import BrokerUnavailable, InvalidRelay, quote
from eventbus_fastapi.relay.destination import CONFIRMED, Outcome, refused, shown, unknown, unsent
from eventbus_fastapi.relay.headers import MESSAGE_ID
from eventbus_fastapi.relay.opening import BrokerSource
from eventbus_fastapi.relay.parcel import EPOCH, RELAY, Parcel

DATA = "data"
"""The field that has the body."""
NOT_LATER = "equal or smaller than the target stream top item"
"""What Redis says of an id that is not behind the last one."""
ANSWER_TIMEOUT = 10.0
"""Seconds that a batch may take."""
FAILURES = (RedisError, OSError, TimeoutError, asyncio.TimeoutError)


class RedisStreams:
    """See the module's docstring.

    Args:
        maxlen: entries that a stream keeps, about; None: all.
        exclusive: whether the streams are the relay's alone. Defaults to True.
    """

    kind = "redis"
    prefix = "ce-"

    def __init__(self, source: BrokerSource, *, maxlen: int | None = None, exclusive: bool = True) -> None:
        if maxlen is not None and maxlen < 1:
            raise InvalidRelay(f"maxlen must be at least 1, got {maxlen}")
        self._source = source
        self._maxlen = maxlen
        self._is_exclusive = exclusive
        self._pool: Any = None
        self._connection: Any = None

    def write_key(self, key: str) -> str:
        return key

    def prepare(self, relay: str, epoch: str, template: str, patterns: Sequence[str]) -> None:
        """Take any template: the name of a stream has any characters."""

    async def connect(self) -> None:
        if self._connection is not None:
            return
        try:
            client = await self._source.connect()
            if not hasattr(client, "connection_pool"):
                raise InvalidRelay("a relay writes to one Redis, or to a master that Sentinel names; not to a cluster")
            async with asyncio.timeout(ANSWER_TIMEOUT):
                connection = await client.connection_pool.get_connection()
                connection.retry = Retry(NoBackoff(), 0)
                self._pool, self._connection = client.connection_pool, connection
                await self._ask([("PING",)])
        except FAILURES as exc:
            await self._leave()
            raise BrokerUnavailable(f"Redis cannot be reached: {shown(exc)}") from exc

    async def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        if self._connection is None:
            return [unsent("Redis is not connected")] * len(parcels)
        commands = [self._addition(parcel) for parcel in parcels]
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                answers = await self._ask([("MULTI",), *commands, ("EXEC",)])
                outcomes = _outcomes_of(answers, len(parcels))
                for place, outcome in enumerate(outcomes):
                    if NOT_LATER in outcome.reason:
                        outcomes[place] = await self._judge(parcels[place])
        except FAILURES as exc:
            await self._leave()
            return [unknown(exc)] * len(parcels)
        except BaseException:  # cancelled: answers would be taken for those to the next question
            await self._leave()
            raise
        return outcomes

    def _addition(self, parcel: Parcel, entry: str | None = None) -> tuple[Any, ...]:
        limit = () if self._maxlen is None else ("MAXLEN", "~", self._maxlen)
        own = f"{parcel.message.seq}-0" if self._is_exclusive else "*"
        fields = [each for field in parcel.headers.items() for each in field]
        return ("XADD", parcel.subject, *limit, entry or own, *fields, DATA, parcel.body)

    async def _judge(self, parcel: Parcel) -> Outcome:
        """Say what has become of an event whose stream is behind it already."""
        stream, seq = parcel.subject, parcel.message.seq
        (same,) = await self._ask([("XRANGE", stream, f"{seq}-0", f"{seq}-0")])
        if same:
            if _field(same[0], MESSAGE_ID) == parcel.headers[MESSAGE_ID]:
                return CONFIRMED
            return unsent(f"the stream {quote(stream)} has another event at {seq}-0: it is of another log")
        (top,) = await self._ask([("XREVRANGE", stream, "+", "-", "COUNT", 1)])
        if not top or _field(top[0], MESSAGE_ID) is None:
            return unsent(f"the stream {quote(stream)} has entries of others; exclusive=False is for that")
        if any(_field(top[0], name) != parcel.headers[name] for name in (RELAY, EPOCH)):
            came = quote(_field(top[0], RELAY))
            return unsent(
                f"the stream {quote(stream)} is of the relay {came} or another log; exclusive=False is for that"
            )
        if not parcel.is_revived:
            return CONFIRMED  # it was there, and was trimmed
        last = _text(top[0][0]).partition("-")[0]
        (added,) = await self._ask([self._addition(parcel, f"{last}-*")])
        return unsent(added) if isinstance(added, ResponseError) else CONFIRMED

    async def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands and return their answers, of which some may be errors."""
        connection = self._connection
        await connection.send_packed_command(connection.pack_commands(commands))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(await connection.read_response(disable_decoding=True))
            except ResponseError as exc:
                answers.append(exc)
        return answers

    async def _leave(self) -> None:
        connection, pool, self._connection, self._pool = self._connection, self._pool, None, None
        if connection is not None:
            with suppress(*FAILURES):
                await connection.disconnect()
            with suppress(*FAILURES):
                await pool.release(connection)
        await self._source.discard()

    async def close(self) -> None:
        await self._leave()
        await self._source.close()


def _outcomes_of(answers: Sequence[Any], count: int) -> list[Outcome]:
    """Return what a transaction has done."""
    done = answers[-1]
    if isinstance(done, ResponseError):
        # Nothing of it was done: one of the commands was not taken, as when the memory is full.
        first = next((answer for answer in answers if isinstance(answer, ResponseError)), done)
        return [unsent(first)] * count
    return [_outcome_of(answer) for answer in done]


def _outcome_of(answer: Any) -> Outcome:
    if not isinstance(answer, ResponseError):
        return CONFIRMED
    return refused(answer) if str(answer).startswith("WRONGTYPE") else unsent(answer)


def _field(entry: Any, name: str) -> str | None:
    """Return a field of an entry; None: it has none of this name."""
    values = entry[1] or []
    for place in range(0, len(values), 2):
        if _text(values[place]) == name:
            return _text(values[place + 1])
    return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
