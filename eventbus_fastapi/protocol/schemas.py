"""JSON Schemas of what is said about events, over HTTP and in frames: topics, patterns, names, an event to publish.

OpenAPI and AsyncAPI are made of these. They are written in what draft 7 and 2020-12 of JSON Schema have in common, and
in regular expressions that Python and JavaScript read the same. What is refused although it fits is what they cannot
say: lengths in bytes, nesting, a `unique` that names what its event has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventbus_fastapi.codec import MAX_TAGS
from eventbus_fastapi.durations import MAX_DURATION
from eventbus_fastapi.names import MAX_NAME, UNSEEN
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.protocol.commands import MAX_PATTERNS
from eventbus_fastapi.topics import MAX_BYTES, MAX_SEGMENTS
from eventbus_fastapi.unique import MAX_NAMES, REPLACEABLE

Schema = dict[str, Any]


# --- how they are made ---------------------------------------------------------------------------


def or_null(schema: Schema) -> Schema:
    """Return the schema of a field that may be absent: `null` counts as that."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    return {**schema, "type": [schema["type"], "null"]} if "type" in schema else {"anyOf": [schema, {"type": "null"}]}


def is_given(name: str) -> Schema:
    """Return what an object fits that has a field, other than `null`."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def is_absent(*names: str) -> Schema:
    """Return what an object fits that has none of these fields, or has them as `null`."""
    return {"properties": {name: {"type": "null"} for name in names}}


def one_of(*names: str) -> list[Schema]:
    """Return the alternatives of an object that has exactly one of these fields."""
    return [{**is_given(name), **_besides(name, names)} for name in names]


def at_most_one_of(*names: str) -> list[Schema]:
    """Return the alternatives of an object that has one of these fields, or none."""
    return [is_absent(*[each for each in names if each != name]) for name in names]


def _besides(name: str, names: tuple[str, ...]) -> Schema:
    others = is_absent(*[each for each in names if each != name])
    return {"properties": {**others["properties"], **is_given(name)["properties"]}}


def with_words(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


# --- texts and numbers ---------------------------------------------------------------------------

_SEGMENT = r"[A-Za-z0-9_\-:@/]+"
_CONTROL = r"\u0000-\u001f\u007f-\u009f"
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~\-]+"

TOPIC: Schema = {
    "type": "string",
    "maxLength": MAX_BYTES,
    "pattern": rf"^{_SEGMENT}(\.{_SEGMENT}){{0,{MAX_SEGMENTS - 1}}}$",
    "description": f"Up to {MAX_SEGMENTS} segments of `A–Z a–z 0–9 _ - : @ /`, joined by `.`.",
}
PATTERN: Schema = {
    "type": "string",
    "maxLength": MAX_BYTES,
    "pattern": rf"^({_SEGMENT}|[*#])(\.({_SEGMENT}|[*#])){{0,{MAX_SEGMENTS - 1}}}$",
    "description": "A topic in which `*` is exactly one segment and `#` is zero or more.",
}
PATTERNS: Schema = {"type": "array", "items": PATTERN, "minItems": 1, "maxItems": MAX_PATTERNS}
NAME: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_NAME,
    "pattern": f"^[^{UNSEEN}]+$",
    "description": f"1 to {MAX_NAME} bytes without spaces and control characters.",
}
"""Of a queue."""
SEGMENT_NAME: Schema = {**NAME, "pattern": rf"^(?!\.\.?$)[^/{UNSEEN}]+$"}
"""Of a recurring event: it has no slashes."""
PATH_NAME: Schema = {
    **NAME,
    "pattern": rf"^(?!(.*/)?\.\.?(/|$))(?!.*/(retries|blocked-keys|pause|resume|reset)$)"
    rf"[^/{UNSEEN}]+(/[^/{UNSEEN}]+)*$",
}
"""Of a group or a rate limit: one with slashes is a path, and none of those that HTTP has."""
UUID: Schema = {
    "type": "string",
    "format": "uuid",
    "pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
}
KEY: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 255,
    "pattern": f"^[^{_CONTROL}]*$",
    "description": "What the event is about: 1 to 255 bytes without control characters.",
}
CONTENT_TYPE: Schema = {
    "type": "string",
    "maxLength": 127,
    "pattern": rf"^{_TOKEN}/{_TOKEN}([ \t]*;[ \t]*{_TOKEN}=({_TOKEN}|\"([ !#-\[\]-~]|\\[ -~])*\"))*$",
}
TAG: Schema = {"type": "string", "minLength": 1, "maxLength": 64, "pattern": f"^[^{_CONTROL}]*$"}
TAGS: Schema = {"type": "array", "items": TAG, "maxItems": MAX_TAGS, "uniqueItems": True}
TIME: Schema = {"type": "string", "format": "date-time"}
SEQ: Schema = {"type": "integer", "minimum": 1, "maximum": fields.MAX_SEQ}
PLACE: Schema = {"type": "integer", "minimum": 0, "maximum": fields.MAX_SEQ}
"""A seq, or 0: before the first."""
SECONDS: Schema = {"type": "number", "minimum": 0, "maximum": MAX_DURATION}

METADATA: Schema = {
    "type": "object",
    "maxProperties": 64,
    "properties": {"timestamp": False, "content_type": False},
    "description": "JSON values of your own; the names `timestamp` and `content_type` are the bus's.",
}


# --- an event to publish -------------------------------------------------------------------------

_NAMES: Schema = {"type": "array", "items": {"type": "string"}, "maxItems": MAX_NAMES}

UNIQUE: Schema = {
    "type": "object",
    "additionalProperties": False,
    "description": "Store nothing where the same was published before, and answer the first one with "
    "`duplicate: true`. Two events are the same if their topics are, and all that is compared.",
    "properties": {
        "fields": with_words(
            or_null(_NAMES), "Fields of the payload, an object, that are compared. Absent: the whole payload."
        ),
        "key": {"type": ["boolean", "null"], "default": False, "description": "Compare the events' keys."},
        "metadata": with_words(or_null(_NAMES), "Names in the metadata that are compared."),
        "within": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "maximum": MAX_DURATION,
            "description": "For so many seconds after the first one. Absent: while that waits for its time.",
        },
        "replace": {
            "type": ["array", "null"],
            "items": {"enum": list(REPLACEABLE)},
            "maxItems": MAX_NAMES,
            "description": "What the first one takes over from this one, while it waits for its time.",
        },
    },
}

OF_EVENTS: Mapping[str, Schema] = {
    "topic": TOPIC,
    "payload": {
        "description": "Any JSON value. A string is published as `text/plain`, anything else as "
        "`application/json`, unless `content_type` says otherwise. Required, or `payload_base64`."
    },
    "payload_base64": {
        "type": ["string", "null"],
        "contentEncoding": "base64",
        "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
        "description": "Instead of `payload`: bytes.",
    },
    "message_id": with_words(
        or_null(UUID), "Published again with the same id, an event is stored once. Generated where absent."
    ),
    "key": or_null(KEY),
    "metadata": or_null(METADATA),
    "content_type": or_null(CONTENT_TYPE),
    "ttl": with_words(or_null(SECONDS), "Seconds after which the event expires; absent or 0: never."),
    "delay": with_words(or_null(SECONDS), "Seconds to wait before the event enters the log."),
    "tags": with_words(or_null(TAGS), "Words; they are the list `tags` of the metadata."),
    "unique": or_null(UNIQUE),
    "durable": {
        "type": ["boolean", "null"],
        "default": True,
        "description": "`false`: reach the live subscriptions of this node only, and store nothing. "
        "The same in all events of a list.",
    },
}
"""The fields of an event that is published."""

JSON_TYPE = (
    rf"^([aA][pP][pP][lL][iI][cC][aA][tT][iI][oO][nN]/[jJ][sS][oO][nN]|{_TOKEN}/[^;]*\+[jJ][sS][oO][nN])[ \t]*(;|$)"
)

HAS_PAYLOAD: Schema = {
    "anyOf": [
        {
            "title": "JSON or text",
            "required": ["payload"],
            **is_absent("payload_base64"),
            "anyOf": [
                is_absent("content_type"),
                {"properties": {"payload": {"type": "string"}}},
                {"properties": {"content_type": {"type": "string", "pattern": JSON_TYPE}}},
            ],
        },
        {
            "title": "Bytes",
            "required": ["payload_base64"],
            "properties": {"payload_base64": {"type": "string"}, "payload": {"type": "null"}},
        },
    ]
}
"""What an event fits whose payload is there, and is what its content type says."""
STORED: Schema = {
    "anyOf": [
        {"properties": {"durable": {"type": ["boolean", "null"], "enum": [True, None]}}},
        {
            "required": ["durable"],
            "properties": {
                "durable": {"const": False},
                "delay": {"enum": [0, None]},
                "unique": {"type": "null"},
            },
        },
    ]
}
"""What an event fits that waits, or is unique, only where it is stored."""
TAGGED_ONCE: Schema = {
    "anyOf": [
        {"properties": {"tags": {"type": ["array", "null"], "maxItems": 0}}},
        {"properties": {"metadata": {"type": ["object", "null"], "properties": {"tags": False}}}},
    ]
}
"""What an event fits whose tags are not in its metadata as well."""
UNIQUE_BY_ITS_KEY: Schema = {
    "anyOf": [
        is_given("key"),
        {"properties": {"unique": {"type": ["object", "null"], "properties": {"key": {"enum": [False, None]}}}}},
    ]
}

ALL_STORED_OR_NONE: list[Schema] = [
    {"items": {"required": ["durable"], "properties": {"durable": {"const": False}}}},
    {"items": {"properties": {"durable": {"enum": [True, None]}}}},
]
"""The alternatives of a list of events."""

PUBLISHED_EVENT: Schema = {
    "title": "PublishedEvent",
    "type": "object",
    "required": ["topic"],
    "properties": dict(OF_EVENTS),
    "allOf": [HAS_PAYLOAD, STORED, TAGGED_ONCE, UNIQUE_BY_ITS_KEY],
}
"""An event as it is published over HTTP or in a frame."""
