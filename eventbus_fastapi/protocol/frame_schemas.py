"""JSON Schemas of every frame, in both directions: docs/protocol.md for programs.

`parser` and `frames` read and write the frames; the tests hold them to these schemas, and these to them: what the
parser takes fits, what fits is taken, and what a server sends fits. What is not said of an object may be in it, as
either side may be newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from eventbus_fastapi.backoff import LONGEST
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.protocol.commands import (
    MAX_ACK_WAIT,
    MAX_ACKS,
    MAX_ATTEMPTS,
    MAX_SUB,
    MIN_ACK_WAIT,
)
from eventbus_fastapi.protocol.frames import PROTOCOL
from eventbus_fastapi.protocol.schemas import (
    ALL_STORED_OR_NONE,
    PATH_NAME,
    PATTERN,
    PATTERNS,
    PLACE,
    PUBLISHED_EVENT,
    SECONDS,
    SEQ,
    TIME,
    TOPIC,
    UUID,
    Schema,
    at_most_one_of,
    is_absent,
    is_given,
    one_of,
    or_null,
    with_words,
)
from eventbus_fastapi.settings import Overflow, Settings

SUB: Schema = {
    "description": "Names a subscription of the connection.",
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": fields.MAX_ID},
        {"type": "string", "minLength": 1, "maxLength": MAX_SUB},
    ],
}
INTEGER: Schema = {"type": "integer", "minimum": fields.MIN_INTEGER, "maximum": fields.MAX_INTEGER}
FRAME_ID: Schema = {**INTEGER, "description": "Chosen by the client; the answer has it, too."}
COUNT: Schema = {"type": "integer", "minimum": 0}
ATTEMPT: Schema = {"type": "integer", "minimum": 1, "maximum": fields.MAX_ID, "description": "Counted from 1."}


def client_frames(limits: Settings) -> dict[str, Schema]:
    """Return the schema of each frame that a client may send, by its type."""
    return {kind: _client_frame(kind, schema) for kind, schema in _of_clients(limits).items()}


def server_frames() -> dict[str, Schema]:
    """Return the schema of each frame that a server sends in `eventbus.v1`, by its type; an `ok` by what it answers."""
    return {**_SERVER_FRAMES, **{f"ok {kind}": _answer(kind, answer) for kind, answer in _ANSWERS.items()}}


def joined(schemas: Mapping[str, Schema], *, most: int | None = None) -> Schema:
    """Return the schema of an array of frames, each of one of these schemas."""
    limit = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": {"anyOf": list(schemas.values())}, **limit}


# --- client → server -----------------------------------------------------------------------------


def _client_frame(kind: str, schema: Schema) -> Schema:
    properties = {"type": {"const": kind}, "id": or_null(FRAME_ID), **schema["properties"]}
    required = ["type", *schema.get("required", [])]
    return {**schema, "type": "object", "required": required, "properties": properties}


def _of_clients(limits: Settings) -> dict[str, Schema]:
    ttl = with_words(or_null(SECONDS), "Applies where an event has none; 0: never expires.")
    wave = with_words(or_null(INTEGER), "Another one than that of a refused publish: sent by a client that knew of it.")
    events = {"type": "array", "items": PUBLISHED_EVENT, "maxItems": limits.max_batch, "anyOf": ALL_STORED_OR_NONE}
    chosen = {
        "sub": or_null(SUB),
        "seq": or_null(SEQ),
        "attempt": or_null(ATTEMPT),
        "seqs": or_null({"type": "array", "items": SEQ, "minItems": 1, "maxItems": MAX_ACKS}),
        "up_to": with_words(or_null(SEQ), "Every event that was sent so far, up to this seq."),
    }
    reason = {"type": ["string", "null"]}
    seq, seqs, up_to = one_of("seq", "seqs", "up_to")
    up_to = {**up_to, "allOf": [is_absent("attempt")]}  # it may be that of several
    one_choice = [seq, seqs, up_to]
    return {
        "publish": {
            "description": "Publish one event.",
            "required": ["data"],
            "properties": {"data": PUBLISHED_EVENT, "ttl": ttl, "wave": wave},
        },
        "publish_batch": {
            "description": "Publish events all or none, in order.",
            "required": ["messages"],
            "properties": {"messages": events, "ttl": ttl, "wave": wave},
        },
        "subscribe": _subscribe(limits),
        "unsubscribe": {
            "description": "End a subscription; nothing of it follows the `ok`.",
            "required": ["sub"],
            "properties": {"sub": SUB},
        },
        "ack": {
            "description": "Done with events: they are processed, or settled for the group.",
            "properties": {**chosen, "message_id": with_words(or_null(UUID), "Compared with that of `seq`.")},
            "anyOf": [seq, seqs, {**up_to, "allOf": [is_absent("attempt"), is_given("sub")]}],
        },
        "nack": {
            "description": "Give events of a group back, for another attempt.",
            "properties": {
                **chosen,
                "delay": with_words(
                    or_null({"type": "number", "minimum": 0, "maximum": LONGEST}), "Seconds; absent: a backoff."
                ),
                "reason": reason,
            },
            "anyOf": one_choice,
        },
        "reject": {
            "description": "Give events of a group up: they become dead letters at once.",
            "properties": {**chosen, "reason": reason},
            "anyOf": one_choice,
        },
        "extend": {
            "description": "Begin the ack wait of events of a group anew.",
            "properties": chosen,
            "anyOf": one_choice,
        },
        "credit": {
            "description": "Allow that many more events.",
            "required": ["sub", "credit"],
            "properties": {"sub": SUB, "credit": {"type": "integer", "minimum": 1, "maximum": limits.max_credit}},
        },
        "auth": {
            "description": "Show a token: in the first frame, or anew before the old one expires.",
            "required": ["token"],
            "properties": {"token": {"type": "string", "minLength": 1}},
        },
        "ping": {"description": "Ask for a sign of life.", "properties": {}},
    }


def _subscribe(limits: Settings) -> Schema:
    credit = {"type": "integer", "minimum": 1, "maximum": limits.max_credit}
    wait = {"type": "number", "minimum": MIN_ACK_WAIT, "maximum": MAX_ACK_WAIT}
    attempts = {"type": "integer", "minimum": 1, "maximum": MAX_ATTEMPTS}
    buffer = {"type": "integer", "minimum": 1, "maximum": limits.buffer}
    return {
        "description": "Start a subscription, or join a group.",
        "properties": {
            "sub": with_words(or_null(SUB), "Chosen by the client; absent: the smallest unused integer from 1."),
            "pattern": or_null(PATTERN),
            "patterns": or_null(PATTERNS),
            "starting_seq": with_words(or_null(PLACE), "Begin with this seq, inclusive."),
            "after": with_words(or_null(PLACE), "Begin after this seq."),
            "from": {
                "description": "`now` (default), `earliest`, a seq (as `after`), or a time: the first event that "
                "entered the log then or later.",
                "anyOf": [{"enum": ["now", "earliest", None]}, PLACE, TIME],
            },
            "epoch": with_words(or_null(UUID), "The log that `after` belongs to."),
            "include_processed": {"type": ["boolean", "null"], "default": False},
            "processed_before": with_words(
                or_null(PLACE), "A replay leaves out what was processed before this time, unix microseconds."
            ),
            "credit": with_words(or_null(credit), "Events to send until `credit` frames allow more."),
            "overflow": or_null({"enum": list(get_args(Overflow))}),
            "buffer": with_words(or_null(buffer), "Events that may wait for a slow reader."),
            "group": with_words(or_null(PATH_NAME), "The group to join; absent: read alone."),
            "ack_wait": with_words(or_null(wait), "Seconds that a member has to settle an event."),
            "max_attempts": with_words(or_null(attempts), "Of a group that this makes."),
        },
        "allOf": [
            {"oneOf": one_of("pattern", "patterns")},
            {"anyOf": at_most_one_of("starting_seq", "after", "from")},
            {"anyOf": [_alone(), _as_member(buffer)]},
        ],
    }


def _alone() -> Schema:
    return {"title": "Alone", **is_absent("group", "ack_wait", "max_attempts")}


def _as_member(credit: Schema) -> Schema:
    absent = is_absent("epoch", "include_processed", "processed_before", "overflow", "buffer")
    properties = {**absent["properties"], **is_given("group")["properties"], "credit": or_null(credit)}
    return {"title": "As a member of a group", "required": ["group"], "properties": properties}


# --- server → client -----------------------------------------------------------------------------


def _server_frame(kind: str, description: str, *, required: list[str] | None = None, **properties: Schema) -> Schema:
    return {
        "description": description,
        "type": "object",
        "required": ["type", *(properties if required is None else required)],
        "properties": {"type": {"const": kind}, **properties},
    }


def _answer(kind: str, properties: Mapping[str, Schema]) -> Schema:
    required = ["id", *[name for name in properties if name != "expires_in"]]
    return _server_frame("ok", f"The answer to `{kind}`.", required=required, id=FRAME_ID, **properties)


ERROR: Schema = {
    "title": "Error",
    "description": "What went wrong. `code` is stable; docs/protocol.md lists them.",
    "type": "object",
    "required": ["code", "status", "message", "retry"],
    "properties": {
        "code": {"type": "string", "pattern": r"^[a-z_]+\.[a-z_]+$"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "message": {"type": "string", "description": "What was expected, and what came."},
        "retry": {"type": "boolean", "description": "Whether the same frame may succeed later."},
        "retry_after": {"type": "number", "minimum": 0, "description": "Seconds after which to try again."},
        "seqs": {"type": "array", "items": SEQ, "description": "Of `lease.lost`: those that are not held."},
    },
}
METADATA: Schema = {
    "title": "Metadata",
    "description": "What the publisher attached, and two members of the bus.",
    "type": "object",
    "required": ["timestamp", "content_type"],
    "properties": {
        "timestamp": {"type": "integer", "description": "When the event entered the log, unix seconds."},
        "content_type": {"type": "string"},
    },
}
EVENT: Schema = {
    "title": "Event",
    "description": "An event, as the plain dialect has it.",
    "type": "object",
    "required": ["seq", "message_id", "topic", "metadata"],
    "properties": {
        "seq": with_words(PLACE, "Its place in the log; 0: it is not stored, and no position to resume from."),
        "message_id": UUID,
        "topic": TOPIC,
        "key": {"type": "string"},
        "payload": {"description": "Any JSON value; a string if the content type is `text/*`."},
        "payload_base64": {
            "type": "string",
            "contentEncoding": "base64",
            "description": "Instead of `payload`: the bytes of a content type that is neither JSON nor text.",
        },
        "metadata": METADATA,
    },
    "oneOf": [{"required": ["payload"]}, {"required": ["payload_base64"]}],
}
_RECEIPT: dict[str, Schema] = {
    "seq": {**or_null(SEQ), "description": "`null` for a delayed or a non-durable event."},
    "message_id": UUID,
    "duplicate": {"type": "boolean", "description": "Nothing was stored; `seq` is the first one's."},
}
_RECEIPT_OBJECT: Schema = {"type": "object", "required": list(_RECEIPT), "properties": _RECEIPT}


def _count(name: str) -> dict[str, Schema]:
    return {name: with_words(COUNT, "How many events.")}


_SERVER_FRAMES: dict[str, Schema] = {
    "welcome": _server_frame(
        "welcome",
        "The first frame of a connection.",
        protocol={"const": PROTOCOL},
        server={"type": "string", "description": "The server's version."},
        connection={"type": "string"},
        epoch=with_words(UUID, "Names the log; another one after it was made anew."),
        head=with_words(PLACE, "The last seq of the log."),
        heartbeat={"type": "number", "exclusiveMinimum": 0, "description": "Seconds."},
        limits={"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}},
    ),
    "error": _server_frame(
        "error",
        "A frame failed and changed nothing.",
        required=["error"],
        id=FRAME_ID,
        sub=SUB,
        error=ERROR,
    ),
    "event": {
        **EVENT,
        "description": "An event, for a subscription.",
        "required": ["type", "sub", *EVENT["required"]],
        "properties": {"type": {"const": "event"}, "sub": SUB, "attempt": ATTEMPT, **EVENT["properties"]},
    },
    "lost": _server_frame(
        "lost",
        "These events are no longer the member's.",
        sub=SUB,
        seqs={"type": "array", "items": SEQ},
    ),
    "caught_up": _server_frame("caught_up", "History ends here, live events follow.", sub=SUB, seq=PLACE),
    "gap": _server_frame(
        "gap",
        "These events were asked for and will not come.",
        sub=SUB,
        first_seq=PLACE,
        last_seq=PLACE,
        reason={"enum": ["retention", "overflow", "epoch"]},
    ),
    "heartbeat": _server_frame(
        "heartbeat", "Nothing was sent for a while; every event up to `head` that matches was sent.", head=PLACE
    ),
    "pong": _server_frame("pong", "The answer to `ping`.", required=[], id=FRAME_ID),
    "closed": _server_frame("closed", "A subscription ended, others go on.", sub=SUB, error=ERROR),
    "bye": _server_frame(
        "bye",
        "The server closes next.",
        error=ERROR,
        reconnect={"type": "boolean"},
        after={"type": "number", "minimum": 0, "description": "Seconds to wait before coming back."},
    ),
}
_READING: dict[str, Schema] = {"sub": SUB, "after": PLACE, "processed_before": PLACE}
_MEMBER: dict[str, Schema] = {
    "sub": SUB,
    "group": PATH_NAME,
    "patterns": PATTERNS,
    "max_attempts": {"type": "integer", "minimum": 1},
    "created": {"type": "boolean"},
    "credit": {"type": "integer", "minimum": 1},
    "ack_wait": {"type": "number", "exclusiveMinimum": 0},
}
_ANSWERS: dict[str, dict[str, Any]] = {
    "publish": _RECEIPT,
    "publish_batch": {"results": {"type": "array", "items": _RECEIPT_OBJECT}},
    "subscribe": _READING,
    "subscribe as member": _MEMBER,
    "unsubscribe": {},
    "ack": _count("acked"),
    "nack": _count("nacked"),
    "reject": _count("rejected"),
    "extend": _count("extended"),
    "credit": {},
    "auth": {
        "principal": {"type": "string", "description": "Who the client is now."},
        "expires_in": {"type": "number", "description": "Seconds that the token is valid; absent: any time."},
    },
    "ping": {},
}
