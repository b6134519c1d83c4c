"""What OpenAPI says of CloudEvents, and of `Idempotency-Key`; see `openapi`."""

from typing import Any

from eventbus_fastapi.protocol import schemas
from eventbus_fastapi.protocol.cloudevents import BATCH, STRUCTURED
from eventbus_fastapi.server.openapi import EVENT, MESSAGE_ID, SEQ

_TEXT: dict[str, Any] = {"type": "string", "minLength": 1, "pattern": schemas.KEY["pattern"]}
_OPTIONAL = schemas.or_null(_TEXT)

HAS_DATA: dict[str, Any] = {
    "anyOf": [
        {
            "title": "JSON or text",
            **schemas.is_absent("data_base64"),
            "anyOf": [
                schemas.is_absent("datacontenttype"),
                {"properties": {"data": {"type": ["string", "null"]}}},
                {"properties": {"datacontenttype": {"type": "string", "pattern": schemas.JSON_TYPE}}},
            ],
        },
        {
            "title": "Bytes",
            "required": ["data_base64"],
            "properties": {"data_base64": {"type": "string"}, "data": {"type": "null"}},
        },
    ]
}
"""What a CloudEvent fits whose data is what its `datacontenttype` says."""

CLOUDEVENT: dict[str, Any] = {
    "title": "CloudEvent",
    "description": "An event in the JSON format of CloudEvents 1.0. Its other members are extensions, such as "
    "`expirytime`, a time to come.",
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "propertyNames": {"pattern": "^([a-z0-9]{1,64}|data_base64)$"},
    "properties": {
        "specversion": {"const": "1.0"},
        "id": schemas.with_words(_TEXT, "Names the event, together with `source`; so it is the `message_id`."),
        "source": schemas.with_words(_TEXT, "A URI reference."),
        "type": schemas.with_words(schemas.TOPIC, "The topic."),
        "subject": schemas.with_words(schemas.or_null(schemas.KEY), "The key; at most 255 bytes."),
        "time": schemas.or_null(schemas.TIME),
        "dataschema": _OPTIONAL,
        "datacontenttype": schemas.with_words(
            schemas.or_null(schemas.CONTENT_TYPE),
            "What `data` is. Absent: JSON; otherwise, unless it is JSON, `data` is a string.",
        ),
        "data": {"description": "The payload. Absent: `null`."},
        "data_base64": schemas.with_words(schemas.OF_EVENTS["payload_base64"], "Instead of `data`: bytes."),
    },
    "additionalProperties": {
        "anyOf": [
            {"type": "string", "pattern": schemas.KEY["pattern"]},
            {"type": "boolean"},
            {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
            {"type": "null"},
        ]
    },
    "maxProperties": 64,
    "allOf": [HAS_DATA],
}
_BATCH: dict[str, Any] = {"type": "array", "items": CLOUDEVENT}

_SENT = {
    "specversion": "1.0",
    "id": "7f3c",
    "source": "https://shop.example/orders",
    "type": "order.paid",
    "subject": "order-7",
    "data": {"total": 9.5},
}
_READ = {
    "specversion": "1.0",
    "id": MESSAGE_ID,
    "source": "/eventbus",
    "type": EVENT["topic"],
    "time": "2026-01-01T00:00:00.000000Z",
    "datacontenttype": "text/plain",
    "seq": str(SEQ),
    "data": EVENT["payload"],
}

REQUESTS: dict[str, Any] = {
    STRUCTURED: {"schema": CLOUDEVENT, "examples": {"structured": {"value": _SENT}}},
    BATCH: {"schema": _BATCH, "examples": {"batch": {"value": [_SENT]}}},
}
"""The bodies of POST /publish. Binary mode has no body that could be described: its data may be anything."""

ONE: dict[str, Any] = {"content": {STRUCTURED: {"schema": CLOUDEVENT, "examples": {"event": {"value": _READ}}}}}
"""An answer with one event."""
PAGE: dict[str, Any] = {
    "content": {BATCH: {"schema": _BATCH, "examples": {"page": {"value": [_READ]}}}},
    "headers": {
        "Link": {
            "description": "In an answer with CloudEvents, `rel=next`: where the next page is, if there is one.",
            "schema": {"type": "string"},
        },
        "Eventbus-Head": {
            "description": "In an answer with CloudEvents: the last seq of the log.",
            "schema": {"type": "integer"},
        },
        "Eventbus-First-Seq": {
            "description": "In an answer with CloudEvents: the oldest seq kept.",
            "schema": {"type": "integer"},
        },
    },
}
"""An answer with several."""

IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Names this request: repeated with the same key and the same events, it publishes nothing and "
    "is answered as the first one, with `duplicate: true`. Not for CloudEvents, which have their names.",
    "schema": {"type": "string", "maxLength": 255, "pattern": "^[!#-~]+$"},
    "examples": {"uuid": {"value": "8e03978e-40d5-43dd-bc93-6894a57f9324"}},
}
