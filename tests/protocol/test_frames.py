"""Server frames: what the server writes is what the client reads."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from eventbus_fastapi.errors import BadFrame, EventBusError, RemoteError, SlowConsumer, StoreUnavailable
from eventbus_fastapi.events import Message, Receipt
from eventbus_fastapi.protocol.events import event_frame
from eventbus_fastapi.protocol.frames import (
    Bye,
    CaughtUp,
    Closed,
    Delivered,
    Failed,
    Gap,
    Heartbeat,
    Ok,
    Pong,
    ServerFrame,
    Welcome,
    batch_published,
    joined,
    parse_server_frame,
    published,
    receipts,
    server_frame,
)

ID = UUID("0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3")
LIMITS = {"max_frame": 1}


@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (
            Welcome("1.0", "c1", ID, 5, 15.0, LIMITS),
            {
                "type": "welcome",
                "protocol": 1,
                "server": "1.0",
                "connection": "c1",
                "epoch": str(ID),
                "head": 5,
                "heartbeat": 15.0,
                "limits": LIMITS,
            },
        ),
        (CaughtUp("s", 5), {"type": "caught_up", "sub": "s", "seq": 5}),
        (Gap(1, 2, 3, "retention"), {"type": "gap", "sub": 1, "first_seq": 2, "last_seq": 3, "reason": "retention"}),
        (Heartbeat(7), {"type": "heartbeat", "head": 7}),
        (Pong(), {"type": "pong"}),
        (Pong(0), {"type": "pong", "id": 0}),
    ],
)
def test_a_frame_is_written_and_read(frame: Any, wire: dict[str, Any]) -> None:
    text = server_frame(frame)

    assert json.loads(text) == wire
    assert parse_server_frame(text) == [frame]


def test_an_error_carries_its_object() -> None:
    text = server_frame(Failed(StoreUnavailable("the database is away"), 3, 1))

    assert json.loads(text) == {
        "type": "error",
        "id": 3,
        "sub": 1,
        "error": {
            "code": "store.unavailable",
            "status": 503,
            "message": "the database is away",
            "retry": True,
            "retry_after": 1.0,
        },
    }
    [failed] = parse_server_frame(text)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, RemoteError)
    assert (failed.id, failed.sub, failed.error.code, failed.error.retry) == (3, 1, "store.unavailable", True)


def test_an_error_without_a_frame_to_name_has_no_id() -> None:
    assert set(json.loads(server_frame(Failed(EventBusError("x"))))) == {"type", "error"}


@pytest.mark.parametrize("frame", [Closed(1, SlowConsumer("slow")), Bye(SlowConsumer("slow"), True, 1.5)])
def test_an_end_says_why(frame: Any) -> None:
    [read] = parse_server_frame(server_frame(frame))

    assert type(read) is type(frame)
    assert read.error.code == "subscriber.slow"  # type: ignore[union-attr]


def test_receipts_are_written_and_read() -> None:
    stored, scheduled, twin = Receipt(ID, 5), Receipt(ID, None), Receipt(ID, 4, duplicate=True)

    [one] = parse_server_frame(published(1, stored))
    [several] = parse_server_frame(batch_published(2, [stored, scheduled, twin]))
    [none] = parse_server_frame(batch_published(3, []))

    assert isinstance(one, Ok)
    assert isinstance(several, Ok)
    assert isinstance(none, Ok)
    assert (one.id, receipts(one)) == (1, [stored])
    assert (several.id, receipts(several)) == (2, [stored, scheduled, twin])
    assert receipts(none) == []


def test_joined_frames_are_read_in_order() -> None:
    messages = [Message(seq, ID, "a", None, b"x", "text/plain", None, 0) for seq in (1, 2, 3)]
    texts = [event_frame(messages[:2], 1), server_frame(CaughtUp(1, 2)), event_frame(messages[2:], 1)]

    frames = parse_server_frame(joined(texts))

    assert [type(frame) for frame in frames] == [Delivered, Delivered, CaughtUp, Delivered]
    assert [frame.message.seq for frame in frames if isinstance(frame, Delivered)] == [1, 2, 3]


def test_one_text_is_not_wrapped() -> None:
    assert joined(["{}"]) == "{}"


def test_unknown_types_and_fields_are_left_out() -> None:
    frames: list[ServerFrame] = parse_server_frame('[{"type":"new"},{"type":"heartbeat","head":1,"more":2}]')

    assert frames == [Heartbeat(1)]


@pytest.mark.parametrize(
    "text",
    ["", "{", "5", "[5]", "{}", '{"type":"event"}', '{"type":"welcome","epoch":1}', '{"type":"error","error":1}'],
)
def test_what_cannot_be_used_is_a_bad_frame(text: str) -> None:
    with pytest.raises(BadFrame):
        parse_server_frame(text)
