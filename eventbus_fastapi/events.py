"""The values of the bus: what is published (`Event`, `Draft`), answered (`Receipt`) and read (`Message`).

No I/O happens here. A `Draft` is an event that has passed the door: validated, encoded, ready to be
stored. A `Message` is an event with its place in the log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple, TypeVar
from uuid import UUID

from pydantic import BaseModel

from eventbus_fastapi import codec
from eventbus_fastapi.errors import NotRunning
from eventbus_fastapi.topics import check_topic

T = TypeVar("T")


class Event(BaseModel):
    """A typed event: a Pydantic model that knows its topic.

        class UserCreated(Event, topic="user.created"):
            id: int
            username: str

    Raises:
        InvalidTopic: at class creation, if the topic does not follow the grammar.
    """

    __topic__: ClassVar[str] = ""

    def __init_subclass__(cls, topic: str | None = None, **options: Any) -> None:
        # Pydantic passes class keywords to __pydantic_init_subclass__ as well; `topic` ends here.
        super().__init_subclass__(**options)
        if topic is not None:
            cls.__topic__ = check_topic(topic)

    @classmethod
    def __pydantic_init_subclass__(cls, topic: str | None = None, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)


class Draft(NamedTuple):
    """An event that has passed the door and has no place in the log yet."""

    message_id: UUID
    topic: str
    key: str | None
    payload: bytes
    content_type: str
    metadata: str | None
    """A JSON object as text; None when there is none."""
    ttl: int | None
    """Microseconds from the moment the event enters the log; None: never expires."""
    delay: int | None
    """Microseconds to wait by the database's clock; None: no delay."""
    publish_at: int | None
    """Unix microseconds; None: at once (or after `delay`)."""

    @property
    def is_scheduled(self) -> bool:
        return self.delay is not None or self.publish_at is not None


class Receipt(NamedTuple):
    """What publishing answers."""

    message_id: UUID
    seq: int | None
    """Place in the log. None when it is not known yet (published inside the caller's transaction, or scheduled) or
    when the event is not stored (`durable=False`)."""
    duplicate: bool = False
    """True if an event of this message_id was in the log already; `seq` is that event's."""


class Message:
    """An event as a reader gets it.

    `body` holds the payload's bytes exactly as they were published; `payload` decodes them by content type: JSON to
    Python values, text to str, anything else stays bytes.
    """

    __slots__ = (
        "_acknowledge",
        "_payload",
        "_wire",
        "body",
        "content_type",
        "created_at",
        "expires_at",
        "key",
        "message_id",
        "metadata_json",
        "seq",
        "topic",
    )

    def __init__(
        self,
        seq: int,
        message_id: UUID,
        topic: str,
        key: str | None,
        body: bytes,
        content_type: str,
        metadata_json: str | None,
        created_at: int,
        expires_at: int | None = None,
    ) -> None:
        self.seq = seq
        """Place in the log; 0 for an event that was published with `durable=False`."""
        self.message_id = message_id
        self.topic = topic
        self.key = key
        self.body = body
        self.content_type = content_type
        self.metadata_json = metadata_json
        self.created_at = created_at
        """When the event entered the log: unix microseconds, database clock."""
        self.expires_at = expires_at
        """Unix microseconds, database clock; None: never."""
        self._payload: Any = _UNDECODED
        self._wire: str | None = None
        self._acknowledge: Callable[[Message], Awaitable[None]] | None = None

    @property
    def payload(self) -> Any:
        """The payload, decoded by content type."""
        if self._payload is _UNDECODED:
            self._payload = codec.decode(self.body, self.content_type)
        return self._payload

    @property
    def metadata(self) -> dict[str, Any]:
        """What the publisher attached."""
        return {} if self.metadata_json is None else codec.load_object(self.metadata_json)

    @property
    def timestamp(self) -> datetime:
        """When the event entered the log, UTC."""
        return datetime.fromtimestamp(self.created_at / 1_000_000, UTC)

    @property
    def is_durable(self) -> bool:
        """False for an event that was never stored (published with `durable=False`)."""
        return self.seq > 0

    def decode(self, kind: type[T]) -> T:
        """Return the payload as `kind`: a Pydantic model, dataclass, TypedDict or any type that Pydantic validates.

        Raises:
            InvalidPayload: the payload does not fit.
        """
        return codec.decode_as(self.body, self.content_type, kind)

    async def ack(self) -> None:
        """Mark the event processed: replays skip it unless they ask for processed events.

        Returns when that is committed. Acknowledging twice changes nothing.
        """
        if self._acknowledge is None:
            raise NotRunning("this message does not come from a subscription, so it cannot be acknowledged")
        await self._acknowledge(self)

    def __repr__(self) -> str:
        return f"<Message seq={self.seq} topic={self.topic!r} message_id={self.message_id}>"


_UNDECODED: Any = object()
