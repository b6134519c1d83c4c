"""The event object: what a message looks like on the wire, and what a client reads from it."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from eventbus_fastapi.errors import BadFrame
from eventbus_fastapi.events import Message
from eventbus_fastapi.protocol.events import event_frame, event_object, parse_event

ID = UUID("0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3")


def message(
    body: bytes = b"Hello",
    content_type: str = "text/plain",
    *,
    seq: int = 17,
    key: str | None = None,
    metadata: str | None = None,
) -> Message:
    return Message(seq, ID, "chat.user1", key, body, content_type, metadata, 1_767_225_600_999_999)


def test_an_event_has_the_members_of_the_model_library() -> None:
    assert json.loads(event_object(message())) == {
        "seq": 17,
        "message_id": str(ID),
        "topic": "chat.user1",
        "payload": "Hello",
        "metadata": {"timestamp": 1_767_225_600, "content_type": "text/plain"},
    }


def test_a_json_payload_goes_out_as_the_bytes_that_were_stored() -> None:
    body = b'{"price": 1.10, "big": 12345678901234567890, "a": 1e2}'

    assert body.decode() in event_object(message(body, "application/json"))


@pytest.mark.parametrize(
    ("body", "content_type", "member", "value"),
    [
        (
            'tab\t"quotes" \\ \x00 ü \U0001f600\u2028'.encode(),
            "text/plain",
            "payload",
            'tab\t"quotes" \\ \x00 ü \U0001f600\u2028',
        ),
        (b"<a/>", "text/xml; charset=utf-8", "payload", "<a/>"),
        (b"[1]", "application/problem+json", "payload", [1]),
        (b"null", "application/json", "payload", None),
        (b"\x00\xff", "application/octet-stream", "payload_base64", "AP8="),
        (b"<a/>", "application/xml", "payload_base64", "PGEvPg=="),
        (b"\xff", "text/plain", "payload_base64", "/w=="),
    ],
)
def test_a_payload_is_written_by_its_content_type(body: bytes, content_type: str, member: str, value: object) -> None:
    written = json.loads(event_object(message(body, content_type)))

    assert written[member] == value
    assert written["metadata"]["content_type"] == content_type


def test_metadata_joins_what_the_bus_adds() -> None:
    written = json.loads(event_object(message(metadata='{"trace":"1","tags":["a"]}')))

    assert written["metadata"] == {
        "trace": "1",
        "tags": ["a"],
        "timestamp": 1_767_225_600,
        "content_type": "text/plain",
    }


@pytest.mark.parametrize("metadata", ["{}", " { } "])
def test_empty_metadata_adds_nothing(metadata: str) -> None:
    written = json.loads(event_object(message(metadata=metadata)))

    assert set(written["metadata"]) == {"timestamp", "content_type"}


def test_a_key_is_written_where_there_is_one() -> None:
    assert json.loads(event_object(message(key='k"ü')))["key"] == 'k"ü'
    assert "key" not in json.loads(event_object(message()))


def test_the_text_of_an_event_is_built_once() -> None:
    event = message()
    event_object(event)
    first = event._wire

    event_frame([event], 1)

    assert event._wire is first


@pytest.mark.parametrize("sub", [1, "mine", 'a"b'])
def test_one_event_is_a_frame_and_several_are_an_array(sub: int | str) -> None:
    one = json.loads(event_frame([message()], sub))
    several = json.loads(event_frame([message(seq=1), message(seq=2)], sub))

    assert (one["type"], one["sub"], one["seq"]) == ("event", sub, 17)
    assert [(each["type"], each["sub"], each["seq"]) for each in several] == [("event", sub, 1), ("event", sub, 2)]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"Hello", "text/plain"),
        ("grüße \x00".encode(), "text/plain; charset=utf-8"),
        (b'{"a":[1,2.5,null]}', "application/json"),
        (b'"a string"', "application/json"),
        (b"\x00\xff", "application/octet-stream"),
        (b"\xff", "text/plain"),
    ],
)
def test_a_client_reads_what_was_published(body: bytes, content_type: str) -> None:
    published = message(body, content_type, key="k", metadata='{"trace":"1"}')

    read = parse_event(json.loads(event_object(published)))

    assert (read.seq, read.message_id, read.topic, read.key) == (17, ID, "chat.user1", "k")
    assert (read.body, read.content_type) == (body, content_type)
    assert read.metadata == {"trace": "1"}
    assert read.timestamp == published.timestamp.replace(microsecond=0)
    if content_type != "text/plain" or body != b"\xff":
        assert read.payload == published.payload


@pytest.mark.parametrize(
    "change",
    [
        {"message_id": "x"},
        {"message_id": 5},
        {"metadata": None},
        {"metadata": {}},
        {"metadata": {"timestamp": "x", "content_type": "text/plain"}},
        {"payload": 5},
        {"payload": None, "payload_base64": "!"},
    ],
)
def test_a_client_refuses_what_is_no_event(change: dict[str, Any]) -> None:
    event = json.loads(event_object(message())) | change

    with pytest.raises(BadFrame, match="not an event object"):
        parse_event(event)
