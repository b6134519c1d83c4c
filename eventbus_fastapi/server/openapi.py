"""What OpenAPI says of the routes: schemas, examples and the problems that each may answer.

Documentation only: requests are read by `protocol`, as they are on the WebSocket, and answers are written there too.
The tests hold both together: every example here is sent as it stands, and every answer is checked against its schema.
"""

import re
from http import HTTPStatus
from typing import Any, Literal
from uuid import UUID

from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from eventbus_fastapi.errors import (
    BatchTooLarge,
    BodyTooLarge,
    EventBusError,
    InvalidEvent,
    InvalidPattern,
    InvalidPayload,
    InvalidRequest,
    InvalidTopic,
    NotFound,
    NotReady,
    NotRunning,
    PayloadTooLarge,
    SchemaOutdated,
    StoreError,
    StoreUnavailable,
    UnsupportedMediaType,
)
from eventbus_fastapi.server.problems import MEDIA_TYPE, members

TAG = "eventbus"

SEQ = 17
MESSAGE_ID = "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3"
EVENT: dict[str, JsonValue] = {
    "seq": SEQ,
    "message_id": MESSAGE_ID,
    "topic": "chat.user1",
    "payload": "Hello",
    "metadata": {"timestamp": 1767225600, "content_type": "text/plain"},
}


def examples_of(*values: JsonValue) -> dict[str, JsonValue]:
    """Return the part of a schema that shows values."""
    return {"examples": list(values)}


# --- answers -------------------------------------------------------------------------------------


class Published(BaseModel):
    """One event's place in the log."""

    model_config = ConfigDict(json_schema_extra=examples_of({"seq": SEQ, "message_id": MESSAGE_ID, "duplicate": False}))

    seq: int | None = Field(description="Place in the log; `null` for a delayed or a non-durable event.")
    message_id: UUID
    duplicate: bool = Field(
        description="The log held an event of this `message_id` already; nothing was stored, `seq` is that event's."
    )
    durable: bool = Field(True, description="`false` for an event that was not stored; absent otherwise.")


class LoggedMetadata(BaseModel):
    """What the publisher attached, and two members of the bus."""

    model_config = ConfigDict(extra="allow")

    timestamp: float = Field(description="When the event entered the log, unix seconds.")
    content_type: str


class LoggedEvent(BaseModel):
    """An event as the log holds it."""

    model_config = ConfigDict(extra="allow", json_schema_extra=examples_of(EVENT))

    seq: int = Field(ge=1, description="Place in the log.")
    message_id: UUID
    topic: str
    payload: JsonValue = Field(None, description="Any JSON value; a string if the content type is `text/*`.")
    payload_base64: str | None = Field(
        None, description="Instead of `payload`: the bytes of a content type that is neither JSON nor text."
    )
    key: str | None = None
    metadata: LoggedMetadata


class LoggedEventWithStatus(LoggedEvent):
    """An event as the log holds it, and whether a reader has acknowledged it."""

    model_config = ConfigDict(json_schema_extra=examples_of({**EVENT, "status": "pending"}))

    status: Literal["pending", "processed"]


class EventPage(BaseModel):
    """Some events of the log, oldest first."""

    model_config = ConfigDict(
        json_schema_extra=examples_of({"events": [EVENT], "next": SEQ, "head": 42, "first_seq": 1})
    )

    events: list[LoggedEvent]
    next: int | None = Field(
        description="`after` of the next page: events up to it were looked at. `null`: the log ends here."
    )
    head: int = Field(description="The last seq of the log.")
    first_seq: int = Field(description="The oldest seq kept; what was asked for before it was removed by retention.")


class Health(BaseModel):
    """The process runs."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """The bus can do its work."""

    status: Literal["ready"]


# --- requests ------------------------------------------------------------------------------------

_NAMES: dict[str, Any] = {"type": ["array", "null"], "items": {"type": "string"}, "maxItems": 64}

UNIQUE: dict[str, Any] = {
    "type": ["object", "null"],
    "additionalProperties": False,
    "description": "Store nothing where the same was published before, and answer the first one with "
    "`duplicate: true`. Two events are the same if their topics are, and all that is compared.",
    "properties": {
        "fields": {
            **_NAMES,
            "description": "Fields of the payload, an object, that are compared. Absent: the whole payload.",
        },
        "key": {"type": ["boolean", "null"], "default": False, "description": "Compare the events' keys."},
        "metadata": {**_NAMES, "description": "Names in the metadata that are compared."},
        "within": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "description": "For so many seconds after the first one. Absent: while that waits for its time.",
        },
        "replace": {
            "type": ["array", "null"],
            "items": {"enum": ["payload", "schedule"]},
            "description": "What the first one takes over from this one, while it waits for its time.",
        },
    },
}

PUBLISHED_EVENT: dict[str, Any] = {
    "title": "Event",
    "type": "object",
    "required": ["topic"],
    "properties": {
        "topic": {
            "type": "string",
            "maxLength": 255,
            "description": "Up to 16 segments of `A–Z a–z 0–9 _ - : @ /`, joined by `.`.",
        },
        "payload": {
            "description": "Any JSON value. A string is published as `text/plain`, anything else as "
            "`application/json`, unless `content_type` says otherwise. Required, or `payload_base64`."
        },
        "payload_base64": {
            "type": ["string", "null"],
            "contentEncoding": "base64",
            "description": "Instead of `payload`: bytes.",
        },
        "message_id": {
            "type": ["string", "null"],
            "format": "uuid",
            "description": "Published again with the same id, an event is stored once. Generated where absent.",
        },
        "key": {"type": ["string", "null"], "minLength": 1, "maxLength": 255},
        "metadata": {
            "type": ["object", "null"],
            "maxProperties": 64,
            "description": "JSON values of your own; the keys `timestamp` and `content_type` are the bus's.",
        },
        "content_type": {"type": ["string", "null"], "maxLength": 127},
        "ttl": {
            "type": ["number", "null"],
            "minimum": 0,
            "description": "Seconds after which the event expires; absent or 0: never.",
        },
        "delay": {
            "type": ["number", "null"],
            "minimum": 0,
            "description": "Seconds to wait before the event enters the log.",
        },
        "tags": {
            "type": ["array", "null"],
            "items": {"type": "string", "minLength": 1, "maxLength": 64},
            "maxItems": 20,
            "uniqueItems": True,
            "description": "Words; they are the list `tags` of the metadata.",
        },
        "unique": UNIQUE,
        "durable": {
            "type": ["boolean", "null"],
            "default": True,
            "description": "`false`: reach the live subscriptions of this node only, and store nothing. "
            "The same in all events of a list.",
        },
    },
}


def json_body(schema: dict[str, Any], *, is_required: bool = True, **examples: JsonValue) -> dict[str, Any]:
    shown = {name: {"value": value} for name, value in examples.items()}
    return {"required": is_required, "content": {"application/json": {"schema": schema, "examples": shown}}}


NO_BODY = json_body({"type": "object", "maxProperties": 0}, is_required=False, empty={})
"""The content type is asked for all the same: a page of another site cannot send it without asking first."""

PUBLISH_BODY: dict[str, Any] = {
    "required": True,
    "description": "One event, or a list of events that are published all or none, in order.",
    "content": {
        "application/json": {
            "schema": {"anyOf": [PUBLISHED_EVENT, {"type": "array", "items": PUBLISHED_EVENT, "minItems": 1}]},
            "examples": {
                "text": {
                    "summary": "A text",
                    "value": {"topic": "chat.user1", "payload": "Hello"},
                },
                "json": {
                    "summary": "JSON, with everything that an event may carry",
                    "value": {
                        "topic": "user.created",
                        "payload": {"id": 1, "username": "ada"},
                        "message_id": MESSAGE_ID,
                        "key": "user-1",
                        "metadata": {"source": "signup"},
                        "ttl": 3600,
                    },
                },
                "bytes": {
                    "summary": "Bytes of any content type",
                    "value": {"topic": "image.added", "payload_base64": "iVBORw0KGgo=", "content_type": "image/png"},
                },
                "unique": {
                    "summary": "Once an hour for each id",
                    "value": {
                        "topic": "invoice.due",
                        "payload": {"id": 7},
                        "tags": ["billing"],
                        "unique": {"fields": ["id"], "within": 3600},
                    },
                },
                "delayed": {
                    "summary": "In a minute",
                    "value": {"topic": "reminder.due", "payload": {"id": 7}, "delay": 60},
                },
                "live": {
                    "summary": "Only for those who listen now",
                    "value": {"topic": "cursor.moved", "payload": {"x": 3, "y": 4}, "durable": False},
                },
                "list": {
                    "summary": "Several, all or none",
                    "value": [
                        {"topic": "chat.user1", "payload": "Batch message 1"},
                        {"topic": "chat.user1", "payload": "Batch message 2"},
                    ],
                },
            },
        }
    },
}

PUBLISH_ANSWER: dict[str, Any] = {
    "description": "Stored: what was answered here survives a crash. A list answers a list, in the same order.",
    "content": {
        "application/json": {
            "examples": {
                "one": {"value": {"seq": SEQ, "message_id": MESSAGE_ID, "duplicate": False}},
                "list": {"value": [{"seq": SEQ, "message_id": MESSAGE_ID, "duplicate": False}]},
            }
        }
    },
}


# --- problems ------------------------------------------------------------------------------------

PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "What went wrong (RFC 9457). `code` is stable.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "message", "retry"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "The phrase of `status`."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "The same as `message`."},
        "code": {"type": "string"},
        "message": {"type": "string", "description": "What was expected, and what came."},
        "retry": {"type": "boolean", "description": "Whether the same request may succeed later."},
        "retry_after": {"type": "number", "description": "Seconds after which to try again."},
        "problems": {"type": "array", "items": {"type": "string"}, "description": "What is not ready."},
    },
}

_NOT_RUNNING = NotRunning("the bus is not running; use 'async with eventbus:' or mount its router")
_UNAVAILABLE = StoreUnavailable("the database is not available: connection refused")
SCHEMA = SchemaOutdated("the head row is missing; run: eventbus migrate upgrade")
_STORE_FAILED = StoreError("the database refused: no such table: bus_event")
_FAILED = EventBusError("the server failed; its log has the details")
STORE_PROBLEMS = (_STORE_FAILED, _FAILED, _NOT_RUNNING, _UNAVAILABLE)
"""What any route that asks the database may answer."""

PUBLISH_PROBLEMS = (
    BodyTooLarge(1_048_576),
    PayloadTooLarge(300_000, 262_144),
    BatchTooLarge(1_001, 1_000),
    UnsupportedMediaType("expected content type application/json (UTF-8), got 'text/plain'"),
    InvalidRequest("field 'topic' is missing"),
    InvalidTopic("orders.", "segment 2 is empty"),
    InvalidPayload("payload of content type image/png must be str or bytes, got dict"),
    InvalidEvent("an event with durable=false cannot wait: delay needs storage"),
    *STORE_PROBLEMS,
)
LIST_PROBLEMS = (
    InvalidRequest("query parameter 'limit': Input should be less than or equal to 1000, got '5000'"),
    InvalidPattern("user.*x", "segment 2 has '*' beside other characters; a wildcard is a whole segment"),
    *STORE_PROBLEMS,
    SCHEMA,
)
GET_PROBLEMS = (
    NotFound("no event at seq 17"),
    InvalidRequest("path parameter 'seq': Input should be greater than or equal to 1, got '0'"),
    *STORE_PROBLEMS,
)
READY_PROBLEMS = (NotReady(["the bus is not running"]),)


# --- operations ----------------------------------------------------------------------------------


def operation_id(own_path: str, route: APIRoute) -> str:
    """Return the id of a route: its name, and the words of the prefix that it was included with, if any.

    A generator of clients makes its method names of these, and an app may include several buses.
    """
    prefix = route.path.removesuffix(own_path)
    return "_".join([route.name, *re.findall(r"\w+", prefix)])


def documented(*errors: EventBusError) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may answer these problems, each one an example of its own."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        response = responses.setdefault(error.status, _problem_response(error.status))
        response["content"][MEDIA_TYPE]["examples"][error.code] = {"value": members(error)}
    return responses


def _problem_response(status: int) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": PROBLEM, "examples": {}}},
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}
        }
    return response
