"""The parser: makes commands of what clients send.

A frame is decided here completely, before anything is done about it: whatever arrives becomes commands that are valid
in themselves, or `Refused` with the error to answer. No other exception leaves this module, whatever the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_args

from pydantic import SecretStr

from eventbus_fastapi import codec
from eventbus_fastapi.backoff import LONGEST
from eventbus_fastapi.errors import (
    BadFrame,
    BatchTooLarge,
    EventBusError,
    FrameTooLarge,
    InvalidPayload,
    UnknownFrameType,
)
from eventbus_fastapi.events import Draft
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.protocol.cloudevents import parse_cloudevent
from eventbus_fastapi.protocol.commands import (
    FRAME_DEPTH,
    MAX_ACK_WAIT,
    MAX_ACKS,
    MAX_ATTEMPTS,
    MAX_JOINED,
    MAX_PATTERNS,
    MAX_SUB,
    MIN_ACK_WAIT,
    Acknowledge,
    AcknowledgeUpTo,
    Authenticate,
    Chosen,
    Command,
    Credit,
    Extend,
    Nack,
    Ping,
    Publish,
    Refused,
    Reject,
    Start,
    Subscribe,
    Unsubscribe,
)
from eventbus_fastapi.protocol.events import Sub, parse_draft
from eventbus_fastapi.settings import Overflow, Settings
from eventbus_fastapi.topics import check_pattern


def parse_client_frame(text: str, limits: Settings, *, arrays: bool = True) -> list[Command | Refused]:
    """Return the commands of a client's frame, in order. `arrays`: whether it may be an array of frames."""
    try:
        frame = _load(text, limits)
        if arrays and type(frame) is list:
            if len(frame) > MAX_JOINED:
                raise BadFrame(f"expected at most {MAX_JOINED:,} frames in an array, got {len(frame):,}")
            return [_parse_object(each, limits) for each in frame]
        return [_parse_object(frame, limits)]
    except EventBusError as exc:
        return [Refused(exc)]


def parse_cloudevent_frame(text: str, number: int, limits: Settings, now: int) -> Publish | Refused:
    """Return what a message with a CloudEvent publishes; its id is the number of the message."""
    try:
        return Publish((parse_cloudevent(_load(text, limits), limits, now),), number)
    except EventBusError as exc:
        return Refused(exc, number)


def _load(text: str, limits: Settings) -> Any:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    if size > limits.max_frame:
        raise FrameTooLarge(size, limits.max_frame)
    try:
        return codec.parse_json(text, max_depth=limits.max_depth + FRAME_DEPTH)
    except InvalidPayload as exc:
        raise BadFrame(f"the frame is not usable JSON: {exc}") from exc


def _parse_object(frame: object, limits: Settings) -> Command | Refused:
    frame_id: int | None = None
    try:
        if type(frame) is not dict:
            raise BadFrame(f"expected an object with a 'type', got {fields.shown(frame)}")
        frame_id = fields.any_integer(frame, "id")
        kind = fields.required("type", fields.string(frame, "type"))
        parse = _PARSERS.get(kind)
        if parse is None:
            raise UnknownFrameType(f"unknown frame type {fields.shown(kind)}; known are {', '.join(_PARSERS)}")
        return parse(frame, frame_id, limits)
    except EventBusError as exc:
        return Refused(exc, frame_id, _sub_of(frame))


def _parse_publish(frame: fields.Object, frame_id: int | None, limits: Settings) -> Publish:
    event = fields.required("data", fields.mapping(frame, "data"))
    draft = parse_draft(event, limits, fields.seconds(frame, "ttl"))
    return Publish((draft,), frame_id, is_live=_is_live(event), wave=fields.any_integer(frame, "wave"))


def _parse_publish_batch(frame: fields.Object, frame_id: int | None, limits: Settings) -> Publish:
    events = fields.required("messages", fields.array(frame, "messages"))
    if len(events) > limits.max_batch:
        raise BatchTooLarge(len(events), limits.max_batch)
    ttl = fields.seconds(frame, "ttl")
    drafts = [_parse_batched(event, place, limits, ttl) for place, event in enumerate(events)]
    live = {_is_live(event) for event in events}
    if len(live) > 1:
        raise BadFrame("field 'durable': expected the same value in all events of a batch, got both")
    wave = fields.any_integer(frame, "wave")
    return Publish(drafts, frame_id, is_batch=True, is_live=live == {True}, wave=wave)


def _parse_batched(event: object, place: int, limits: Settings, ttl: float | None) -> Draft:
    try:
        if type(event) is not dict:
            raise BadFrame(f"expected an object, got {fields.shown(event)}")
        _is_live(event)
        return parse_draft(event, limits, ttl)
    except EventBusError as exc:
        exc.args = (f"messages[{place}]: {exc}",)
        raise


def _is_live(event: fields.Object) -> bool:
    return fields.boolean(event, "durable") is False


def _parse_subscribe(frame: fields.Object, frame_id: int | None, limits: Settings) -> Subscribe:
    if frame.get("group") is not None:
        return _parse_group(frame, frame_id, limits)
    _refuse_fields(frame, OF_GROUPS, "only a subscription with a 'group' has it")
    return Subscribe(
        _patterns(frame),
        _sub(frame),
        _start(frame),
        fields.uuid(frame, "epoch"),
        fields.boolean(frame, "include_processed") or False,
        fields.integer(frame, "processed_before", 0, fields.MAX_SEQ),
        fields.integer(frame, "credit", maximum=limits.max_credit),
        cast("Overflow | None", fields.choice(frame, "overflow", get_args(Overflow))),
        fields.integer(frame, "buffer", maximum=limits.buffer),
        frame_id,
    )


OF_GROUPS = ("ack_wait", "max_attempts")
"""Options that only groups have."""
NOT_OF_GROUPS = ("epoch", "include_processed", "processed_before", "overflow", "buffer")
"""Options that groups have not: a group keeps its own place in the log."""


def _parse_group(frame: fields.Object, frame_id: int | None, limits: Settings) -> Subscribe:
    _refuse_fields(frame, NOT_OF_GROUPS, "a group keeps its own place and has none")
    return Subscribe(
        _patterns(frame),
        _sub(frame),
        _start(frame),
        credit=fields.integer(frame, "credit", maximum=limits.buffer),
        id=frame_id,
        group=fields.string(frame, "group"),
        ack_wait=_duration(frame, "ack_wait", MIN_ACK_WAIT, MAX_ACK_WAIT),
        max_attempts=fields.integer(frame, "max_attempts", maximum=MAX_ATTEMPTS),
    )


def _refuse_fields(frame: fields.Object, names: Sequence[str], why: str) -> None:
    for name in names:
        if frame.get(name) is not None:
            raise BadFrame(f"field '{name}': {why}")


def _duration(frame: fields.Object, name: str, minimum: float, maximum: float) -> float | None:
    value = fields.seconds(frame, name)
    if value is not None and not minimum <= value <= maximum:
        raise fields.wrong(name, f"{minimum:g} to {maximum:,g} seconds", frame[name])
    return value


def _patterns(frame: fields.Object) -> tuple[str, ...]:
    one, several = fields.string(frame, "pattern"), fields.array(frame, "patterns")
    if (one is None) == (several is None):
        raise BadFrame(
            "expected one of the fields 'pattern' and 'patterns', got " + ("none" if one is None else "both")
        )
    if several is None:
        return (check_pattern(one),)
    if not 1 <= len(several) <= MAX_PATTERNS:
        raise fields.wrong("patterns", f"a list of 1 to {MAX_PATTERNS} patterns", several)
    for pattern in several:
        if type(pattern) is not str:
            raise fields.wrong("patterns", "strings", pattern)
    return tuple(dict.fromkeys(check_pattern(pattern) for pattern in several))


def _start(frame: fields.Object) -> Start:
    named = [name for name in ("starting_seq", "after", "from") if frame.get(name) is not None]
    if len(named) > 1:
        raise BadFrame(f"expected at most one of 'starting_seq', 'after' and 'from', got {' and '.join(named)}")
    if named == ["starting_seq"]:
        inclusive = fields.required("starting_seq", fields.integer(frame, "starting_seq", 0, fields.MAX_SEQ))
        return max(inclusive - 1, 0)
    if named == ["after"]:
        return fields.required("after", fields.integer(frame, "after", 0, fields.MAX_SEQ))
    if named == ["from"]:
        return _from(frame)
    return "now"


def _from(frame: fields.Object) -> Start:
    value = fields.whole(frame["from"])
    if value == "now" or value == "earliest":
        return cast(Start, value)
    if type(value) is int:
        return fields.required("from", fields.integer(frame, "from", 0, fields.MAX_SEQ))
    if type(value) is str:
        return fields.time(value, "from")
    raise fields.wrong("from", "'now', 'earliest', an integer ≥ 0 or an RFC 3339 time", value)


def _parse_unsubscribe(frame: fields.Object, frame_id: int | None, limits: Settings) -> Unsubscribe:
    return Unsubscribe(_required_sub(frame), frame_id)


def _parse_ack(frame: fields.Object, frame_id: int | None, limits: Settings) -> Acknowledge | AcknowledgeUpTo:
    chosen = _chosen(frame)
    if chosen.up_to is not None:
        return AcknowledgeUpTo(_required_sub(frame), chosen.up_to, frame_id)
    sub = _sub(frame)
    if frame.get("seq") is not None:
        return Acknowledge(((chosen.seqs[0], fields.message_id(frame)),), frame_id, sub, chosen.attempt)
    return Acknowledge([(seq, None) for seq in chosen.seqs], frame_id, sub, chosen.attempt)


def _parse_nack(frame: fields.Object, frame_id: int | None, limits: Settings) -> Nack:
    delay = _duration(frame, "delay", 0, LONGEST)
    return Nack(_chosen(frame), _sub(frame), delay, fields.string(frame, "reason"), frame_id)


def _parse_reject(frame: fields.Object, frame_id: int | None, limits: Settings) -> Reject:
    return Reject(_chosen(frame), _sub(frame), fields.string(frame, "reason"), frame_id)


def _parse_extend(frame: fields.Object, frame_id: int | None, limits: Settings) -> Extend:
    return Extend(_chosen(frame), _sub(frame), frame_id)


def _chosen(frame: fields.Object) -> Chosen:
    named = [name for name in ("seq", "seqs", "up_to") if frame.get(name) is not None]
    if len(named) != 1:
        raise BadFrame(f"expected one of 'seq', 'seqs' and 'up_to', got {' and '.join(named) or 'none'}")
    if named == ["seq"]:
        seq = fields.required("seq", fields.integer(frame, "seq", maximum=fields.MAX_SEQ))
        return Chosen((seq,), attempt=fields.integer(frame, "attempt"))
    if named == ["up_to"]:
        _refuse_fields(frame, ("attempt",), "it is for events named by 'seq' or 'seqs'")
        return Chosen(up_to=fields.integer(frame, "up_to", maximum=fields.MAX_SEQ))
    seqs = fields.required("seqs", fields.integers(frame, "seqs", MAX_ACKS))
    return Chosen(seqs, attempt=fields.integer(frame, "attempt"))


def _parse_credit(frame: fields.Object, frame_id: int | None, limits: Settings) -> Credit:
    credit = fields.required("credit", fields.integer(frame, "credit", maximum=limits.max_credit))
    return Credit(_required_sub(frame), credit, frame_id)


def _parse_auth(frame: fields.Object, frame_id: int | None, limits: Settings) -> Authenticate:
    token = frame.get("token")
    if type(token) is not str or not token:  # no message quotes it, whatever it is
        raise BadFrame(f"field 'token': expected a string with a token, got {type(token).__name__}")
    return Authenticate(SecretStr(token), frame_id)


def _parse_ping(frame: fields.Object, frame_id: int | None, limits: Settings) -> Ping:
    return Ping(frame_id)


def _sub(frame: fields.Object) -> Sub | None:
    value = fields.whole(frame.get("sub"))
    if value is None:
        return None
    if type(value) is str and 1 <= len(value) <= MAX_SUB:
        return value
    if type(value) is int and 0 <= value <= fields.MAX_ID:
        return value
    raise fields.wrong("sub", f"an integer ≥ 0 or a string of 1 to {MAX_SUB} characters", value)


def _required_sub(frame: fields.Object) -> Sub:
    sub = _sub(frame)
    if sub is None:
        raise BadFrame("field 'sub' is missing")
    return sub


def _sub_of(frame: object) -> Sub | None:
    """The subscription that a refused frame speaks of, as far as it can be told."""
    try:
        return _sub(frame) if isinstance(frame, dict) else None
    except BadFrame:
        return None


_PARSERS: Mapping[str, Callable[[fields.Object, int | None, Settings], Command]] = {
    "publish": _parse_publish,
    "publish_batch": _parse_publish_batch,
    "subscribe": _parse_subscribe,
    "unsubscribe": _parse_unsubscribe,
    "ack": _parse_ack,
    "nack": _parse_nack,
    "reject": _parse_reject,
    "extend": _parse_extend,
    "credit": _parse_credit,
    "auth": _parse_auth,
    "ping": _parse_ping,
}

KINDS = tuple(_PARSERS)
"""The types of the frames that a client may send."""
