"""What events the messages of brokers become: without any broker."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from eventbus_fastapi import codec
from eventbus_fastapi.errors import (
    InvalidCloudEvent,
    InvalidEvent,
    InvalidInput,
    InvalidPayload,
    InvalidTopic,
    PayloadTooLarge,
)
from eventbus_fastapi.events import Draft, Message
from eventbus_fastapi.protocol.cloudevents import cloudevent_object, cloudevents_batch
from eventbus_fastapi.relay.foreign import Foreign, Rules, check_template, drafts_of
from eventbus_fastapi.relay.headers import headers_of
from eventbus_fastapi.settings import Settings

ID = UUID("0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3")
RULES = Rules("rabbitmq", "orders")
SETTINGS = Settings()
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def foreign(body: bytes = b"{}", **fields: Any) -> Foreign:
    return Foreign(**{"subject": "order.paid", "body": body, "headers": {}, "given_id": str(ID), **fields})


def draft(message: Foreign, rules: Rules = RULES) -> Draft:
    [only] = drafts_of(message, rules, SETTINGS)
    return only


def metadata(message: Foreign, rules: Rules = RULES) -> dict[str, Any]:
    return codec.load_object(draft(message, rules).metadata or "{}")


# --- topics, payloads ---


def test_the_subject_is_the_topic_and_the_body_the_payload() -> None:
    event = draft(foreign(b'{"n": 1}', content_type="application/json"))
    assert (event.topic, event.payload, event.content_type) == ("order.paid", b'{"n": 1}', "application/json")


def test_the_topic_may_be_given_or_made_of_the_subject_the_source_and_headers() -> None:
    message = foreign(headers={"Kind": "new"})
    assert draft(message, RULES._replace(topic="all.orders")).topic == "all.orders"
    assert draft(message, RULES._replace(topic_template="{source}.{subject}.{header:kind}")).topic == (
        "orders.order.paid.new"
    )


def test_a_header_that_a_template_needs_and_a_message_lacks_is_named() -> None:
    with pytest.raises(InvalidTopic, match="the message has no header kind"):
        draft(foreign(), RULES._replace(topic_template="{header:kind}"))


@pytest.mark.parametrize("template", ["", "{", "a.{subject", "{subject.x}", "{topic}", "{header:}", "a}"])
def test_a_template_of_anything_else_is_refused(template: str) -> None:
    with pytest.raises(InvalidTopic, match="a topic template has"):
        check_template(template)


def test_bytes_without_a_content_type_have_that_of_the_rules_or_none() -> None:
    assert draft(foreign()).content_type == "application/octet-stream"
    assert draft(foreign(), RULES._replace(content_type="application/json")).content_type == "application/json"
    assert draft(foreign(headers={"Content-Type": "text/plain"})).content_type == "text/plain"


def test_what_is_compressed_stays_so_and_says_what_it_is() -> None:
    message = foreign(b"\x1f\x8b", content_type="application/json", encoding="gzip")
    assert (draft(message).payload, draft(message).content_type) == (b"\x1f\x8b", "application/octet-stream")
    kept = metadata(message)
    assert (kept["content_encoding"], kept["encoded_content_type"]) == ("gzip", "application/json")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (foreign(subject="order..paid"), InvalidTopic),
        (foreign(subject=""), InvalidTopic),
        (foreign(b"{", content_type="application/json"), InvalidPayload),
        (foreign(b"\xff", content_type="text/plain"), InvalidPayload),
        (foreign(content_type="json"), InvalidPayload),
        (foreign(b"x" * (SETTINGS.max_payload + 1)), PayloadTooLarge),
    ],
)
def test_what_cannot_be_an_event_is_refused(message: Foreign, error: type[InvalidInput]) -> None:
    with pytest.raises(error):
        draft(message)


def test_an_attribute_of_a_cloudevent_that_is_no_text_is_refused_as_it_would_be_another_one_each_time() -> None:
    attributes = {"ce-specversion": "1.0", "ce-id": b"\xff", "ce-source": "/shop", "ce-type": "order.paid"}
    with pytest.raises(InvalidCloudEvent, match="the header ce-id is no text"):
        draft(foreign(headers=attributes))


# --- message ids ---


def test_the_uuid_of_the_sender_is_the_message_id() -> None:
    assert draft(foreign()).message_id == ID


def test_a_place_in_the_source_makes_the_same_message_id_each_time_and_another_one_elsewhere() -> None:
    here, there = foreign(given_id=None, place="7/1"), foreign(given_id="seven", place="8/1")
    assert draft(here) == draft(here)
    assert draft(here).message_id != draft(there).message_id
    assert draft(here).message_id != draft(here, RULES._replace(source="others")).message_id


def test_an_id_of_the_sender_that_is_no_uuid_makes_one() -> None:
    assert draft(foreign(given_id="42")).message_id == draft(foreign(b"other", given_id="42")).message_id
    assert draft(foreign(given_id="42")).message_id != draft(foreign(given_id="43")).message_id


def test_a_message_without_any_id_is_refused_unless_the_rules_say_what_it_is_known_by() -> None:
    message = foreign(given_id=None)
    with pytest.raises(InvalidEvent, match="identity='content'"):
        draft(message)
    by_content, by_delivery = RULES._replace(identity="content"), RULES._replace(identity="delivery")
    assert draft(message, by_content).message_id == draft(message, by_content).message_id
    assert draft(message, by_content).message_id != draft(foreign(b"[]", given_id=None), by_content).message_id
    assert draft(message, by_delivery).message_id != draft(message, by_delivery).message_id


def test_what_the_broker_changes_with_a_delivery_is_no_content() -> None:
    rules = RULES._replace(identity="content")
    again = foreign(given_id=None, headers={"x-delivery-count": 2}, is_again=True)
    assert draft(again, rules).message_id == draft(foreign(given_id=None), rules).message_id


# --- metadata ---


def test_headers_become_metadata_and_the_way_in_is_told() -> None:
    headers = {"tenant": "a", "tries": 2, "raw": b"text", "at": datetime(2026, 1, 1, tzinfo=UTC), "traceparent": PARENT}
    assert metadata(foreign(headers=headers)) == {
        "tenant": "a",
        "tries": 2,
        "raw": "text",
        "at": "2026-01-01T00:00:00+00:00",
        "traceparent": PARENT,
        "ingest": {"from": "rabbitmq:orders"},
    }


def test_headers_that_do_not_fit_are_left_out_and_named_and_the_trace_is_not_among_them() -> None:
    headers = {"big": "x" * 20_000, "bytes": b"\xff", "timestamp": 1, "nan": float("nan"), "Traceparent": PARENT}
    kept = metadata(foreign(headers=headers))
    assert kept["traceparent"] == PARENT
    assert kept["ingest"]["left_out"] == ["big", "bytes", "timestamp", "nan"]
    assert set(kept) == {"traceparent", "ingest"}


def test_ever_so_many_headers_are_kept_as_far_as_there_is_room() -> None:
    kept = metadata(foreign(headers={f"h{number:04}": "x" * 200 for number in range(500)}))
    assert len(kept) > 40
    assert kept["ingest"]["left_out"] == 500 + 1 - len(kept)


def test_text_that_no_database_holds_is_escaped() -> None:
    assert metadata(foreign(headers={"odd\ud800": "a\ud800"}))["odd\\ud800"] == "a\\ud800"


# --- events of buses, CloudEvents ---

OURS = Message(7, ID, "user.created", "ada", b'{"id":1}', "application/json", '{"tenant":"a"}', 1_000_000)


def test_an_event_that_a_bus_has_relayed_is_the_same_event_and_its_seq_is_no_longer_one() -> None:
    message = foreign(OURS.body, headers=headers_of(OURS), given_id=None, subject="elsewhere")
    event = draft(message)
    assert event[:5] == (ID, "user.created", "ada", b'{"id":1}', "application/json")
    assert metadata(message) == {
        "tenant": "a",
        "ingest": {"from": "rabbitmq:orders", "subject": "elsewhere", "seq": 7},
    }


def test_what_it_was_relayed_as_a_cloudevent_for_changes_nothing_of_that() -> None:
    body = cloudevent_object(OURS, "/another").encode()
    headers = headers_of(OURS) | {"content-type": "application/cloudevents+json"}
    event = draft(foreign(body, headers=headers, given_id=None))
    assert event[:5] == (ID, "user.created", "ada", b'{"id":1}', "application/json")


def test_a_cloudevent_is_understood_in_the_body_and_in_headers() -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.sent", "data": {"a": 1}}
    structured = draft(foreign(json.dumps(event).encode(), content_type="application/cloudevents+json", given_id=None))
    attributes = {f"cloudEvents:{name}": value for name, value in event.items() if name != "data"}
    binary = draft(foreign(b'{"a":1}', headers=attributes, content_type="application/json", given_id=None))
    assert structured[:2] == binary[:2]
    assert (structured.topic, structured.payload) == ("order.sent", b'{"a":1}')


def test_a_batch_of_cloudevents_is_as_many_events() -> None:
    body = cloudevents_batch([OURS, OURS], "/another").encode()
    found = drafts_of(foreign(body, content_type="application/cloudevents-batch+json"), RULES, SETTINGS)
    assert [each.topic for each in found] == ["user.created", "user.created"]


def test_something_that_says_it_is_a_cloudevent_and_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput, match="CloudEvent"):
        draft(foreign(b"[]", content_type="application/cloudevents+json"))


def test_the_rules_say_the_topic_of_these_as_well() -> None:
    rules = RULES._replace(topic="one.for.all")
    assert draft(foreign(OURS.body, headers=headers_of(OURS)), rules).topic == "one.for.all"
    body = cloudevent_object(OURS, "/another").encode()
    assert draft(foreign(body, content_type="application/cloudevents+json"), rules).topic == "one.for.all"
