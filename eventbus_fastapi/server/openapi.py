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
from pydantic_core import to_json

from eventbus_fastapi.errors import (
    BatchTooLarge,
    BodyTooLarge,
    BodyTooSlow,
    EventBusError,
    Forbidden,
    IdempotencyKeyReused,
    InvalidCloudEvent,
    InvalidEvent,
    InvalidIdempotencyKey,
    InvalidPattern,
    InvalidPayload,
    InvalidRequest,
    InvalidTopic,
    NotFound,
    NotReady,
    NotRunning,
    PayloadTooLarge,
    PublishTooFast,
    SchemaOutdated,
    StoreError,
    StoreUnavailable,
    TooManyConnections,
    Unauthenticated,
    UnsupportedMediaType,
)
from eventbus_fastapi.protocol import schemas
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
    remarks: list[str] = Field([], description="What is not as it should be, though nothing is lost by it.")


# --- requests ------------------------------------------------------------------------------------


def json_body(schema: dict[str, Any], **examples: JsonValue) -> dict[str, Any]:
    shown = {name: {"value": value} for name, value in examples.items()}
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": shown}}}


NO_BODY = json_body({"type": "object", "maxProperties": 0}, empty={})
"""What says nothing. Its content type is asked for: a page of another site cannot send it without asking first."""

PUBLISH_BODY: dict[str, Any] = {
    "required": True,
    "description": "One event, or a list of events that are published all or none, in order. CloudEvents 1.0 are taken "
    "in all their modes; those in binary mode have their attributes in headers `ce-…`, and any content type.",
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [
                    schemas.PUBLISHED_EVENT,
                    {
                        "type": "array",
                        "items": schemas.PUBLISHED_EVENT,
                        "minItems": 1,
                        "anyOf": schemas.ALL_STORED_OR_NONE,
                    },
                ]
            },
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

STREAM_ANSWER: dict[str, Any] = {
    "description": "Server-sent events. Those of the log have their `seq` as `id`, and as `data` an object as in "
    "`GET /events`. What the bus says for itself has an `event`: `position`, `caught_up`, `gap`, `bye`.",
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "examples": {"event": {"value": f"id: {SEQ}\ndata: {to_json(EVENT).decode()}\n\n"}},
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
    BodyTooSlow(10),
    PayloadTooLarge(300_000, 262_144),
    BatchTooLarge(1_001, 1_000),
    InvalidCloudEvent("id", "it is missing"),
    InvalidIdempotencyKey("Idempotency-Key: expected 1 to 255 visible ASCII characters, got 0: ''"),
    IdempotencyKeyReused("the Idempotency-Key was used for another event: seq 17"),
    UnsupportedMediaType("expected content type application/json (UTF-8), got 'text/plain'"),
    InvalidRequest("field 'topic' is missing"),
    InvalidTopic("orders.", "segment 2 is empty"),
    InvalidPayload("payload of content type image/png must be str or bytes, got dict"),
    InvalidEvent("an event with durable=false cannot wait: delay needs storage"),
    PublishTooFast(1_000, 0.4),
    *STORE_PROBLEMS,
)
LIST_PROBLEMS = (
    InvalidRequest("query parameter 'limit': Input should be less than or equal to 1000, got '5000'"),
    InvalidPattern("user.*x", "segment 2 has '*' beside other characters; a wildcard is a whole segment"),
    *STORE_PROBLEMS,
    SCHEMA,
)
STREAM_PROBLEMS = (
    InvalidRequest("header 'Last-Event-ID': expected an integer from 0 to 9007199254740991, got 'seventeen'"),
    InvalidPattern("user.*x", "segment 2 has '*' beside other characters; a wildcard is a whole segment"),
    TooManyConnections(
        "address '192.0.2.1' has 1,000 open connections, which is the limit (EVENTBUS_MAX_CONNECTIONS_PER_ADDRESS)"
    ),
    *STORE_PROBLEMS,
    SCHEMA,
)
GET_PROBLEMS = (
    NotFound("no event at seq 17"),
    InvalidRequest("path parameter 'seq': Input should be greater than or equal to 1, got '0'"),
    *STORE_PROBLEMS,
)
READY_PROBLEMS = (NotReady(["the bus is not running"]),)


REFUSALS = (Unauthenticated(), Forbidden("'shop' may not publish to 'user.created'"))
"""What any route may answer where `authenticate` is given."""


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
