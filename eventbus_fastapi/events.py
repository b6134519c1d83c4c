"""The values of the bus: what is published (`Event`, `Draft`), answered (`Receipt`) and read (`Message`).

No I/O happens here. A `Draft` is an event that has passed the door: validated, encoded, ready to be
stored. A `Message` is an event with its place in the log.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple, TypedDict, TypeVar
from uuid import UUID

from pydantic import BaseModel

from eventbus_fastapi import codec
from eventbus_fastapi.durations import microseconds, positive_microseconds
from eventbus_fastapi.errors import InvalidEvent, NotRunning, PayloadTooLarge, quote
from eventbus_fastapi.topics import check_topic
from eventbus_fastapi.unique import Fingerprint, Unique, fingerprint_of

T = TypeVar("T")


class Event(BaseModel):
    """A typed event: a Pydantic model that knows its topic.

        class UserCreated(Event, topic="user.created"):
            id: int
            username: str

    A subclass without a topic of its own has its parent's. A field may be called `topic`: it is part of the payload and
    has nothing to do with the event's topic, which is `UserCreated.__topic__`.

    Raises:
        InvalidTopic: at class creation, if the topic does not follow the grammar.
    """

    __topic__: ClassVar[str] = ""

    def __init_subclass__(cls, topic: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if topic is not None:
            cls.__topic__ = check_topic(topic)

    @classmethod
    def __pydantic_init_subclass__(cls, topic: str | None = None, **options: Any) -> None:
        # Pydantic passes the class keywords here as well; `topic` ends here.
        super().__pydantic_init_subclass__(**options)


class Options(TypedDict, total=False):
    """What may be said about an event beside its topic and payload."""

    key: str | None
    """Names the thing that the event is about; at most 255 bytes."""
    message_id: UUID | str | None
    """Makes publishing idempotent; a UUIDv7 where absent."""
    metadata: Mapping[str, Any] | None
    """A JSON object of at most 16 KiB; `timestamp` and `content_type` are reserved."""
    ttl: float | timedelta | None
    """Seconds from the event's entry into the log until it is no longer delivered."""
    delay: float | timedelta | None
    """Seconds until it enters the log, by the database's clock."""
    schedule_in: float | timedelta | None
    """The same as `delay`, by the name that job libraries have for it. Give one of them."""
    publish_at: datetime | None
    """When it enters the log; aware. Not together with `delay`."""
    content_type: str | None
    """Instead of text/plain, application/octet-stream or application/json."""
    tags: Sequence[str] | None
    """At most 20 different words of 1 to 64 bytes; they are the list `tags` of the metadata."""
    unique: Unique | None
    """Store nothing where the same was published before, and answer the first one's receipt; see `Unique`."""


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
    unique: Fingerprint | None = None
    """What makes it a duplicate of another event; None: only its message_id."""

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
    """True if nothing was stored. An event of this message_id was in the log already, and `seq` is that event's; or one
    is scheduled already, and `seq` is None. Or it was published with `unique` and is the same as an earlier one: then
    `message_id` is the first one's, and so is `seq` where it has one."""


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
    def tags(self) -> tuple[str, ...]:
        """The tags that it was published with; none where its metadata's `tags` are something else."""
        return codec.tags_of(self.metadata)

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
UNSET: Any = object()
"""No payload was given; None is one (the null of JSON)."""

MAX_KEY = 255
"""Longest key, bytes."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def make_draft(
    event: Event | str,
    payload: Any = UNSET,
    *,
    key: str | None = None,
    message_id: UUID | str | None = None,
    metadata: Mapping[str, Any] | None = None,
    ttl: float | timedelta | None = None,
    delay: float | timedelta | None = None,
    schedule_in: float | timedelta | None = None,
    publish_at: datetime | None = None,
    content_type: str | None = None,
    tags: Sequence[str] | None = None,
    unique: Unique | None = None,
    max_payload: int,
    max_depth: int = 32,
) -> Draft:
    """Check and encode an event: the door that every event passes, whichever way it is published.

    `event` is an `Event`, or a topic with any payload beside it (None is a payload: JSON's null). `codec` says how a
    payload becomes bytes. `ttl` and `delay` are seconds or a timedelta; a delay of 0 is none. `schedule_in` is
    `delay` by another name.

    Raises:
        InvalidTopic: the topic does not follow the grammar.
        InvalidPayload: the payload cannot be stored and read back the same.
        PayloadTooLarge: the encoded payload exceeds `max_payload` bytes.
        InvalidEvent: anything else of the event cannot be used.
    """
    if isinstance(event, str):
        topic = check_topic(event)
        if payload is UNSET:
            raise InvalidEvent(f"the event of topic {quote(topic)} has no payload: give a topic and a payload")
    else:
        topic = _topic_of(event)
        if payload is not UNSET:
            raise InvalidEvent(f"{type(event).__name__} is the payload itself, got another one beside it")
        payload = event
    if isinstance(payload, str | bytes) and len(payload) > max_payload:
        # Before any of it is looked at: checking what will be refused anyway would be work for nothing.
        raise PayloadTooLarge(_size(payload), max_payload)
    body, content_type = codec.encode(payload, content_type, max_depth=max_depth, max_size=max_payload)
    if len(body) > max_payload:
        raise PayloadTooLarge(len(body), max_payload)
    times = {"delay": delay, "schedule_in": schedule_in, "publish_at": publish_at}
    given = [name for name, time in times.items() if time is not None]
    if len(given) > 1:
        raise InvalidEvent(f"give {' or '.join(given)}, not both")
    if tags is not None:
        metadata = codec.add_tags(metadata, tags)
    draft = Draft(
        codec.new_message_id() if message_id is None else codec.check_message_id(message_id),
        topic,
        None if key is None else _check_key(key),
        body,
        content_type,
        None if metadata is None else codec.encode_metadata(metadata),
        None if ttl is None else positive_microseconds("ttl", ttl),
        _check_delay("delay", delay) or _check_delay("schedule_in", schedule_in),
        None if publish_at is None else _check_publish_at(publish_at),
    )
    return draft if unique is None else make_unique(draft, unique)


def make_unique(draft: Draft, rule: Unique) -> Draft:
    """Return a draft that is a duplicate of others by a rule.

    Raises:
        InvalidEvent: the event has not what the rule compares.
    """
    metadata = None if draft.metadata is None else codec.load_object(draft.metadata)
    return draft._replace(
        unique=fingerprint_of(
            rule,
            topic=draft.topic,
            key=draft.key,
            body=draft.payload,
            content_type=draft.content_type,
            metadata=metadata,
        )
    )


def _topic_of(event: object) -> str:
    if isinstance(event, type) and issubclass(event, Event):
        raise InvalidEvent(f"expected an event, got the class {event.__name__} itself")
    if not isinstance(event, Event):
        raise InvalidEvent(f"expected an Event, or a topic and a payload, got {type(event).__name__}")
    if not event.__topic__:
        name = type(event).__name__
        raise InvalidEvent(
            f'{name} has no topic: declare it as class {name}(Event, topic="…"), or publish a topic with it as payload'
        )
    return event.__topic__


def _size(payload: str | bytes) -> int:
    return len(payload.encode("utf-8", "surrogatepass") if isinstance(payload, str) else payload)


def _check_key(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidEvent(f"key must be str, got {type(key).__name__}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidEvent(f"key {quote(key)} has a lone surrogate") from None
    if not 1 <= size <= MAX_KEY:
        raise InvalidEvent(f"key must be 1 to {MAX_KEY} bytes, got {size}")
    if _CONTROL.search(key):
        raise InvalidEvent(f"key {quote(key)} has a control character")
    return str.__str__(key)


def _check_delay(name: str, delay: object) -> int | None:
    if delay is None:
        return None
    found = microseconds(name, delay)
    if found < 0:
        raise InvalidEvent(f"{name} must be 0 seconds or more, got {quote(delay)}")
    return found or None


def _check_publish_at(publish_at: object) -> int:
    if not isinstance(publish_at, datetime):
        raise InvalidEvent(f"publish_at must be a datetime, got {quote(publish_at)}")
    if publish_at.utcoffset() is None:
        raise InvalidEvent(f"publish_at must have a time zone, got {quote(publish_at.isoformat())}")
    return (publish_at - _EPOCH) // _MICROSECOND
