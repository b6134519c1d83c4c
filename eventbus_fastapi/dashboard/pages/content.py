"""What pages show of an event beside its facts: its payload, cut unless all of it is asked for, and its metadata."""

from __future__ import annotations

from typing import Any

from eventbus_fastapi import codec
from eventbus_fastapi.dashboard.shown import shown_payload
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.events import Message


def content_of(visit: Visit, message: Message) -> dict[str, Any]:
    """Return what the templates need of an event."""
    metadata = message.metadata_json
    return {
        "message": message,
        "metadata": None if metadata is None else shown_payload(metadata.encode(), codec.JSON),
        "payload": shown_payload(message.body, message.content_type, whole=visit.query.text("whole") == "1"),
    }
