"""The event object of the wire: written from a `Message` or a `Draft`, read into one.

Writing a message is the hot path of the fan-out: its text is built once, kept with the message, and shared by every
connection. A JSON payload goes out as the bytes that were stored, without being parsed.

This module knows nothing of frames: it neither adds a `type` to an event nor looks for one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from eventbus_fastapi import codec
from eventbus_fastapi.errors import BadFrame
from eventbus_fastapi.events import Draft, Message, make_draft
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.protocol.unique import parse_unique, unique_object
from eventbus_fastapi.settings import Settings

Sub = int | str
"""The id of a subscription, chosen by the client."""


# --- messages: server → client -------------------------------------------------------------------


def event_object(message: Message) -> str:
    """Return the JSON text of an event, as the plain dialect and HTTP send it."""
    return "{" + (message._wire or _write(message))


def event_frame(messages: Sequence[Message], sub: Sub) -> str:
    """Return the v1 frame of one or more events: an object, or an array of objects."""
    bodies = event_bodies(messages, sub)
    return bodies if len(messages) == 1 else f"[{bodies}]"


def event_bodies(messages: Sequence[Message], sub: Sub) -> str:
    """Return the v1 objects of one or more events, joined by commas."""
    opening = f'{{"type":"event","sub":{sub_json(sub)},'
    return opening + f",{opening}".join([message._wire or _write(message) for message in messages])


def delivery_frame(deliveries: Sequence[tuple[Message, int]], sub: Sub) -> str:
    """Return the v1 frame of one or more events of a group, each with its attempt: no other member is sent the same."""
    opening = f'{{"type":"event","sub":{sub_json(sub)},"attempt":'
    bodies = [f"{opening}{attempt},{message._wire or _write(message)}" for message, attempt in deliveries]
    return bodies[0] if len(bodies) == 1 else f"[{','.join(bodies)}]"


def sub_json(sub: Sub) -> str:
    return str(sub) if type(sub) is int else encode_basestring(str(sub))


def _write(message: Message) -> str:
    """Build what follows the opening brace of an event's object, and keep it with the message."""
    key = "" if message.key is None else f'"key":{encode_basestring(message.key)},'
    wire = message._wire = (
        f'"seq":{message.seq},"message_id":"{message.message_id}","topic":"{message.topic}",{key}'
        f'{payload_member(message.body, message.content_type)},"metadata":{{{_inner(message.metadata_json)}'
        f'"timestamp":{message.created_at // 1_000_000},"content_type":{_quoted(message.content_type)}}}}}'
    )
    return wire


def payload_member(body: bytes, content_type: str) -> str:
    """Return the member of an object that holds a payload, `payload` or `payload_base64`."""
    kind = _kind(content_type)
    if kind != "bytes":
        try:
            text = body.decode()
        except UnicodeDecodeError:
            pass  # not what its content type says: it goes out as the bytes that it is
        else:
            return '"payload":' + (text if kind == "json" else encode_basestring(text))
    return f'"payload_base64":"{base64.b64encode(body).decode()}"'


def _inner(metadata_json: str | None) -> str:
    """The members of a JSON object's text, with a trailing comma if there are any."""
    if metadata_json is None:
        return ""
    inner = metadata_json.strip()[1:-1].strip()
    return inner and inner + ","


@lru_cache(maxsize=1_024)
def _kind(content_type: str) -> str:
    if codec.is_json(content_type):
        return "json"
    return "text" if codec.is_text(content_type) else "bytes"


@lru_cache(maxsize=1_024)
def _quoted(text: str) -> str:
    return encode_basestring(text)


# --- messages, read by the client ----------------------------------------------------------------


def parse_event(event: fields.Object) -> Message:
    """Return the message that an event object describes.

    A JSON payload's `body` holds the same value, not necessarily the same bytes, as the one that was published.

    Raises:
        BadFrame: the object is not an event.
    """
    try:
        metadata = dict(event["metadata"])
        timestamp, content_type = metadata.pop("timestamp"), metadata.pop("content_type")
        body, payload = _read_payload(event, content_type)
        message = Message(
            event["seq"],
            UUID(event["message_id"]),
            event["topic"],
            event.get("key"),
            body,
            content_type,
            to_json(metadata).decode() if metadata else None,
            int(timestamp * 1_000_000),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BadFrame(f"not an event object: {type(exc).__name__}: {exc}") from exc
    message._payload = payload
    return message


def _read_payload(event: fields.Object, content_type: str) -> tuple[bytes, Any]:
    if "payload_base64" in event:
        body = base64.b64decode(event["payload_base64"], validate=True)
        return body, body
    payload = event["payload"]
    if _kind(content_type) == "json":
        return to_json(payload), payload
    return payload.encode(), payload


# --- drafts: client → server ---------------------------------------------------------------------


def draft_object(draft: Draft, *, durable: bool = True) -> str:
    """Return the JSON text of an event to publish: the `data` of a `publish` frame."""
    key = "" if draft.key is None else f',"key":{encode_basestring(draft.key)}'
    metadata = "" if draft.metadata is None else f',"metadata":{draft.metadata}'
    ttl = "" if draft.ttl is None else f',"ttl":{draft.ttl / 1_000_000!r}'
    delay = "" if draft.delay is None else f',"delay":{draft.delay / 1_000_000!r}'
    unique = "" if draft.unique is None else f',"unique":{to_json(unique_object(draft.unique.rule)).decode()}'
    live = "" if durable else ',"durable":false'
    return (
        f'{{"topic":"{draft.topic}",{payload_member(draft.payload, draft.content_type)},'
        f'"message_id":"{draft.message_id}","content_type":{_quoted(draft.content_type)}'
        f"{key}{metadata}{ttl}{delay}{unique}{live}}}"
    )


def parse_draft(event: fields.Object, limits: Settings, ttl: float | None = None) -> Draft:
    """Return the draft that an object of `publish` describes, validated and encoded.

    `ttl` (seconds) applies where the event has none; 0 means that it never expires.

    Raises:
        BadFrame: a field is missing or has the wrong type.
        InvalidInput: the event does not follow the rules.
    """
    topic = fields.required("topic", fields.string(event, "topic"))
    own_ttl = fields.seconds(event, "ttl")
    return make_draft(
        topic,
        _published_payload(event),
        key=fields.string(event, "key"),
        message_id=fields.message_id(event),
        metadata=fields.mapping(event, "metadata"),
        ttl=(ttl if own_ttl is None else own_ttl) or None,
        delay=fields.seconds(event, "delay") or None,
        content_type=fields.string(event, "content_type"),
        tags=fields.array(event, "tags"),
        unique=parse_unique(event),
        max_payload=limits.max_payload,
        max_depth=limits.max_depth,
    )


def _published_payload(event: fields.Object) -> Any:
    """The payload's value. Here alone `null` is a value: the payload of an event may be JSON's null."""
    encoded = fields.string(event, "payload_base64")
    if encoded is None:
        if "payload" not in event:
            raise BadFrame("field 'payload' is missing (or 'payload_base64' for bytes)")
        return event["payload"]
    if event.get("payload") is not None:
        raise BadFrame("fields 'payload' and 'payload_base64': expected one of them, got both")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise fields.wrong("payload_base64", "base64 (RFC 4648, section 4)", encoded) from None
