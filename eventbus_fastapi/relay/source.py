"""A source: where an ingest takes messages from, a queue or stream of some broker.

Sources use the client of FastStream's broker, not its subscribers. A subscriber calls a function for each message,
within middlewares and decoders, and acknowledges it by itself; here many messages share a commit of the database and
then, where the broker can, one ack, and while the database is away nothing is taken beyond the prefetch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from eventbus_fastapi.relay.brokers import kind_of
from eventbus_fastapi.relay.foreign import Foreign

M = TypeVar("M")

IDLE = 1.0
"""Seconds after which a source that has nothing says so."""
LOOK_EVERY = 5.0
"""Seconds without a message after which a source looks whether what it reads is still there."""


class Reading(NamedTuple):
    """What is read, and how much at once."""

    source: str
    """The queue, stream or topic."""
    reader: str
    """The name by which the broker knows those who share the messages: a durable consumer, or a consumer group."""
    batch: int
    """Messages that one `take` returns at most."""
    prefetch: int
    """Messages that the broker gives out before it has acks, at most, where it can be told."""
    subjects: str | None = None
    """Of a JetStream stream: only what matches this; None: all of it."""
    field: str | None = None
    """Of an entry of a Redis stream: the field that is the payload; None: see `redis_source`."""
    claim_after: float = 60.0
    """Seconds after which a message that somebody took and did not acknowledge is given to others."""


class Source(Protocol):
    """Messages in the order of their source. `open` may be called again after `close`, or after anything has failed."""

    async def open(self) -> None:
        """Connect, and begin to take messages.

        Raises:
            BrokerUnavailable: the broker cannot be reached.
            SourceNotFound: it has no such queue, stream or topic.
        """
        ...

    async def take(self) -> list[Foreign]:
        """Return the next messages; none where none came for a second.

        Cancelled, it may have taken some: they come again.

        Raises:
            BrokerUnavailable, SourceNotFound: they cannot be had any more; open it again.
        """
        ...

    async def ack(self, taken: Sequence[Foreign]) -> None:
        """Tell the broker that messages are done: all that one `take` returned, in the order of the takes.

        Raises:
            BrokerUnavailable: perhaps it was not told; they may come again.
        """
        ...

    async def close(self) -> None:
        """Give back what was not acknowledged. Never raises."""
        ...


class Arrivals(Generic[M]):
    """What a client hands over message by message, until it is taken together."""

    def __init__(self) -> None:
        self._waiting: deque[M] = deque()
        self._has_some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    async def note(self, message: M) -> None:
        self._waiting.append(message)
        self._has_some.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until there is one; False: there was none in so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._has_some.wait()
        except TimeoutError:
            return False
        return True

    def pop(self, most: int) -> list[M]:
        """Take those that came first."""
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        if not self._waiting:
            self._has_some.clear()
        return taken


def open_source(broker: Any, reading: Reading) -> Source:
    """Return the source of a broker. Nothing is connected yet.

    Raises:
        SettingsError: it is no broker that is known here.
    """
    kind = kind_of(broker)
    if kind == "rabbitmq":
        from eventbus_fastapi.relay.rabbitmq_source import RabbitSource

        return RabbitSource(broker, reading)
    if kind == "nats":
        from eventbus_fastapi.relay.jetstream_source import JetStreamSource

        return JetStreamSource(broker, reading)
    if kind == "redis":
        from eventbus_fastapi.relay.redis_source import RedisSource

        return RedisSource(broker, reading)
    from eventbus_fastapi.relay.kafka_source import KafkaSource

    return KafkaSource(broker, reading)
