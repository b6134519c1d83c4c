"""The JSON of recurring events: the same over HTTP and on the command line."""

from __future__ import annotations

from pydantic_core import to_json

from eventbus_fastapi.codec import load_object
from eventbus_fastapi.cron import time_text
from eventbus_fastapi.protocol.events import payload_member
from eventbus_fastapi.store.recurring import RecurringEvent


def recurring_object(event: RecurringEvent) -> str:
    """Return the text of a recurring event: what is published, and when."""
    said = event.declaration
    before = {"name": event.name, "cron": said.cron, "timezone": said.timezone, "missed": said.missed}
    after = {
        "content_type": said.content_type,
        "key": said.key,
        "metadata": None if said.metadata is None else load_object(said.metadata),
        "ttl": None if said.ttl is None else said.ttl / 1_000_000,
        "next_at": None if event.is_paused else time_text(event.next_at),
        "last_at": None if event.last_at is None else time_text(event.last_at),
        "paused": event.is_paused,
        "declared": event.is_declared,
    }
    payload = f'"topic":"{said.topic}",{payload_member(said.payload, said.content_type)}'
    return f"{to_json(before).decode()[:-1]},{payload},{to_json(after).decode()[1:]}"
