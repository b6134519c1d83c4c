"""The headers in which an event of ours travels through a broker: written when it is relayed, read when it comes back.

    eventbus-message-id     its message_id
    eventbus-seq            its place in the log that it was relayed from
    eventbus-topic          its topic, whatever the subject or routing key is
    eventbus-key            its key, percent-encoded
    eventbus-metadata       its metadata, a JSON object in ASCII
    content-type            of the payload, which is the body as it was published
    traceparent, tracestate the context of its trace, once more where other programs look for it

All values are ASCII: that is what every broker can carry. AMQP has properties of its own for the content type and the
message_id; they are written beside these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote
from uuid import UUID

from eventbus_fastapi import codec
from eventbus_fastapi.errors import InvalidEvent, InvalidPayload
from eventbus_fastapi.events import Message
from eventbus_fastapi.telemetry.tracing import TRACEPARENT, TRACESTATE

MESSAGE_ID = "eventbus-message-id"
SEQ = "eventbus-seq"
TOPIC = "eventbus-topic"
KEY = "eventbus-key"
METADATA = "eventbus-metadata"
CONTENT_TYPE = "content-type"


class Relayed(NamedTuple):
    """What the headers say of an event that was relayed from a bus."""

    message_id: UUID
    topic: str
    key: str | None
    metadata: dict[str, Any]
    seq: int | None
    """In the log that it comes from."""


def headers_of(message: Message) -> dict[str, str]:
    """Return the headers of an event."""
    headers = {
        MESSAGE_ID: str(message.message_id),
        SEQ: str(message.seq),
        TOPIC: message.topic,
        CONTENT_TYPE: message.content_type,
    }
    if message.key is not None:
        headers[KEY] = quote(message.key, safe="")
    text = message.metadata_json
    if text is not None:
        headers[METADATA] = text if text.isascii() else json.dumps(json.loads(text), separators=(",", ":"))
        headers |= _context_in(text)
    return headers


def relayed_of(headers: Mapping[str, Any]) -> Relayed | None:
    """Return what headers say, by their names in lower case; None: it comes from elsewhere.

    Raises:
        InvalidEvent: they say that it comes from a bus, and something of it cannot be read.
    """
    if MESSAGE_ID not in headers or TOPIC not in headers:
        return None
    message_id = codec.check_message_id(_text(headers, MESSAGE_ID))
    seq = _text(headers, SEQ) if SEQ in headers else ""
    try:
        metadata = codec.load_object(_text(headers, METADATA)) if METADATA in headers else {}
    except InvalidPayload as exc:
        raise InvalidEvent(f"the header {METADATA} {exc}") from exc
    return Relayed(
        message_id,
        _text(headers, TOPIC),
        unquote(_text(headers, KEY)) if KEY in headers else None,
        metadata,
        int(seq) if seq.isascii() and seq.isdecimal() and len(seq) < 20 else None,
    )


def _text(headers: Mapping[str, Any], name: str) -> str:
    value = headers[name]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        raise InvalidEvent(f"the header {name} must be a text, got {type(value).__name__}")
    return value


def _context_in(metadata: str) -> dict[str, str]:
    if f'"{TRACEPARENT}"' not in metadata:
        return {}
    values = codec.load_object(metadata)
    found = {name: values.get(name) for name in (TRACEPARENT, TRACESTATE)}
    return {name: value for name, value in found.items() if isinstance(value, str) and _is_plain(value)}


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable() and len(value) <= 1_024
