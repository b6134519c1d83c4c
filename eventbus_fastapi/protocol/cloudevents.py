"""CloudEvents 1.0 in JSON, written from a `Message` and read into a `Draft`. docs/cloudevents.md has the mapping.

Attributes are judged by the CloudEvents SDK. JSON is not read and written by it: its reader takes NaN, twin names and
any depth, makes up an id where there is none and knows no batches; and a payload goes out here as the bytes that were
stored, which it would parse.

What a CloudEvent has that an event of the bus has no place for is kept in the metadata, so that it comes out as it came
in. An event that was published natively comes out with the bus's own `source`, and what of its metadata is no extension
of CloudEvents in the extension `eventbusmeta`, so that it is the same event again in another bus.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.v1.event import CloudEvent
from pydantic_core import to_json

from eventbus_fastapi import codec
from eventbus_fastapi.errors import (
    BadFrame,
    EventBusError,
    InvalidCloudEvent,
    InvalidPayload,
    InvalidTopic,
    UnsupportedMediaType,
    quote,
)
from eventbus_fastapi.events import MAX_KEY, UNSET, Draft, Message, make_draft
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.protocol.events import payload_member
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.topics import check_topic

SUBPROTOCOL = "cloudevents.json"
"""Of a WebSocket each of whose messages is one CloudEvent."""
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
REQUIRED = ("specversion", "id", "source", "type")

KEPT = "cloudevents"
"""The name in the metadata under which attributes are kept that are neither mapped nor extensions."""
REST = "eventbusmeta"
"""The extension that has, as a JSON object, the metadata that cannot be extensions."""
SEQ = "seq"
"""The extension with an event's place in the log. It is the bus's own: what comes in with it is another log's."""

_MAPPED = frozenset({*REQUIRED, "time", "subject", "datacontenttype", "dataschema", "data", SEQ, REST, KEPT})
"""Names that are no extensions to be found in the metadata."""
_KEEPABLE = frozenset({"id", "source", "time", "dataschema", "timestamp", KEPT})
_TIMES = ("time", "expirytime")
_NAME = re.compile(r"[a-z0-9]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CENTURY = 3_155_760_000.0


# --- messages: out -------------------------------------------------------------------------------


def cloudevent_object(message: Message, source: str) -> str:
    """Return the JSON text of an event as a CloudEvent. `source` is that of events that have none of their own."""
    members = to_json(cloudevent_attributes(message, source)).decode()
    return f"{members[:-1]}{_data_member(message)}}}"


def cloudevent_attributes(message: Message, source: str) -> dict[str, Any]:
    """Return what an event has as a CloudEvent besides its data: strings, booleans and integers by name."""
    kept, extensions = _attributes_in(message.metadata)
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": str(message.message_id),
        "source": source,
        "type": message.topic,
        "time": _written_time(message.created_at),
        "datacontenttype": message.content_type,
    }
    if message.key is not None:
        attributes["subject"] = message.key
    if message.is_durable:
        attributes[SEQ] = str(message.seq)
    if message.expires_at is not None:
        attributes["expirytime"] = _written_time(message.expires_at)
    return attributes | kept | extensions


def cloudevents_batch(messages: Sequence[Message], source: str) -> str:
    """Return the JSON text of events as a batch of CloudEvents."""
    return "[" + ",".join([cloudevent_object(message, source) for message in messages]) + "]"


def gap_event(first_seq: int, last_seq: int, reason: str, source: str) -> str:
    """Return the CloudEvent that says that events were asked for and will not come."""
    return _said("gap", {"first_seq": first_seq, "last_seq": last_seq, "reason": reason}, source)


def error_event(error: EventBusError, number: int | None, source: str) -> str:
    """Return the CloudEvent that says that a message was refused: the one of this number, counted from 1."""
    return _said("error", error.describe(), source, **({} if number is None else {"subject": str(number)}))


def _said(what: str, told: Mapping[str, Any], source: str, **attributes: str) -> str:
    """Return what the bus says for itself. It has no seq."""
    event = {"specversion": "1.0", "id": codec.new_message_id(), "source": source, "type": f"eventbus.{what}"}
    return to_json({**event, **attributes, "datacontenttype": codec.JSON, "data": told}).decode()


def _data_member(message: Message) -> str:
    """Return `,"data":…` or `,"data_base64":…`; nothing for JSON's null and for no bytes, which are no data here."""
    if codec.is_json(message.content_type) and message.body == b"null":
        return ""
    if not message.body and not codec.is_text(message.content_type):
        return ""
    return ',"data' + payload_member(message.body, message.content_type).removeprefix('"payload')


def _attributes_in(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes that metadata keeps, and its extensions; what is neither is in one of them."""
    kept: dict[str, Any] = metadata[KEPT] if _are_kept(metadata.get(KEPT)) else {}
    extensions: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in metadata.items():
        if name == KEPT and kept:
            continue
        if name not in _MAPPED and _NAME.fullmatch(name) and _can_be(name, value):
            extensions[name] = value
        else:
            rest[name] = value
    if rest:
        # JSON writes DEL and the like as they are, which a string of CloudEvents cannot have.
        extensions[REST] = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", to_json(rest).decode())
    return kept, extensions


def _are_kept(kept: object) -> bool:
    """Whether they are what this module has kept, and not what a publisher has put there."""
    return isinstance(kept, dict) and all(name in _KEEPABLE and _can_be(name, kept[name]) for name in kept)


def _can_be(name: str, value: object) -> bool:
    """Whether a value can be that attribute's: one that cannot would make readers refuse all that comes with it."""
    if name in _TIMES:
        return isinstance(value, str) and _is_time(value)
    if name in ("id", "source", "dataschema"):
        return isinstance(value, str) and value != "" and _is_simple(value)
    return _is_simple(value)


def _is_time(value: str) -> bool:
    try:
        fields.time(value, "time")
    except BadFrame:
        return False
    return True


def _is_simple(value: object) -> bool:
    """Whether a value can be an attribute's."""
    if isinstance(value, str):
        return not _CONTROL.search(value)
    return isinstance(value, bool) or (isinstance(value, int) and -(2**31) <= value < 2**31)


def _written_time(microseconds: int) -> str:
    written = datetime.fromtimestamp(microseconds / 1_000_000, UTC).isoformat(timespec="microseconds")
    return written.removesuffix("+00:00") + "Z"


# --- drafts: in ----------------------------------------------------------------------------------


def parse_cloudevent(event: object, limits: Settings, now: int) -> Draft:
    """Return the draft that a CloudEvent in JSON describes. `now`: unix microseconds, the database's clock.

    Raises:
        InvalidCloudEvent, UnsupportedMediaType: it is none, or none that can be published; the message names the
            attribute.
        InvalidInput: its type is no topic, or its data cannot be stored.
    """
    if not isinstance(event, Mapping):
        raise InvalidCloudEvent("specversion", f"expected a CloudEvent, a JSON object, got {fields.shown(event)}")
    attributes = {name: _number(value) for name, value in event.items() if value is not None}
    data, encoded = event.get("data"), attributes.pop("data_base64", UNSET)
    data = UNSET if attributes.pop("data", None) is None else data
    if encoded is not UNSET:
        if data is not UNSET:
            raise InvalidCloudEvent("data", "expected one of 'data' and 'data_base64', got both")
        data = _decoded(encoded)
    return draft_of(attributes, data, limits, now)


def _number(value: Any) -> Any:
    """Return an integer that JSON has as 5.0 as one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def draft_of(attributes: Mapping[str, Any], data: Any, limits: Settings, now: int) -> Draft:
    """Return the draft of a CloudEvent that is taken apart: `data` is a JSON value, bytes, or `UNSET`. Raises as
    `parse_cloudevent`.
    """
    times = _check(attributes)
    content_type = _content_type(attributes, data)
    if "subject" in attributes and len(attributes["subject"].encode()) > MAX_KEY:
        raise InvalidCloudEvent("subject", f"expected at most {MAX_KEY} bytes")
    try:
        return make_draft(
            check_topic(attributes["type"]),
            _payload(data, content_type),
            key=attributes.get("subject"),
            message_id=_message_id(attributes["source"], attributes["id"], limits),
            metadata=_metadata(attributes, limits),
            ttl=_ttl(times["expirytime"], now) if "expirytime" in times else None,
            content_type=content_type,
            max_payload=limits.max_payload,
            max_depth=limits.max_depth,
        )
    except InvalidTopic as exc:
        exc.args = (f"CloudEvents attribute 'type': {exc}",)
        raise
    except InvalidPayload as exc:
        exc.args = (f"CloudEvents attribute 'data': {exc}",)
        raise


def _check(attributes: Mapping[str, Any]) -> dict[str, datetime]:
    """Refuse attributes that cannot be a CloudEvent's. Return those that are times."""
    for name in REQUIRED:
        if name not in attributes:
            raise InvalidCloudEvent(name, "it is missing")
    for name, value in attributes.items():
        if not _NAME.fullmatch(name):
            raise InvalidCloudEvent(quote(name)[1:-1], "a name is 1 to 64 lower-case letters and digits")
        if not _is_simple(value) and name != "datacontenttype":  # that has a grammar of its own
            expected = "expected a string without control characters, a boolean or a 32-bit integer"
            raise InvalidCloudEvent(name, f"{expected}, got {_shown(value)}")
    times = {name: _time(name, attributes[name]) for name in _TIMES if name in attributes}
    try:
        CloudEvent({**attributes, "time": times.get("time", _SOME_TIME)})
    except CloudEventValidationError as exc:
        name, reasons = next(iter(exc.errors.items()))
        raise InvalidCloudEvent(name, f"{reasons[-1]}, got {_shown(attributes.get(name))}") from exc
    return times


_SOME_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""The SDK makes one up where there is none."""


def _shown(value: object) -> str:
    return fields.shown(value)


def _time(name: str, value: object) -> datetime:
    try:
        return fields.time(value if isinstance(value, str) else "", name)
    except BadFrame:
        raise InvalidCloudEvent(
            name, f"expected an RFC 3339 time with its offset, like '2026-01-01T00:00:00Z', got {_shown(value)}"
        ) from None


def _decoded(encoded: object) -> bytes:
    try:
        if isinstance(encoded, str):
            return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise InvalidCloudEvent("data_base64", f"expected base64 (RFC 4648, section 4), got {_shown(encoded)}")


def _content_type(attributes: Mapping[str, Any], data: Any) -> str:
    """Return what the data is: JSON, where nothing is said, but for bytes that are none."""
    given = attributes.get("datacontenttype")
    if given is None:
        return codec.BINARY if isinstance(data, bytes) else codec.JSON
    try:
        return codec.check_content_type(given)
    except InvalidPayload as exc:
        raise UnsupportedMediaType(f"CloudEvents attribute 'datacontenttype': {exc}") from exc


def _payload(data: Any, content_type: str) -> Any:
    if data is UNSET:
        return None if codec.is_json(content_type) else b""
    if codec.is_json(content_type) or isinstance(data, str | bytes):
        return data
    expected = f"expected a string, as datacontenttype is {quote(content_type)}"
    raise InvalidCloudEvent("data", f"{expected}, got {_shown(data)}")


def _message_id(source: str, event_id: str, limits: Settings) -> UUID:
    """Return the message_id of what CloudEvents knows by source and id together."""
    if _is_own(source, event_id, limits):
        return UUID(event_id)
    return codec.derived_message_id(KEPT, source, event_id)


def _is_own(source: str, event_id: str, limits: Settings) -> bool:
    """Whether an event of this id would come out with it by itself: it is the bus's own, or was."""
    return source == limits.cloudevents_source and _UUID.fullmatch(event_id) is not None


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _metadata(attributes: Mapping[str, Any], limits: Settings) -> dict[str, Any]:
    kept = {name: attributes[name] for name in _KEEPABLE - {"id", "source"} if name in attributes}
    if not _is_own(attributes["source"], attributes["id"], limits):
        kept |= {"id": attributes["id"], "source": attributes["source"]}
    metadata = _rest(attributes.get(REST))
    metadata |= {name: value for name, value in attributes.items() if name not in _MAPPED and name not in kept}
    return metadata | {KEPT: kept} if kept else metadata


def _rest(text: object) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        rest = codec.load_object(text) if isinstance(text, str) else None
    except InvalidPayload:
        rest = None
    if rest is None:
        raise InvalidCloudEvent(REST, f"expected a JSON object in a string, got {_shown(text)}")
    return rest


def _ttl(expiry: datetime, now: int) -> float | None:
    """Return the seconds until then; None: as good as never."""
    left = expiry.timestamp() - now / 1_000_000
    if left <= 0:
        raise InvalidCloudEvent("expirytime", f"expected a time to come, got {expiry.isoformat()}")
    return left if left < _CENTURY else None
