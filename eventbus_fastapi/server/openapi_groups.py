"""What OpenAPI says of the routes that look after groups; see `openapi`."""

from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from eventbus_fastapi.errors import (
    BodyTooLarge,
    BodyTooSlow,
    EventBusError,
    GroupConflict,
    GroupNotFound,
    InvalidGroup,
    InvalidPattern,
    InvalidRequest,
    NotFound,
    UnsupportedMediaType,
)
from eventbus_fastapi.pipeline.steward import LARGEST_MAX_ATTEMPTS
from eventbus_fastapi.protocol import schemas
from eventbus_fastapi.protocol.schemas import at_most_one_of, one_of, or_null, with_words
from eventbus_fastapi.server.openapi import (
    EVENT,
    MESSAGE_ID,
    SCHEMA,
    SEQ,
    STORE_PROBLEMS,
    LoggedEvent,
    examples_of,
    json_body,
)
from eventbus_fastapi.store.limits import MAX_PERIOD, MAX_PERMITS

# FastAPI leaves out of examples what is null.
GROUP = "shop.send_welcome"
_STATUS: dict[str, JsonValue] = {
    "name": GROUP,
    "patterns": ["user.*"],
    "ordered_by": "key",
    "max_attempts": 10,
    "max_in_flight": 20,
    "rate_limit": "mail",
    "archive": "failed",
    "paused": False,
    "cursor": SEQ,
    "lag": 25,
    "lag_seconds": 3.5,
    "in_flight": 10,
    "retries": 2,
    "dead": 1,
    "lost": 0,
}
ERROR: dict[str, JsonValue] = {
    "attempt": 10,
    "type": "httpx.ConnectError",
    "message": "connection refused",
    "time": "2026-01-01T00:00:00.000000Z",
    "node": "web-1-4711-0a1b2c3d",
}
_DEAD: dict[str, JsonValue] = {
    "id": 1,
    "group": GROUP,
    "seq": SEQ,
    "message_id": MESSAGE_ID,
    "topic": "user.created",
    "key": "user-1",
    "attempts": 10,
    "died_at": "2026-01-01T00:00:00.000000Z",
    "tags": ["welcome"],
    "error": ERROR,
}


# --- answers -------------------------------------------------------------------------------------


class GroupObject(BaseModel):
    """A durable reader of the log, and how it is doing."""

    model_config = ConfigDict(json_schema_extra=examples_of(_STATUS))

    name: str
    patterns: list[str]
    ordered_by: Literal["key", "log"] | None = Field(
        description="`key`: of a key one event after the other; `log`: all in the order of the log, as relays have it."
    )
    max_attempts: int = Field(description="Attempts after which an event becomes a dead letter.")
    max_in_flight: int | None = Field(description="Events that may be in flight at the same time; null: any number.")
    rate_limit: str | None = Field(description="The name of the limit of which each attempt takes a permit.")
    archive: Literal["all", "failed", "none"] = Field(
        description="Which endings of its events are kept: all, those with a failed attempt or a discard, none."
    )
    paused: bool
    cursor: int = Field(description="The last seq that was handed out or passed over.")
    lag: int = Field(description="Events of the log, matching or not, that it has not looked at.")
    lag_seconds: float = Field(description="How long the oldest of them has been in the log.")
    in_flight: int = Field(description="Events that some node holds.")
    retries: int = Field(description="Events that wait for another attempt.")
    dead: int = Field(description="Dead letters.")
    lost: int = Field(description="Events that retention removed before the group was done with them.")


class RateLimitObject(BaseModel):
    """How often the attempts of the groups that name it may begin, over all nodes."""

    model_config = ConfigDict(json_schema_extra=examples_of({"name": "mail", "permits": 100, "per": 60.0}))

    name: str
    permits: int = Field(description="Attempts that may begin in any period.")
    per: float = Field(description="The period, seconds.")


class RateLimitList(BaseModel):
    """All rate limits, by name."""

    rate_limits: list[RateLimitObject]


class GroupList(BaseModel):
    """All groups, by name."""

    model_config = ConfigDict(json_schema_extra=examples_of({"groups": [_STATUS]}))

    groups: list[GroupObject]


class AttemptError(BaseModel):
    """What went wrong in an attempt."""

    model_config = ConfigDict(extra="allow", json_schema_extra=examples_of(ERROR))

    type: str = Field(description="The class of the exception, with its module; `LeaseLost`: nothing more was heard.")
    message: str
    attempt: int | None = Field(None, description="Counted from 1.")
    time: str | None = Field(None, description="RFC 3339.")
    node: str | None = Field(None, description="Where the attempt was made.")


class WaitingEvent(BaseModel):
    """An event that waits for another attempt, or is held for one."""

    seq: int
    message_id: UUID
    topic: str
    key: str | None
    attempts: int = Field(description="Attempts begun so far.")
    run_at: str = Field(description="When the next attempt is due; where it is `held`, when the lease ends (RFC 3339).")
    held: bool = Field(description="A node has it.")
    error: AttemptError | None = Field(description="What went wrong last; `null`: it waits for another of its key.")


class RetryPage(BaseModel):
    """What waits for another attempt, by seq."""

    model_config = ConfigDict(
        json_schema_extra=examples_of(
            {
                "retries": [
                    {
                        "seq": SEQ,
                        "message_id": MESSAGE_ID,
                        "topic": "user.created",
                        "key": "user-1",
                        "attempts": 2,
                        "run_at": "2026-01-01T00:01:00.000000Z",
                        "held": False,
                        "error": {**ERROR, "attempt": 2},
                    }
                ],
                "next": SEQ,
            }
        )
    )

    retries: list[WaitingEvent]
    next: int | None = Field(description="`after` of the next page. `null`: there are no more.")


class WaitingKey(BaseModel):
    """A key whose events wait for one of them."""

    key: str
    first_seq: int = Field(description="The event that is tried again, or is next.")
    waiting: int = Field(description="Events of this key that wait, the first one too.")


class BlockedKeys(BaseModel):
    """Keys whose events wait, the one with the oldest event first."""

    model_config = ConfigDict(
        json_schema_extra=examples_of({"keys": [{"key": "user-1", "first_seq": SEQ, "waiting": 3}]})
    )

    keys: list[WaitingKey]


class DeadLetterEntry(BaseModel):
    """A dead letter in a list."""

    id: int = Field(description="In the order in which they died.")
    group: str
    seq: int
    message_id: UUID
    topic: str
    key: str | None
    attempts: int = Field(description="Attempts begun.")
    died_at: str = Field(description="RFC 3339.")
    tags: list[str]
    error: AttemptError | None = Field(description="What went wrong last.")


class DeadLetterPage(BaseModel):
    """Dead letters, in the order in which they died."""

    model_config = ConfigDict(json_schema_extra=examples_of({"dead_letters": [_DEAD], "next": SEQ}))

    dead_letters: list[DeadLetterEntry]
    next: int | None = Field(description="`after` of the next page. `null`: there are no more.")


class ShownDeadLetter(LoggedEvent):
    """A dead letter: the event, and all that went wrong."""

    model_config = ConfigDict(
        json_schema_extra=examples_of(
            {
                **EVENT,
                "id": 1,
                "group": GROUP,
                "attempts": 10,
                "died_at": "2026-01-01T00:00:00.000000Z",
                "errors": [{**ERROR, "traceback": "Traceback (most recent call last): …"}],
            }
        )
    )

    id: int
    group: str
    attempts: int
    died_at: str
    errors: list[AttemptError] = Field(description="Oldest first.")


class Retried(BaseModel):
    """How many dead letters are tried again."""

    model_config = ConfigDict(json_schema_extra=examples_of({"retried": 3, "next": SEQ}))

    retried: int
    next: int | None = Field(description="`after` of the next request with this filter. `null`: all were looked at.")


class Discarded(BaseModel):
    """How many dead letters were forgotten."""

    model_config = ConfigDict(json_schema_extra=examples_of({"discarded": 3, "next": SEQ}))

    discarded: int
    next: int | None = Field(description="`after` of the next request with this filter. `null`: all were looked at.")


# --- requests ------------------------------------------------------------------------------------

_TIME = or_null(schemas.TIME)
_COUNT = or_null({"type": "integer", "minimum": 1, "maximum": LARGEST_MAX_ATTEMPTS})
_POSITION: dict[str, Any] = {
    "start": {"enum": ["now", "earliest", None], "description": "The end of the log, or the oldest event kept."},
    "after": with_words(or_null(schemas.PLACE), "A seq: the next one is the first."),
    "time": {**_TIME, "description": "Events that entered the log then or later (RFC 3339)."},
}


PUT_BODY = json_body(
    {
        "title": "Declaration",
        "type": "object",
        "required": ["patterns"],
        "additionalProperties": False,
        "properties": {
            "patterns": schemas.PATTERNS,
            **_POSITION,
            "ordered_by": {"enum": ["key", None], "description": "`key`: of a key one event after the other."},
            "max_attempts": {**_COUNT, "default": 10},
            "max_in_flight": _COUNT,
            "rate_limit": with_words(or_null(schemas.PATH_NAME), "The name of a rate limit that there is."),
            "archive": {"enum": ["all", "failed", "none", None], "default": "none"},
        },
        "anyOf": at_most_one_of(*_POSITION),
    },
    short={"patterns": ["user.*"]},
    full={"patterns": ["user.*", "order.#"], "start": "earliest", "ordered_by": "key", "max_attempts": 3},
    after_a_seq={"patterns": ["#"], "after": 0},
)
RATE_LIMIT_BODY = json_body(
    {
        "title": "RateLimit",
        "type": "object",
        "required": ["permits", "per"],
        "additionalProperties": False,
        "properties": {
            "permits": {"type": "integer", "minimum": 1, "maximum": MAX_PERMITS},
            "per": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_PERIOD / 1_000_000},
        },
    },
    limit={"permits": 100, "per": 60},
)
RESET_BODY = json_body(
    {
        "title": "Position",
        "type": "object",
        "additionalProperties": False,
        "properties": _POSITION,
        "anyOf": one_of(*_POSITION),
    },
    earliest={"start": "earliest"},
    now={"start": "now"},
    seq={"after": 0},
    time={"time": "2026-01-01T00:00:00Z"},
)
CHOICE_BODY = json_body(
    {
        "title": "Choice",
        "type": "object",
        "required": ["group"],
        "additionalProperties": False,
        "properties": {
            "group": schemas.PATH_NAME,
            "seqs": {"type": ["array", "null"], "items": schemas.SEQ, "minItems": 1, "maxItems": 1_000},
            "filter": {
                "description": "Instead of `seqs`: those to which all of it applies; empty: all.",
                "type": ["object", "null"],
                "additionalProperties": False,
                "properties": {
                    "patterns": or_null({**schemas.PATTERNS, "minItems": 0}),
                    "error": {"type": ["string", "null"], "description": "Type of the last error."},
                    "died_after": _TIME,
                    "died_before": _TIME,
                    "attempts": with_words({**_COUNT, "minimum": 0}, "So many, or more."),
                    "tags": with_words(or_null({**schemas.TAGS, "uniqueItems": False}), "All of these."),
                },
            },
            "after": with_words(or_null(schemas.PLACE), "Of a filter: `next` of the answer before."),
        },
        "anyOf": one_of("seqs", "filter"),
    },
    one={"group": GROUP, "seqs": [1]},
    filter={
        "group": GROUP,
        "filter": {"patterns": ["user.*"], "error": "ConnectError", "died_after": "2026-01-01T00:00:00Z"},
    },
    all={"group": GROUP, "filter": {}, "after": 0},
)


# --- problems ------------------------------------------------------------------------------------

_NOT_FOUND = GroupNotFound("no group 'shop.nobody'")
_BODY_PROBLEMS = (
    BodyTooLarge(1_048_576),
    BodyTooSlow(10),
    UnsupportedMediaType("expected content type application/json (UTF-8), got 'text/plain'"),
    InvalidRequest("unknown field 'patern'; expected no field"),
)

LIST_GROUPS_PROBLEMS: tuple[EventBusError, ...] = STORE_PROBLEMS
GROUP_PROBLEMS: tuple[EventBusError, ...] = (
    _NOT_FOUND,
    InvalidGroup("the name of a group must be 1 to 255 bytes without spaces and control characters, got 'a b'"),
    *STORE_PROBLEMS,
)
CHANGE_PROBLEMS: tuple[EventBusError, ...] = (_NOT_FOUND, *_BODY_PROBLEMS, *STORE_PROBLEMS)
RESET_PROBLEMS: tuple[EventBusError, ...] = (
    *CHANGE_PROBLEMS,
    InvalidGroup("the name of a group must be 1 to 255 bytes without spaces and control characters, got 'a b'"),
    GroupConflict("a group cannot read after seq 1000: the log ends at 42"),
    SCHEMA,
)
PUT_PROBLEMS: tuple[EventBusError, ...] = (
    *_BODY_PROBLEMS,
    InvalidGroup("the name of a group must be 1 to 255 bytes without spaces and control characters, got 'a b'"),
    GroupConflict("a group cannot read after seq 1000: the log ends at 42"),
    InvalidPattern("user.*x", "segment 2 has '*' beside other characters; a wildcard is a whole segment"),
    SCHEMA,
    *STORE_PROBLEMS,
)
RATE_LIMIT_PROBLEMS: tuple[EventBusError, ...] = (
    *_BODY_PROBLEMS,
    InvalidGroup("the permits of rate limit 'mail' must be an int from 1 to 1,000,000, got 0"),
    *STORE_PROBLEMS,
)
PAGE_PROBLEMS: tuple[EventBusError, ...] = (
    _NOT_FOUND,
    InvalidRequest("query parameter 'limit': Input should be less than or equal to 1000, got '5000'"),
    *STORE_PROBLEMS,
)
LIST_DEAD_PROBLEMS: tuple[EventBusError, ...] = (
    *PAGE_PROBLEMS,
    InvalidPattern("user.*x", "segment 2 has '*' beside other characters; a wildcard is a whole segment"),
)
GET_DEAD_PROBLEMS: tuple[EventBusError, ...] = (
    NotFound("no dead letter of group 'shop.send_welcome' at seq 17"),
    _NOT_FOUND,
    InvalidRequest("path parameter 'seq': Input should be greater than or equal to 1, got '0'"),
    *STORE_PROBLEMS,
)
CHOICE_PROBLEMS: tuple[EventBusError, ...] = (
    *CHANGE_PROBLEMS,
    InvalidPattern("user.*x", "segment 2 has '*' beside other characters; a wildcard is a whole segment"),
)
