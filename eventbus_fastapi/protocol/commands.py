"""What a client sends: the commands as values, and as the frames that it writes.

The way back, from a frame to commands, is `parser`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from pydantic import SecretStr
from pydantic_core import to_json

from eventbus_fastapi.errors import (
    EventBusError,
)
from eventbus_fastapi.events import Draft
from eventbus_fastapi.protocol.events import Sub, draft_object
from eventbus_fastapi.settings import Overflow

Start = Literal["now", "earliest"] | int | datetime
"""Where reading starts; an integer is a seq, exclusive."""

MAX_PATTERNS = 100
"""Most patterns of one subscription."""
MAX_ACKS = 10_000
"""Most seqs in one ack."""
MAX_JOINED = 10_000
"""Most frames in one array."""
MAX_SUB = 64
"""Longest subscription id, characters."""
FRAME_DEPTH = 6
"""Nesting that frames add around a payload."""

DEFAULT_CREDIT = 100
"""Events that a member of a group holds at most, if it does not say."""
DEFAULT_ACK_WAIT = 30.0
"""Seconds that a member has to settle an event, if it does not say."""
MIN_ACK_WAIT, MAX_ACK_WAIT = 0.1, 43_200.0
"""Bounds of that, seconds."""
DEFAULT_MAX_ATTEMPTS = 10
MAX_ATTEMPTS = 100
"""Most attempts that a group may be made with."""


class Publish(NamedTuple):
    drafts: Sequence[Draft]
    id: int | None = None
    is_batch: bool = False
    is_live: bool = False
    """True: not stored (`durable` is false)."""
    wave: int | None = None
    """Another one than that of a publish before which was refused for the moment: this one was sent by a client that
    knew of it. None: the client does not say."""


class Subscribe(NamedTuple):
    patterns: tuple[str, ...]
    sub: Sub | None = None
    """None: the server chooses."""
    start: Start = "now"
    epoch: UUID | None = None
    include_processed: bool = False
    processed_before: int | None = None
    """A replay leaves out what was processed before this time, unix microseconds. None: before now."""
    credit: int | None = None
    """None: no limit."""
    overflow: Overflow | None = None
    """None: the server's own policy."""
    buffer: int | None = None
    """None: the server's own limit."""
    id: int | None = None
    group: str | None = None
    """None: the connection reads for itself."""
    ack_wait: float | None = None
    """Seconds that a member of the group has to settle an event; None: the default."""
    max_attempts: int | None = None
    """Attempts after which an event becomes a dead letter, where the group is made; None: the default."""


class Unsubscribe(NamedTuple):
    sub: Sub
    id: int | None = None


class Acknowledge(NamedTuple):
    """Mark events processed, each named by its seq; its message_id is compared where it is given."""

    events: Sequence[tuple[int, UUID | None]]
    id: int | None = None
    sub: Sub | None = None
    """The subscription that they came with; it matters only where that is a group's."""
    attempt: int | None = None
    """The attempt that is acknowledged, of each event, where they are a group's; None: whichever the member holds."""


class AcknowledgeUpTo(NamedTuple):
    """Mark processed what was sent to a subscription so far, up to a seq, inclusive."""

    sub: Sub
    up_to: int
    id: int | None = None


class Chosen(NamedTuple):
    """Which of the events that a member of a group holds are meant."""

    seqs: Sequence[int] = ()
    up_to: int | None = None
    """All up to this seq, inclusive; None: `seqs`."""
    attempt: int | None = None
    """The attempt that is meant, of each seq; None: whichever the member holds."""


class Nack(NamedTuple):
    """Give events back, for another attempt."""

    chosen: Chosen
    sub: Sub | None = None
    delay: float | None = None
    """Seconds until then; None: the server's backoff."""
    reason: str | None = None
    id: int | None = None


class Reject(NamedTuple):
    """Give events up: they become dead letters at once."""

    chosen: Chosen
    sub: Sub | None = None
    reason: str | None = None
    id: int | None = None


class Extend(NamedTuple):
    """Begin the ack wait of events anew."""

    chosen: Chosen
    sub: Sub | None = None
    id: int | None = None


class Credit(NamedTuple):
    sub: Sub
    credit: int
    id: int | None = None


class Ping(NamedTuple):
    id: int | None = None


class Authenticate(NamedTuple):
    """Show who the client is: as the first frame where the handshake had no credentials, or anew in good time."""

    token: SecretStr
    id: int | None = None


class Refused(NamedTuple):
    """A frame that cannot be used, and the error to answer."""

    error: EventBusError
    id: int | None = None
    sub: Sub | None = None


Settling = Nack | Reject | Extend
"""What only a member of a group says."""
Command = Publish | Subscribe | Unsubscribe | Acknowledge | AcknowledgeUpTo | Settling | Credit | Authenticate | Ping


def client_frame(command: Command) -> str:
    """Return the JSON text of a command's frame."""
    if isinstance(command, Publish):
        return _publish_frame(command)
    return to_json({name: value for name, value in _members(command).items() if value is not None}).decode()


def _publish_frame(command: Publish) -> str:
    events = ",".join(draft_object(draft, durable=not command.is_live) for draft in command.drafts)
    frame_id = "" if command.id is None else f',"id":{command.id}'
    wave = "" if command.wave is None else f',"wave":{command.wave}'
    if command.is_batch:
        return f'{{"type":"publish_batch"{frame_id}{wave},"messages":[{events}]}}'
    return f'{{"type":"publish"{frame_id}{wave},"data":{events}}}'


def in_wave(frame: str, wave: int) -> str:
    """Return the frame of a publish of wave 0 as one of another wave, which is one digit as well."""
    return frame.replace('"wave":0', f'"wave":{wave}', 1) if wave else frame  # it stands before what a program chose


def _members(command: Command) -> dict[str, Any]:
    match command:
        case Subscribe(patterns=patterns, start=start, include_processed=include_processed):
            members = command._asdict()
            del members["start"]
            return {
                "type": "subscribe",
                **members,
                "patterns": patterns,
                "from": start,
                "include_processed": include_processed or None,
            }
        case Unsubscribe(sub=sub):
            return {"type": "unsubscribe", "sub": sub, "id": command.id}
        case Acknowledge(events=[(seq, message_id)], sub=sub, attempt=attempt):
            named = {"seq": seq, "message_id": message_id, "attempt": attempt}
            return {"type": "ack", "sub": sub, **named, "id": command.id}
        case Acknowledge(events=events, sub=sub, attempt=attempt):
            seqs = [seq for seq, _ in events]
            return {"type": "ack", "sub": sub, "seqs": seqs, "attempt": attempt, "id": command.id}
        case AcknowledgeUpTo(sub=sub, up_to=up_to):
            return {"type": "ack", "sub": sub, "up_to": up_to, "id": command.id}
        case Nack(chosen=chosen, sub=sub, delay=delay, reason=reason):
            return {"type": "nack", "sub": sub, **_named(chosen), "delay": delay, "reason": reason, "id": command.id}
        case Reject(chosen=chosen, sub=sub, reason=reason):
            return {"type": "reject", "sub": sub, **_named(chosen), "reason": reason, "id": command.id}
        case Extend(chosen=chosen, sub=sub):
            return {"type": "extend", "sub": sub, **_named(chosen), "id": command.id}
        case Authenticate(token=token):
            return {"type": "auth", "token": token.get_secret_value(), "id": command.id}
        case Credit(sub=sub, credit=credit):
            return {"type": "credit", "sub": sub, "credit": credit, "id": command.id}
        case _:
            return {"type": "ping", "id": command.id}


def _named(chosen: Chosen) -> dict[str, Any]:
    if chosen.up_to is not None:
        return {"up_to": chosen.up_to}
    if len(chosen.seqs) == 1:
        return {"seq": chosen.seqs[0], "attempt": chosen.attempt}
    return {"seqs": chosen.seqs, "attempt": chosen.attempt}
