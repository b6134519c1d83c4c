"""What a server sends: the frames of `eventbus.v1` as values, and both ways between them and text.

Events are the one exception on the way out: `protocol.events` builds their text, because many connections share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from pydantic_core import from_json, to_json

from eventbus_fastapi.errors import BadFrame, EventBusError, RemoteError
from eventbus_fastapi.events import Message, Receipt
from eventbus_fastapi.protocol.events import Sub, parse_event

SUBPROTOCOL = "eventbus.v1"
PROTOCOL = 1
"""The version in `welcome`."""


class Welcome(NamedTuple):
    server: str
    connection: str
    epoch: UUID
    head: int
    heartbeat: float
    limits: Mapping[str, int]
    principal: str | None = None
    """Who the client is to the server; None: it asks nobody."""
    expires_in: float | None = None
    """Seconds until its credentials end; None: they do not."""


class Ok(NamedTuple):
    """The answer to the frame `id`; `result` holds what else it carries (`seq`, `results`, `sub`, `acked`, …)."""

    id: int
    result: Mapping[str, Any]


class Failed(NamedTuple):
    """A frame failed and changed nothing."""

    error: EventBusError
    id: int | None = None
    """None: the frame had no id, or none that could be read."""
    sub: Sub | None = None


class Delivered(NamedTuple):
    """An event, for a subscription."""

    sub: Sub
    message: Message
    attempt: int | None = None
    """The number of the delivery, counted from 1, where the subscription is a group's."""


class Lost(NamedTuple):
    """Events were taken back from a member of a group; what it does with them now is done twice."""

    sub: Sub
    seqs: Sequence[int]


class CaughtUp(NamedTuple):
    sub: Sub
    seq: int


class Gap(NamedTuple):
    sub: Sub
    first_seq: int
    last_seq: int
    reason: str


class Heartbeat(NamedTuple):
    head: int


class Pong(NamedTuple):
    id: int | None = None


class Closed(NamedTuple):
    """A subscription ended; others go on."""

    sub: Sub
    error: EventBusError


class Bye(NamedTuple):
    """The server closes next."""

    error: EventBusError
    reconnect: bool
    after: float
    """Seconds to wait before coming back."""


ServerFrame = Welcome | Ok | Failed | Delivered | Lost | CaughtUp | Gap | Heartbeat | Pong | Closed | Bye


# --- writing, by the server ----------------------------------------------------------------------


def server_frame(frame: Welcome | Ok | Failed | Lost | CaughtUp | Gap | Heartbeat | Pong | Closed | Bye) -> str:
    """Return the JSON text of a frame."""
    match frame:
        case Ok(id=frame_id, result=result):
            return _text("ok", {"id": frame_id, **result})
        case Failed(error=error, id=frame_id, sub=sub):
            return _text("error", _present(id=frame_id, sub=sub, error=error.describe()))
        case Lost():
            return _text("lost", frame._asdict())
        case CaughtUp():
            return _text("caught_up", frame._asdict())
        case Gap():
            return _text("gap", frame._asdict())
        case Heartbeat(head=head):
            return f'{{"type":"heartbeat","head":{head}}}'
        case Pong(id=frame_id):
            return _text("pong", _present(id=frame_id))
        case Closed(sub=sub, error=error):
            return _text("closed", {"sub": sub, "error": error.describe()})
        case Bye(error=error, reconnect=reconnect, after=after):
            return _text("bye", {"error": error.describe(), "reconnect": reconnect, "after": after})
        case Welcome():
            return _text("welcome", {"protocol": PROTOCOL, **_present(**frame._asdict())})


def published(frame_id: int, receipt: Receipt) -> str:
    """Return the text of the `ok` that answers a `publish`."""
    return f'{{"type":"ok","id":{frame_id},{_receipt(receipt)}}}'


def batch_published(frame_id: int, receipts: Sequence[Receipt]) -> str:
    """Return the text of the `ok` that answers a `publish_batch`."""
    results = ",".join(f"{{{_receipt(receipt)}}}" for receipt in receipts)
    return f'{{"type":"ok","id":{frame_id},"results":[{results}]}}'


def joined(texts: Sequence[str]) -> str:
    """Return one frame for the texts of one or several, arrays among them; the order stays."""
    if len(texts) == 1:
        return texts[0]
    return "[" + ",".join([text[1:-1] if text[0] == "[" else text for text in texts]) + "]"


def _receipt(receipt: Receipt) -> str:
    seq = "null" if receipt.seq is None else receipt.seq
    duplicate = "true" if receipt.duplicate else "false"
    return f'"seq":{seq},"message_id":"{receipt.message_id}","duplicate":{duplicate}'


def _text(kind: str, members: Mapping[str, Any]) -> str:
    return to_json({"type": kind, **members}).decode()


def _present(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


# --- reading, by the client ----------------------------------------------------------------------


def parse_server_frame(text: str | bytes) -> list[ServerFrame]:
    """Return the frames of a server's text, in order; types that this version does not know are left out.

    Raises:
        BadFrame: the text does not follow the protocol.
    """
    try:
        frame = from_json(text)
        objects = frame if type(frame) is list else [frame]
        return [parsed for each in objects if (parsed := _parse(each)) is not None]
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BadFrame(f"the server sent a frame that cannot be used: {type(exc).__name__}: {exc}") from exc


def receipts(ok: Ok) -> list[Receipt]:
    """Return what the `ok` of a `publish` or a `publish_batch` says."""
    results = ok.result.get("results", [ok.result])
    return [Receipt(UUID(each["message_id"]), each["seq"], each["duplicate"]) for each in results]


def _parse(frame: Mapping[str, Any]) -> ServerFrame | None:
    match frame["type"]:
        case "event":
            return Delivered(frame["sub"], parse_event(frame), frame.get("attempt"))
        case "ok":
            return Ok(frame["id"], frame)
        case "error":
            return Failed(RemoteError(frame["error"]), frame.get("id"), frame.get("sub"))
        case "lost":
            return Lost(frame["sub"], list(frame["seqs"]))
        case "caught_up":
            return CaughtUp(frame["sub"], frame["seq"])
        case "gap":
            return Gap(frame["sub"], frame["first_seq"], frame["last_seq"], frame["reason"])
        case "heartbeat":
            return Heartbeat(frame["head"])
        case "pong":
            return Pong(frame.get("id"))
        case "closed":
            return Closed(frame["sub"], RemoteError(frame["error"]))
        case "bye":
            return Bye(RemoteError(frame["error"]), bool(frame["reconnect"]), float(frame["after"]))
        case "welcome":
            return Welcome(
                frame["server"],
                frame["connection"],
                UUID(frame["epoch"]),
                frame["head"],
                float(frame["heartbeat"]),
                frame["limits"],
                frame.get("principal"),
                frame.get("expires_in"),
            )
        case _:
            return None
