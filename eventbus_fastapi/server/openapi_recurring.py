"""What OpenAPI says of the routes that look after recurring events; see `openapi`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from eventbus_fastapi.cron import MAX_EXPRESSION, MAX_TIMEZONE
from eventbus_fastapi.errors import (
    BodyTooLarge,
    BodyTooSlow,
    EventBusError,
    InvalidEvent,
    InvalidPayload,
    InvalidRecurring,
    InvalidRequest,
    InvalidTopic,
    PayloadTooLarge,
    PublishTooFast,
    RecurringNotFound,
    UnsupportedMediaType,
)
from eventbus_fastapi.protocol import schemas
from eventbus_fastapi.server.openapi import SCHEMA, STORE_PROBLEMS, examples_of, json_body

_NAME = "nightly-report"
# FastAPI leaves out of examples what is null.
_SHOWN: dict[str, JsonValue] = {
    "name": _NAME,
    "cron": "0 3 * * *",
    "timezone": "Europe/Berlin",
    "missed": "last",
    "topic": "report.requested",
    "payload": {"kind": "sales"},
    "content_type": "application/json",
    "key": "sales",
    "metadata": {"source": "schedule"},
    "ttl": 3600.0,
    "next_at": "2026-01-02T02:00:00Z",
    "last_at": "2026-01-01T02:00:00Z",
    "paused": False,
    "declared": True,
}


class RecurringObject(BaseModel):
    """An event that is published by a schedule."""

    model_config = ConfigDict(json_schema_extra=examples_of(_SHOWN))

    name: str
    cron: str = Field(description="Minute, hour, day of month, month, day of week.")
    timezone: str = Field(description="Whose clock `cron` goes by.")
    missed: Literal["skip", "last", "all"] = Field(
        description="What becomes of ticks that no node published in time: none is published, one event for all of "
        "them, or one for each."
    )
    topic: str
    payload: JsonValue = Field(None, description="Any JSON value; a string if the content type is `text/*`.")
    payload_base64: str | None = Field(
        None, description="Instead of `payload`: the bytes of a content type that is neither JSON nor text."
    )
    content_type: str
    key: str | None
    metadata: dict[str, JsonValue] | None = Field(
        description="Each event has `recurring` (the name) and `scheduled_at` (the time of the tick) beside them."
    )
    ttl: float | None = Field(description="Seconds after which an event expires.")
    next_at: str | None = Field(description="The next tick, RFC 3339; `null` while it is paused.")
    last_at: str | None = Field(description="The last tick that was published, RFC 3339; `null`: none was.")
    paused: bool
    declared: bool = Field(description="A program declares it, or has.")


class RecurringList(BaseModel):
    """All recurring events, by name."""

    model_config = ConfigDict(json_schema_extra=examples_of({"recurring": [_SHOWN]}))

    recurring: list[RecurringObject]


_OF_EVENTS = ("topic", "payload", "payload_base64", "content_type", "key", "metadata", "ttl")
PUT_BODY = json_body(
    {
        "title": "RecurringDeclaration",
        "type": "object",
        "required": ["cron", "topic"],
        "additionalProperties": False,
        "properties": {
            "cron": {
                "type": "string",
                "maxLength": MAX_EXPRESSION,
                "format": "cron",
                "description": "Minute, hour, day of month, month, day of week; or `@hourly`, `@daily`, `@weekly`, "
                "`@monthly`, `@yearly`.",
            },
            "timezone": {
                "type": ["string", "null"],
                "maxLength": MAX_TIMEZONE,
                "format": "time-zone",
                "default": "UTC",
                "description": "Of the IANA database.",
            },
            "missed": {"enum": ["skip", "last", "all", None], "default": "last"},
            **{name: schemas.OF_EVENTS[name] for name in _OF_EVENTS},
        },
        "allOf": [schemas.HAS_PAYLOAD],
    },
    short={"cron": "@daily", "topic": "report.requested", "payload": {"kind": "sales"}},
    full={
        "cron": "0 3 * * mon-fri",
        "timezone": "Europe/Berlin",
        "missed": "all",
        "topic": "report.requested",
        "payload": {"kind": "sales"},
        "key": "sales",
        "metadata": {"source": "schedule"},
        "ttl": 3600,
    },
)

_NOT_FOUND = RecurringNotFound("no recurring event 'nightly'")
_BAD_NAME = InvalidRecurring(
    "the name of a recurring event must be 1 to 255 bytes without spaces, slashes and control characters, got 'a b'"
)
_BAD_BODY: tuple[EventBusError, ...] = (
    BodyTooLarge(1_048_576),
    BodyTooSlow(10),
    UnsupportedMediaType("expected content type application/json (UTF-8), got 'text/plain'"),
)
GET_PROBLEMS: tuple[EventBusError, ...] = (_NOT_FOUND, _BAD_NAME, *STORE_PROBLEMS)
LIST_PROBLEMS: tuple[EventBusError, ...] = STORE_PROBLEMS
CHANGE_PROBLEMS: tuple[EventBusError, ...] = (
    *GET_PROBLEMS,
    *_BAD_BODY,
    InvalidRequest("unknown field 'until'; expected no field"),
)
RUN_PROBLEMS: tuple[EventBusError, ...] = (*CHANGE_PROBLEMS, SCHEMA, PublishTooFast(1_000, 0.4))
PUT_PROBLEMS: tuple[EventBusError, ...] = (
    _BAD_NAME,
    *_BAD_BODY,
    PayloadTooLarge(300_000, 262_144),
    InvalidRequest("field 'cron' is missing"),
    InvalidTopic("orders.", "segment 2 is empty"),
    InvalidPayload("payload of content type image/png must be str or bytes, got dict"),
    InvalidEvent("key must be 1 to 255 bytes, got 0"),
    *STORE_PROBLEMS,
)
