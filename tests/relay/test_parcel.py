"""How an event is written for a broker."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from eventbus_fastapi.events import Message
from eventbus_fastapi.relay.parcel import Packer, Parcel
from eventbus_fastapi.relay.subject import SubjectTemplate

ID = UUID("0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3")
MESSAGE = Message(7, ID, "user.created", "Zoë", b'{"id":1}', "application/json", '{"a":"\xfc"}', 1_767_225_600_000_001)


def pack(**options: Any) -> Parcel:
    return Packer(SubjectTemplate(), relay="to broker", epoch="e", **options).pack(MESSAGE, 2)


def test_the_body_is_the_payload_and_headers_say_the_rest() -> None:
    parcel = pack()
    assert parcel.body == b'{"id":1}'
    assert parcel.headers == {
        "eventbus-message-id": str(ID),
        "eventbus-seq": "7",
        "eventbus-topic": "user.created",
        "eventbus-key": "Zo%C3%AB",
        "eventbus-metadata": '{"a":"\\u00fc"}',
        "content-type": "application/json",
        "eventbus-attempt": "2",
        "eventbus-timestamp": "2026-01-01T00:00:00.000001Z",
        "eventbus-relay": "to broker",
        "eventbus-epoch": "e",
    }


def test_a_cloudevent_in_binary_form_has_its_attributes_in_headers() -> None:
    headers = pack(cloudevents="binary", prefix="ce-", source="/shop").headers
    found = {name: value for name, value in headers.items() if name.startswith("ce-")}
    assert found == {
        "ce-specversion": "1.0",
        "ce-id": str(ID),
        "ce-source": "/shop",
        "ce-type": "user.created",
        "ce-time": "2026-01-01T00:00:00.000001Z",
        "ce-subject": "Zo%C3%AB",
        "ce-seq": "7",
        "ce-a": "%C3%BC",
    }
    assert headers["content-type"] == "application/json"


def test_a_cloudevent_in_structured_form_is_the_body() -> None:
    parcel = pack(cloudevents="structured", source="/shop")
    event = json.loads(parcel.body)
    assert (event["id"], event["type"], event["data"]) == (str(ID), "user.created", {"id": 1})
    assert parcel.headers["content-type"] == "application/cloudevents+json"
    assert parcel.headers["eventbus-message-id"] == str(ID)
