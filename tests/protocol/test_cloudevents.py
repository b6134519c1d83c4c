"""CloudEvents and events of the bus: what goes in comes out again, either way."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.errors import (
    InvalidCloudEvent,
    InvalidInput,
    InvalidPayload,
    InvalidTopic,
    UnsupportedMediaType,
)
from eventbus_fastapi.events import Draft, Message, make_draft
from eventbus_fastapi.protocol.cloudevents import cloudevent_object, parse_cloudevent
from eventbus_fastapi.settings import Settings

LIMITS = Settings(cloudevents_source="/shop")
NOW = 1_767_225_600_000_000
"""2026-01-01, unix microseconds."""
LEAST: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/orders", "type": "order.paid"}
MESSAGE_ID = "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3"


def logged(draft: Draft, seq: int = 17) -> Message:
    expires_at = None if draft.ttl is None else NOW + draft.ttl
    return Message(seq, *draft[:6], NOW, expires_at)


def parsed(**attributes: Any) -> Draft:
    return parse_cloudevent({**LEAST, **attributes}, LIMITS, NOW)


def shown(draft: Draft, seq: int = 17) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(cloudevent_object(logged(draft, seq), LIMITS.cloudevents_source))
    return written


# --- one by one ----------------------------------------------------------------------------------


def test_an_event_of_the_bus_is_a_cloudevent_with_the_source_of_the_bus() -> None:
    draft = make_draft(
        "user.created",
        {"id": 1},
        key="user-1",
        message_id=MESSAGE_ID,
        metadata={"tenant": "acme", "retries": 3, "source": "signup", "tags": ["a"], "trace_id": "x"},
        ttl=60,
        max_payload=1_000,
    )

    assert shown(draft) == {
        "specversion": "1.0",
        "id": MESSAGE_ID,
        "source": "/shop",
        "type": "user.created",
        "time": "2026-01-01T00:00:00.000000Z",
        "subject": "user-1",
        "datacontenttype": "application/json",
        "seq": "17",
        "expirytime": "2026-01-01T00:01:00.000000Z",
        "tenant": "acme",
        "retries": 3,
        "eventbusmeta": '{"source":"signup","tags":["a"],"trace_id":"x"}',
        "data": {"id": 1},
    }


def test_a_cloudevent_is_an_event_of_the_bus() -> None:
    draft = parsed(
        subject="order-7",
        time="2025-12-31T23:59:59.5+01:00",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        expirytime="2026-01-01T00:01:00Z",
        data={"total": 9.5},
    )

    assert (draft.topic, draft.key, draft.payload, draft.content_type) == (
        "order.paid",
        "order-7",
        b'{"total":9.5}',
        "application/json",
    )
    assert draft.ttl == 60_000_000
    assert json.loads(draft.metadata or "") == {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "expirytime": "2026-01-01T00:01:00Z",
        "cloudevents": {"id": "1", "source": "/orders", "time": "2025-12-31T23:59:59.5+01:00"},
    }


def test_source_and_id_together_are_the_identity() -> None:
    assert parsed().message_id == parsed(data="another").message_id
    assert len({parsed().message_id, parsed(id="2").message_id, parsed(source="/o").message_id}) == 3
    assert parsed(source="/a", id="b/c").message_id != parsed(source="/a/b", id="c").message_id


def test_an_event_of_the_bus_that_comes_back_is_the_same_event() -> None:
    draft = make_draft("a", 1, message_id=MESSAGE_ID, metadata={"tags": ["x"]}, max_payload=100)

    again = parse_cloudevent(shown(draft), LIMITS, NOW)

    assert again._replace(metadata=None) == draft._replace(metadata=None)
    assert json.loads(again.metadata or "") == {
        "tags": ["x"],
        "cloudevents": {"time": "2026-01-01T00:00:00.000000Z"},  # when it happened first
    }


def test_an_event_of_another_bus_keeps_its_identity() -> None:
    draft = parsed(source="/another", id=MESSAGE_ID)

    assert str(draft.message_id) != MESSAGE_ID
    assert (shown(draft)["source"], shown(draft)["id"]) == ("/another", MESSAGE_ID)


def test_what_has_no_seq_says_none() -> None:
    assert "seq" not in shown(parsed(), seq=0)


def test_the_seq_that_comes_in_is_another_logs() -> None:
    assert shown(parsed(seq="99"))["seq"] == "17"


@pytest.mark.parametrize(
    ("came", "payload", "content_type"),
    [
        ({}, b"null", "application/json"),
        ({"data": None}, b"null", "application/json"),
        ({"data": "text"}, b'"text"', "application/json"),
        ({"data": [1, {"a": None}]}, b'[1,{"a":null}]', "application/json"),
        ({"data": 0, "datacontenttype": "application/vnd.x+json"}, b"0", "application/vnd.x+json"),
        ({"data": "text", "datacontenttype": "text/plain"}, b"text", "text/plain"),
        ({"datacontenttype": "text/plain"}, b"", "text/plain"),
        ({"data": "<a/>", "datacontenttype": "application/xml"}, b"<a/>", "application/xml"),
        ({"data_base64": "iVBORw=="}, b"\x89PNG", "application/octet-stream"),
        ({"data_base64": "iVBORw==", "datacontenttype": "image/png"}, b"\x89PNG", "image/png"),
        ({"data_base64": "eyJhIjogMX0=", "datacontenttype": "application/json"}, b'{"a": 1}', "application/json"),
        ({"data_base64": "aGk=", "datacontenttype": "text/plain"}, b"hi", "text/plain"),
    ],
)
def test_data_becomes_the_payload(came: dict[str, Any], payload: bytes, content_type: str) -> None:
    draft = parsed(**came)

    assert (draft.payload, draft.content_type) == (payload, content_type)


@pytest.mark.parametrize(
    ("payload", "content_type", "member"),
    [
        (None, None, {}),
        ("text", None, {"data": "text"}),
        ("", None, {"data": ""}),
        (b"", None, {}),
        (b"\x00", None, {"data_base64": "AA=="}),
        (b'{ "a" : 1 }', "application/json", {"data": {"a": 1}}),
        ("<a/>", "application/xml", {"data_base64": "PGEvPg=="}),
    ],
)
def test_the_payload_becomes_data(payload: Any, content_type: str | None, member: dict[str, Any]) -> None:
    written = shown(make_draft("a", payload, content_type=content_type, max_payload=100))

    assert {name: written[name] for name in ("data", "data_base64") if name in written} == member


@pytest.mark.parametrize("name", ["timestamp", "cloudevents", "dataschema", "metadata", "tags", "key", "ttl"])
def test_extensions_come_out_whatever_their_names_mean_here(name: str) -> None:
    assert shown(parsed(**{name: "x"}))[name] == "x"


def test_an_expiry_as_good_as_never_is_kept_and_not_counted() -> None:
    draft = parsed(expirytime="9999-12-31T23:59:59Z")

    assert draft.ttl is None
    assert shown(draft)["expirytime"] == "9999-12-31T23:59:59Z"


@pytest.mark.parametrize(
    "kept",
    [
        {"id": ""},
        {"source": 1},
        {"time": "soon"},
        {"type": "x"},
        {"specversion": "9"},
        {"data": "x"},
        {"id": "a\nb"},
        "text",
        [],
    ],
)
def test_what_a_publisher_puts_in_the_place_of_what_is_kept_makes_no_malformed_cloudevent(kept: Any) -> None:
    draft = make_draft("a", 1, message_id=MESSAGE_ID, metadata={"cloudevents": kept}, max_payload=100)

    written = cloudevent_object(logged(draft), "/shop")

    event = JSONFormat().read(None, written)
    assert (event.get_id(), event.get_source(), event.get_type()) == (MESSAGE_ID, "/shop", "a")
    assert json.loads(event.get_extension("eventbusmeta")) == {"cloudevents": kept}


def test_metadata_with_control_characters_comes_back_as_it_was() -> None:
    metadata = {"Some key\x7f": "\x00\x1f\x7f\x85\x9fü\U0001f600"}
    draft = make_draft("a", 1, message_id=MESSAGE_ID, metadata=metadata, max_payload=100)

    written = cloudevent_object(logged(draft), "/shop")

    again = parse_cloudevent(json.loads(written), LIMITS, NOW)
    assert json.loads(again.metadata or "{}")["Some key\x7f"] == metadata["Some key\x7f"]


# --- refusals ------------------------------------------------------------------------------------

WITHOUT: Any = object()
REFUSED: list[tuple[dict[str, Any], type[InvalidInput], str]] = [
    ({"id": WITHOUT}, InvalidCloudEvent, "'id': it is missing"),
    ({"source": WITHOUT}, InvalidCloudEvent, "'source': it is missing"),
    ({"type": WITHOUT}, InvalidCloudEvent, "'type': it is missing"),
    ({"specversion": WITHOUT}, InvalidCloudEvent, "'specversion': it is missing"),
    ({"id": None}, InvalidCloudEvent, "'id': it is missing"),
    ({"id": ""}, InvalidCloudEvent, "'id'"),
    ({"id": 1}, InvalidCloudEvent, "'id'"),
    ({"source": ""}, InvalidCloudEvent, "'source'"),
    ({"type": ""}, InvalidCloudEvent, "'type'"),
    ({"type": "order..paid"}, InvalidTopic, "'type': invalid topic"),
    ({"type": "order.*"}, InvalidTopic, "'type': invalid topic"),
    ({"specversion": "0.1"}, InvalidCloudEvent, "'specversion'"),
    ({"specversion": "0.3"}, InvalidCloudEvent, "'specversion'"),
    ({"specversion": 1.0}, InvalidCloudEvent, "'specversion'"),
    ({"id": "a\r\nb"}, InvalidCloudEvent, "'id': expected a string without control characters"),
    ({"source": "a\x00"}, InvalidCloudEvent, "'source'"),
    ({"subject": "s\n"}, InvalidCloudEvent, "'subject'"),
    ({"subject": ""}, InvalidCloudEvent, "'subject'"),
    ({"subject": "é" * 128}, InvalidCloudEvent, "'subject': expected at most 255 bytes"),
    ({"time": "yesterday"}, InvalidCloudEvent, "'time': expected an RFC 3339 time"),
    ({"time": "2026-01-01T00:00:00"}, InvalidCloudEvent, "'time'"),
    ({"time": 5}, InvalidCloudEvent, "'time'"),
    ({"expirytime": "2020-01-01T00:00:00Z"}, InvalidCloudEvent, "'expirytime': expected a time to come"),
    ({"dataschema": ""}, InvalidCloudEvent, "'dataschema'"),
    ({"datacontenttype": "nonsense"}, UnsupportedMediaType, "'datacontenttype'"),
    ({"datacontenttype": "text/plain; charset=latin-1"}, UnsupportedMediaType, "'datacontenttype'"),
    ({"datacontenttype": ""}, InvalidCloudEvent, "'datacontenttype'"),
    ({"data": 1, "data_base64": "AA=="}, InvalidCloudEvent, "'data': expected one of"),
    ({"data_base64": "%"}, InvalidCloudEvent, "'data_base64': expected base64"),
    ({"data_base64": 5}, InvalidCloudEvent, "'data_base64'"),
    ({"data": {}, "datacontenttype": "text/plain"}, InvalidCloudEvent, "'data': expected a string"),
    ({"data_base64": "AA==", "datacontenttype": "application/json"}, InvalidPayload, "'data': payload is not JSON"),
    ({"data_base64": "/w==", "datacontenttype": "text/plain"}, InvalidPayload, "'data': payload is not UTF-8"),
    ({"Extension": "x"}, InvalidCloudEvent, "'Extension': a name is"),
    ({"an_extension": "x"}, InvalidCloudEvent, "'an_extension'"),
    ({"": "x"}, InvalidCloudEvent, "''"),
    ({"a" * 65: "x"}, InvalidCloudEvent, "'aaa"),
    ({"extension": {}}, InvalidCloudEvent, "'extension'"),
    ({"extension": [1]}, InvalidCloudEvent, "'extension'"),
    ({"extension": 2**31}, InvalidCloudEvent, "'extension'"),
    ({"extension": 0.5}, InvalidCloudEvent, "'extension'"),
    ({"eventbusmeta": "no json"}, InvalidCloudEvent, "'eventbusmeta'"),
    ({"eventbusmeta": "[]"}, InvalidCloudEvent, "'eventbusmeta'"),
    ({"eventbusmeta": True}, InvalidCloudEvent, "'eventbusmeta'"),
]


@pytest.mark.parametrize(("attributes", "error", "words"), REFUSED)
def test_what_is_no_cloudevent_is_refused_by_the_name_of_the_attribute(
    attributes: dict[str, Any], error: type[InvalidInput], words: str
) -> None:
    event = {name: value for name, value in {**LEAST, **attributes}.items() if value is not WITHOUT}

    with pytest.raises(error) as refused:
        parse_cloudevent(event, LIMITS, NOW)

    assert words in str(refused.value)
    assert str(refused.value).startswith("CloudEvents attribute '")


@pytest.mark.parametrize("event", [None, 1, "x", [], [LEAST]])
def test_what_is_no_object_is_no_cloudevent(event: Any) -> None:
    with pytest.raises(InvalidCloudEvent, match="expected a CloudEvent, a JSON object"):
        parse_cloudevent(event, LIMITS, NOW)


# --- round trips ---------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
topics = st.lists(st.text("abzAZ09_-:@/", min_size=1, max_size=8), min_size=1, max_size=5).map(".".join)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=20).filter(
    lambda name: (
        name not in {*LEAST, "time", "subject", "datacontenttype", "dataschema", "data", "seq"}
        and name not in {"expirytime", "eventbusmeta"}
    )
)
values = texts | st.booleans() | st.integers(-(2**31), 2**31 - 1)
times = st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
data = st.one_of(
    st.just({}),
    json_values.filter(lambda value: value is not None).map(lambda value: {"data": value}),
    texts.map(lambda text: {"data": text, "datacontenttype": "text/markdown"}),
    st.binary(min_size=1, max_size=50).map(
        lambda body: {"data_base64": base64.b64encode(body).decode(), "datacontenttype": "image/png"}
    ),
)


@given(st.data())
def test_a_cloudevent_comes_out_as_it_came_in(draw: st.DataObject) -> None:
    optional = draw.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "time": times,
                "subject": texts,
                "dataschema": texts,
                "expirytime": st.just("9000-01-01T00:00:00Z"),
            },
        )
    )
    event = {
        "specversion": "1.0",
        "id": draw.draw(texts),
        "source": draw.draw(texts),
        "type": draw.draw(topics),
        **draw.draw(st.dictionaries(names, values, max_size=5)),
        **optional,
        **draw.draw(data),
    }

    written = shown(parse_cloudevent(event, LIMITS, NOW))

    added = {"seq": "17", "datacontenttype": "application/json", "time": "2026-01-01T00:00:00.000000Z"}
    assert written == {**added, **event}


@given(st.data())
def test_an_event_of_the_bus_is_the_same_again_after_it_was_a_cloudevent(draw: st.DataObject) -> None:
    metadata = draw.draw(
        st.dictionaries(
            texts.filter(lambda name: name not in {"timestamp", "content_type", "cloudevents"}), json_values, max_size=5
        )
    )
    payload, content_type = draw.draw(
        st.tuples(json_values, st.none()) | st.tuples(st.binary(max_size=20), st.just("image/png"))
    )
    draft = make_draft(
        draw.draw(topics),
        payload,
        key=draw.draw(st.none() | texts),
        metadata=metadata,
        content_type=content_type,
        max_payload=10_000,
    )

    again = parse_cloudevent(shown(draft), LIMITS, NOW)

    assert again._replace(metadata=None) == draft._replace(metadata=None)
    assert json.loads(again.metadata or "{}") == {
        **metadata,
        "cloudevents": {"time": "2026-01-01T00:00:00.000000Z"},
    }


@given(
    st.dictionaries(st.sampled_from([*LEAST, "time", "subject", "data", "x", "datacontenttype"]) | texts, json_values)
)
def test_whatever_comes_is_an_event_or_refused(event: dict[str, Any]) -> None:
    try:
        draft = parse_cloudevent({**LEAST, **event}, LIMITS, NOW)
    except InvalidInput:
        return
    assert isinstance(JSONFormat().read(None, cloudevent_object(logged(draft), "/shop")), CloudEvent)
