"""The forms in which a program may give a client many events to publish, and the drafts that they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventbus_fastapi.errors import InvalidEvent, quote
from eventbus_fastapi.events import UNSET, Draft, Event, make_draft

Draftable = Event | tuple[str, Any] | Mapping[str, Any]
"""An event to publish: a typed one, a topic and a payload, or a mapping with `topic`, `payload` and, where wanted,
`key`, `message_id`, `metadata`, `ttl`, `delay`, `content_type`, `tags`, `unique`."""

_FIELDS = frozenset(
    {"topic", "payload", "key", "message_id", "metadata", "ttl", "delay", "content_type", "tags", "unique"}
)


def draft_of(event: Draftable, max_payload: int) -> Draft:
    """Check and encode an event.

    Raises:
        InvalidInput: it does not follow the rules.
    """
    if isinstance(event, Mapping):
        if foreign := event.keys() - _FIELDS:
            raise InvalidEvent(f"unknown field {quote(min(map(str, foreign)))}; known are {', '.join(sorted(_FIELDS))}")
        options = {name: value for name, value in event.items() if name not in ("topic", "payload")}
        topic: Any = event.get("topic")
        return make_draft(topic, event.get("payload", UNSET), **options, max_payload=max_payload)
    if isinstance(event, tuple):
        if len(event) != 2:
            raise InvalidEvent(f"expected a topic and a payload, got a tuple of {len(event)}")
        return make_draft(*event, max_payload=max_payload)
    return make_draft(event, max_payload=max_payload)
