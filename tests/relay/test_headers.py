"""The headers of an event that travels through a broker."""

from __future__ import annotations

from uuid import UUID

import pytest

from eventbus_fastapi.errors import InvalidEvent
from eventbus_fastapi.events import Message
from eventbus_fastapi.relay.headers import Relayed, headers_of, relayed_of

ID = UUID("0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def event(key: str | None = None, metadata: str | None = None) -> Message:
    return Message(7, ID, "user.created", key, b"{}", "application/json", metadata, 1)


def test_what_is_written_is_read_as_the_same_event() -> None:
    headers = headers_of(event("Zoë/1 %", '{"a":"ü","traceparent":"' + PARENT + '"}'))
    assert relayed_of(headers) == Relayed(ID, "user.created", "Zoë/1 %", {"a": "ü", "traceparent": PARENT}, 7)


def test_every_value_is_ascii_and_the_trace_has_headers_of_its_own() -> None:
    headers = headers_of(event("Zoë", '{"a":"ü","traceparent":"' + PARENT + '"}'))
    assert all(value.isascii() for value in headers.values())
    assert headers["traceparent"] == PARENT


def test_an_event_without_key_and_metadata_has_no_headers_for_them() -> None:
    assert set(headers_of(event())) == {"eventbus-message-id", "eventbus-seq", "eventbus-topic", "content-type"}


def test_other_headers_say_nothing() -> None:
    assert relayed_of({"content-type": "text/plain", "x": 1}) is None


@pytest.mark.parametrize(
    ("name", "value"), [("eventbus-message-id", "7"), ("eventbus-metadata", "[]"), ("eventbus-topic", 5)]
)
def test_a_header_that_cannot_be_read_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidEvent, match="message_id" if name == "eventbus-message-id" else name):
        relayed_of({**headers_of(event()), name: value})
