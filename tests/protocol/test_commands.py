"""Client frames become commands that are valid in themselves, or refusals that say what was expected and what came."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.codec import new_message_id
from eventbus_fastapi.errors import EventBusError
from eventbus_fastapi.events import make_draft
from eventbus_fastapi.protocol.commands import (
    Acknowledge,
    AcknowledgeUpTo,
    Chosen,
    Command,
    Credit,
    Extend,
    Nack,
    Ping,
    Publish,
    Refused,
    Reject,
    Subscribe,
    Unsubscribe,
    client_frame,
)
from eventbus_fastapi.protocol.parser import parse_client_frame
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.unique import Unique
from tests.protocol.fitting import check_client_frame

LIMITS = Settings(max_frame=4_096, max_payload=1_000, max_batch=3, buffer=100)
ID = "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3"


def parse(frame: Any) -> Command | Refused:
    """Parse one frame: an object, or the text itself."""
    [command] = parse_client_frame(frame if isinstance(frame, str) else json.dumps(frame), LIMITS)
    if not isinstance(frame, str):
        check_client_frame(frame, command, LIMITS)
    return command


def refusal(frame: Any) -> EventBusError:
    command = parse(frame)
    assert isinstance(command, Refused), command
    return command.error


def event(**fields: Any) -> dict[str, Any]:
    return {"topic": "a.b", "payload": "hello", **fields}


# --- publish -------------------------------------------------------------------------------------


def test_a_publish_of_the_model_library_is_understood() -> None:
    command = parse(
        {"type": "publish", "data": {"topic": "chat.user1", "payload": "Hello", "message_id": ID}, "ttl": None}
    )

    assert isinstance(command, Publish)
    assert command.id is None
    assert not command.is_batch
    [draft] = command.drafts
    assert (draft.topic, draft.payload, draft.content_type, draft.ttl) == ("chat.user1", b"Hello", "text/plain", None)
    assert draft.message_id == UUID(ID)


def test_a_batch_of_the_model_library_is_understood() -> None:
    command = parse({"type": "publish_batch", "messages": [event(), event(payload="two")], "ttl": 3600})

    assert isinstance(command, Publish)
    assert command.is_batch
    assert [draft.payload for draft in command.drafts] == [b"hello", b"two"]
    assert {draft.ttl for draft in command.drafts} == {3_600_000_000}


def test_the_ttl_of_an_event_goes_before_that_of_its_frame() -> None:
    command = parse({"type": "publish", "data": event(ttl=5), "ttl": 10})

    assert isinstance(command, Publish)
    assert command.drafts[0].ttl == 5_000_000


def test_a_ttl_of_zero_means_for_ever() -> None:
    command = parse({"type": "publish", "data": event(ttl=0), "ttl": 10})

    assert isinstance(command, Publish)
    assert command.drafts[0].ttl is None


@pytest.mark.parametrize(
    ("fields", "body", "content_type"),
    [
        ({"payload": "text"}, b"text", "text/plain"),
        ({"payload": {"a": [1, 2.5, None]}}, b'{"a":[1,2.5,null]}', "application/json"),
        ({"payload": None}, b"null", "application/json"),
        ({"payload": False}, b"false", "application/json"),
        ({"payload": "a string", "content_type": "application/json"}, b'"a string"', "application/json"),
        ({"payload": "<a/>", "content_type": "text/xml"}, b"<a/>", "text/xml"),
        ({"payload": "grüße"}, "grüße".encode(), "text/plain"),
        ({"payload_base64": "AAH/"}, b"\x00\x01\xff", "application/octet-stream"),
        ({"payload": None, "payload_base64": "AAH/", "content_type": "image/png"}, b"\x00\x01\xff", "image/png"),
        ({"payload": "x", "payload_base64": None}, b"x", "text/plain"),
    ],
)
def test_a_payload_becomes_bytes_by_its_kind(fields: dict[str, Any], body: bytes, content_type: str) -> None:
    command = parse({"type": "publish", "data": {"topic": "a", **fields}})

    assert isinstance(command, Publish), command
    assert (command.drafts[0].payload, command.drafts[0].content_type) == (body, content_type)


def test_an_event_may_have_a_key_metadata_and_a_delay() -> None:
    data = event(key="k", metadata={"trace": "1"}, delay=1.5)

    command = parse({"type": "publish", "data": data, "id": 0})

    assert isinstance(command, Publish)
    assert command.id == 0
    draft = command.drafts[0]
    assert (draft.key, draft.metadata, draft.delay) == ("k", '{"trace":"1"}', 1_500_000)


def test_an_event_may_be_published_without_storage() -> None:
    assert parse({"type": "publish", "data": event(durable=False)}).is_live  # type: ignore[union-attr]
    assert not parse({"type": "publish", "data": event(durable=True)}).is_live  # type: ignore[union-attr]


def test_a_batch_may_be_empty() -> None:
    command = parse({"type": "publish_batch", "messages": []})

    assert isinstance(command, Publish)
    assert list(command.drafts) == []


# --- subscribe and the others --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({}, "now"),
        ({"starting_seq": None}, "now"),
        ({"starting_seq": 0}, 0),
        ({"starting_seq": 1}, 0),
        ({"starting_seq": 17}, 16),
        ({"after": 17}, 17),
        ({"after": 0}, 0),
        ({"from": "now"}, "now"),
        ({"from": "earliest"}, "earliest"),
        ({"from": 17}, 17),
        ({"from": "2026-01-01T01:00:00+01:00"}, datetime(2026, 1, 1, tzinfo=UTC)),
        ({"from": "2026-01-01T00:00:00.5Z"}, datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_a_subscription_starts_where_it_asks_to(fields: dict[str, Any], start: object) -> None:
    command = parse({"type": "subscribe", "pattern": "chat.*", **fields})

    assert isinstance(command, Subscribe), command
    assert command.start == start


def test_a_subscription_may_say_everything() -> None:
    command = parse(
        {
            "type": "subscribe",
            "id": 4,
            "patterns": ["a.*", "b.#", "a.*"],
            "sub": "mine",
            "epoch": ID,
            "include_processed": True,
            "processed_before": 7,
            "credit": 10,
            "overflow": "drop_oldest",
            "buffer": 100,
            "group": None,
        }
    )

    expected = Subscribe(("a.*", "b.#"), "mine", "now", UUID(ID), True, 7, 10, "drop_oldest", 100, 4)
    assert command == expected


@pytest.mark.parametrize(
    ("frame", "command"),
    [
        ({"type": "ack", "seq": 5, "message_id": ID}, Acknowledge(((5, UUID(ID)),))),
        ({"type": "ack", "seq": 5, "message_id": None}, Acknowledge(((5, None),))),
        ({"type": "ack", "seqs": [1, 3, 3], "id": 1}, Acknowledge([(1, None), (3, None)], 1)),
        ({"type": "ack", "sub": 1, "up_to": 9}, AcknowledgeUpTo(1, 9)),
        ({"type": "unsubscribe", "sub": "x" * 64, "id": 2}, Unsubscribe("x" * 64, 2)),
        ({"type": "credit", "sub": 0, "credit": 3}, Credit(0, 3)),
        ({"type": "ping"}, Ping()),
        ({"type": "ping", "id": 2**63 - 1, "unknown": [1]}, Ping(2**63 - 1)),
        ({"type": "ping", "id": -(2**63)}, Ping(-(2**63))),
        ({"type": "ping", "id": 1.0}, Ping(1)),
    ],
)
def test_the_other_frames_become_commands(frame: dict[str, Any], command: Command) -> None:
    assert parse(frame) == command


def test_an_array_of_frames_becomes_commands_in_order() -> None:
    text = json.dumps([{"type": "ping", "id": 1}, 5, {"type": "ping", "id": 2}])

    first, second, third = parse_client_frame(text, LIMITS)

    assert (first, third) == (Ping(1), Ping(2))
    assert isinstance(second, Refused)


def test_an_array_of_too_many_frames_is_refused_as_one() -> None:
    text = "[" + ",".join("0" * 10_001) + "]"

    [command] = parse_client_frame(text, LIMITS.replace(max_frame=100_000))

    assert isinstance(command, Refused)
    assert str(command.error) == "expected at most 10,000 frames in an array, got 10,001"


def test_the_plain_dialect_has_no_arrays() -> None:
    [command] = parse_client_frame('[{"type":"ping"}]', LIMITS, arrays=False)

    assert isinstance(command, Refused)
    assert str(command.error) == "expected an object with a 'type', got a list of 1"


# --- refusals ------------------------------------------------------------------------------------

PUBLISH = {"type": "publish"}
SUBSCRIBE = {"type": "subscribe"}
GROUP = {"type": "subscribe", "pattern": "a", "group": "g"}


@pytest.mark.parametrize(
    ("frame", "code", "message"),
    [
        ("", "frame.bad", "not usable JSON"),
        ("{", "frame.bad", "not usable JSON"),
        ("{'type': 'ping'}", "frame.bad", "not usable JSON"),
        ('{"type":"ping"} x', "frame.bad", "not usable JSON"),
        ('{"type":"ping","x":NaN}', "frame.bad", "not usable JSON"),
        ('{"type":"ping","x":-Infinity}', "frame.bad", "not usable JSON"),
        ('{"type":"ping","x":1e999}', "frame.bad", "not usable JSON"),
        ('{"type":"ping","type":"ping"}', "frame.bad", "twice"),
        ('{"type":"ping","x":"\\ud800"}', "frame.bad", "not usable JSON"),
        ('{"type":"ping","x":"\ud800"}', "frame.bad", "surrogate"),
        ('{"type":"ping","x":"\x00"}', "frame.bad", "not usable JSON"),
        ("\ufeff{}", "frame.bad", "byte order mark"),
        ("[" * 4_000, "frame.bad", "not usable JSON"),
        ("[" * 150 + "]" * 150, "frame.bad", "nested deeper"),
        ('{"type":"ping","id":' + "9" * 4_000 + "}", "frame.bad", "got an integer beyond 64 bits"),
        ("null", "frame.bad", "expected an object with a 'type', got null"),
        ("1", "frame.bad", "expected an object with a 'type', got 1"),
        ('"ping"', "frame.bad", "expected an object with a 'type', got 'ping'"),
        ("{}", "frame.bad", "field 'type' is missing"),
        ({"type": 1}, "frame.bad", "field 'type': expected a string, got 1"),
        ({"type": "PUBLISH"}, "frame.unknown_type", "unknown frame type 'PUBLISH'; known are publish, "),
        ({"type": "hack"}, "frame.unknown_type", "unknown frame type 'hack'"),
        ({"type": "x" * 1_000}, "frame.unknown_type", "…"),
        ("x" * 5_000, "frame.too_large", "frame is 5,000 bytes, limit is 4,096 (EVENTBUS_MAX_FRAME)"),
        ("ü" * 2_500, "frame.too_large", "frame is 5,000 bytes, limit is 4,096 (EVENTBUS_MAX_FRAME)"),
        ({"type": "ping", "id": "1"}, "frame.bad", "field 'id': expected an integer of 64 bits, got '1'"),
        ({"type": "ping", "id": True}, "frame.bad", "field 'id': expected an integer of 64 bits, got true"),
        ({"type": "ping", "id": 1.5}, "frame.bad", "field 'id': expected an integer of 64 bits, got 1.5"),
        ({"type": "ping", "id": 2**63}, "frame.bad", "expected an integer of 64 bits, got 9223372036854775808"),
        ({"type": "ping", "id": -(2**63) - 1}, "frame.bad", "field 'id': expected an integer of 64 bits"),
        # publish
        (PUBLISH, "frame.bad", "field 'data' is missing"),
        ({**PUBLISH, "data": "x"}, "frame.bad", "field 'data': expected an object, got 'x'"),
        ({**PUBLISH, "data": [event()]}, "frame.bad", "field 'data': expected an object, got a list of 1"),
        ({**PUBLISH, "data": {"payload": 1}}, "frame.bad", "field 'topic' is missing"),
        ({**PUBLISH, "data": {"topic": "a"}}, "frame.bad", "field 'payload' is missing"),
        ({**PUBLISH, "data": event(topic=5)}, "frame.bad", "field 'topic': expected a string, got 5"),
        ({**PUBLISH, "data": event(topic="")}, "topic.invalid", "invalid topic ''"),
        ({**PUBLISH, "data": event(topic="orders.")}, "topic.invalid", "invalid topic 'orders.': segment 2 is empty"),
        ({**PUBLISH, "data": event(topic="a.*")}, "topic.invalid", "invalid topic 'a.*'"),
        ({**PUBLISH, "data": event(topic="a\nb")}, "topic.invalid", "invalid topic 'a\\nb'"),
        (
            {**PUBLISH, "data": event(payload="x" * 1_001)},
            "payload.too_large",
            "payload is 1,001 bytes, limit",
        ),
        ({**PUBLISH, "data": event(payload=json.loads("[" * 33 + "]" * 33))}, "payload.invalid", "nested deeper"),
        ({**PUBLISH, "data": event(payload_base64="AA==")}, "frame.bad", "got both"),
        ({**PUBLISH, "data": {"topic": "a", "payload_base64": "A"}}, "frame.bad", "field 'payload_base64'"),
        ({**PUBLISH, "data": {"topic": "a", "payload_base64": "ü"}}, "frame.bad", "field 'payload_base64'"),
        ({**PUBLISH, "data": event(content_type="nonsense")}, "payload.invalid", "content type"),
        ({**PUBLISH, "data": event(content_type=1)}, "frame.bad", "field 'content_type': expected a string, got 1"),
        ({**PUBLISH, "data": event(payload={}, content_type="text/plain")}, "payload.invalid", ""),
        ({**PUBLISH, "data": event(message_id="17")}, "event.invalid", "message_id must be a UUID"),
        ({**PUBLISH, "data": event(message_id=17)}, "frame.bad", "field 'message_id': expected a string, got 17"),
        ({**PUBLISH, "data": event(key=1)}, "frame.bad", "field 'key': expected a string, got 1"),
        ({**PUBLISH, "data": event(key="x" * 256)}, "event.invalid", "key must be 1 to 255 bytes"),
        ({**PUBLISH, "data": event(metadata=[])}, "frame.bad", "field 'metadata': expected an object, got a list of 0"),
        ({**PUBLISH, "data": event(metadata={"timestamp": 1})}, "event.invalid", "'timestamp' is reserved"),
        ({**PUBLISH, "data": event(ttl=-1)}, "frame.bad", "field 'ttl': expected a number of seconds ≥ 0, got -1"),
        ({**PUBLISH, "data": event(ttl="1")}, "frame.bad", "field 'ttl': expected a number of seconds ≥ 0, got '1'"),
        ({**PUBLISH, "data": event(ttl=True)}, "frame.bad", "field 'ttl': expected a number of seconds ≥ 0, got true"),
        (
            {**PUBLISH, "data": event(), "ttl": []},
            "frame.bad",
            "field 'ttl': expected a number of seconds ≥ 0",
        ),
        ({**PUBLISH, "data": event(delay=2**80)}, "frame.bad", "field 'delay': expected a number of seconds ≥ 0"),
        ({**PUBLISH, "data": event(delay=2**53 - 1)}, "event.invalid", "delay must be at most"),
        ({**PUBLISH, "data": event(durable=0)}, "frame.bad", "field 'durable': expected true or false, got 0"),
        # publish_batch
        ({"type": "publish_batch"}, "frame.bad", "field 'messages' is missing"),
        ({"type": "publish_batch", "messages": {}}, "frame.bad", "field 'messages': expected a list, got an object"),
        ({"type": "publish_batch", "messages": [event()] * 4}, "batch.too_large", "batch has 4 events, limit is 3"),
        ({"type": "publish_batch", "messages": [event(), 5]}, "frame.bad", "messages[1]: expected an object, got 5"),
        (
            {"type": "publish_batch", "messages": [event(topic="..")]},
            "topic.invalid",
            "messages[0]: invalid topic",
        ),
        ({"type": "publish_batch", "messages": [event(), event(durable=False)]}, "frame.bad", "field 'durable'"),
        # subscribe
        (SUBSCRIBE, "frame.bad", "expected one of the fields 'pattern' and 'patterns', got none"),
        ({**SUBSCRIBE, "pattern": "a", "patterns": ["b"]}, "frame.bad", "'pattern' and 'patterns', got both"),
        ({**SUBSCRIBE, "pattern": 1}, "frame.bad", "field 'pattern': expected a string, got 1"),
        ({**SUBSCRIBE, "pattern": "a..b"}, "pattern.invalid", "invalid pattern 'a..b': segment 2 is empty"),
        ({**SUBSCRIBE, "pattern": "a*"}, "pattern.invalid", "invalid pattern 'a*'"),
        ({**SUBSCRIBE, "patterns": []}, "frame.bad", "field 'patterns': expected a list of 1 to 100 patterns"),
        ({**SUBSCRIBE, "patterns": ["a"] * 101}, "frame.bad", "field 'patterns': expected a list of 1 to 100 patterns"),
        ({**SUBSCRIBE, "patterns": ["a", None]}, "frame.bad", "field 'patterns': expected strings, got null"),
        ({**SUBSCRIBE, "pattern": "a", "sub": ""}, "frame.bad", "field 'sub': expected an integer ≥ 0 or a string"),
        ({**SUBSCRIBE, "pattern": "a", "sub": "x" * 65}, "frame.bad", "field 'sub': expected an integer ≥ 0 or a str"),
        ({**SUBSCRIBE, "pattern": "a", "sub": True}, "frame.bad", "field 'sub': expected an integer ≥ 0 or a string"),
        ({**SUBSCRIBE, "pattern": "a", "after": -1}, "frame.bad", "field 'after': expected an integer ≥ 0, got -1"),
        ({**SUBSCRIBE, "pattern": "a", "after": 2**63}, "frame.bad", "field 'after': expected an integer from 0 to"),
        ({**SUBSCRIBE, "pattern": "a", "starting_seq": "1"}, "frame.bad", "field 'starting_seq': expected an integer"),
        ({**SUBSCRIBE, "pattern": "a", "after": 1, "from": "now"}, "frame.bad", "at most one of"),
        ({**SUBSCRIBE, "pattern": "a", "from": "tomorrow"}, "frame.bad", "expected an RFC 3339 time"),
        ({**SUBSCRIBE, "pattern": "a", "from": "2026-01-01T00:00:00"}, "frame.bad", "expected an RFC 3339 time"),
        ({**SUBSCRIBE, "pattern": "a", "from": "0001-01-01T00:00:00+14:00"}, "frame.bad", "an RFC 3339 time"),
        ({**SUBSCRIBE, "pattern": "a", "from": 1.5}, "frame.bad", "'now', 'earliest', an integer ≥ 0 or an RFC 3339"),
        ({**SUBSCRIBE, "pattern": "a", "from": True}, "frame.bad", "'now', 'earliest', an integer ≥ 0 or an RFC 3339"),
        ({**SUBSCRIBE, "pattern": "a", "epoch": "x"}, "frame.bad", "field 'epoch': expected a UUID, got 'x'"),
        ({**SUBSCRIBE, "pattern": "a", "include_processed": 1}, "frame.bad", "expected true or false, got 1"),
        ({**SUBSCRIBE, "pattern": "a", "credit": 0}, "frame.bad", "field 'credit': expected an integer ≥ 1, got 0"),
        ({**SUBSCRIBE, "pattern": "a", "overflow": "block"}, "frame.bad", "one of 'catch_up', 'disconnect', 'drop_ol"),
        ({**SUBSCRIBE, "pattern": "a", "overflow": ["x"]}, "frame.bad", "field 'overflow': expected one of"),
        (
            {**SUBSCRIBE, "pattern": "a", "buffer": 101},
            "frame.bad",
            "field 'buffer': expected an integer from 1 to 100",
        ),
        ({**SUBSCRIBE, "pattern": "a", "group": 7}, "frame.bad", "field 'group': expected a string, got 7"),
        ({**GROUP, "buffer": 5}, "frame.bad", "field 'buffer': a group keeps its own place"),
        ({**GROUP, "epoch": ID}, "frame.bad", "field 'epoch': a group keeps its own place"),
        ({**GROUP, "ack_wait": 0.05}, "frame.bad", "field 'ack_wait': expected 0.1 to 43,200 seconds, got 0.05"),
        ({**GROUP, "ack_wait": "1"}, "frame.bad", "field 'ack_wait': expected a number of seconds"),
        ({**GROUP, "max_attempts": 101}, "frame.bad", "field 'max_attempts': expected an integer from 1 to 100"),
        ({**GROUP, "credit": 10_001}, "frame.bad", "field 'credit': expected an integer from 1 to 100"),
        ({**SUBSCRIBE, "pattern": "a", "ack_wait": 5}, "frame.bad", "field 'ack_wait': only a subscription with"),
        # nack, reject, extend
        ({"type": "nack", "sub": 1}, "frame.bad", "expected one of 'seq', 'seqs' and 'up_to', got none"),
        ({"type": "nack", "seq": 1, "delay": -1}, "frame.bad", "field 'delay': expected a number of seconds"),
        ({"type": "nack", "seq": 1, "delay": 1e15}, "frame.bad", "field 'delay': expected 0 to"),
        ({"type": "nack", "seq": 1, "reason": 7}, "frame.bad", "field 'reason': expected a string, got 7"),
        ({"type": "reject", "seqs": []}, "frame.bad", "field 'seqs': expected a list of 1 to 10,000 integers"),
        ({"type": "reject", "up_to": 1, "attempt": 2}, "frame.bad", "field 'attempt': it is for events named by"),
        ({"type": "extend", "seq": 1, "attempt": 0}, "frame.bad", "field 'attempt': expected an integer"),
        ({"type": "extend", "seq": 1, "sub": ""}, "frame.bad", "field 'sub'"),
        # the others
        ({"type": "unsubscribe"}, "frame.bad", "field 'sub' is missing"),
        ({"type": "ack"}, "frame.bad", "expected one of 'seq', 'seqs' and 'up_to', got none"),
        ({"type": "ack", "seq": 1, "seqs": [2]}, "frame.bad", "got seq and seqs"),
        ({"type": "ack", "seq": "abc"}, "frame.bad", "field 'seq': expected an integer ≥ 1, got 'abc'"),
        ({"type": "ack", "seq": 0}, "frame.bad", "field 'seq': expected an integer ≥ 1, got 0"),
        ({"type": "ack", "seq": 1, "message_id": "x"}, "event.invalid", "UUID"),
        ({"type": "ack", "seqs": []}, "frame.bad", "field 'seqs': expected a list of 1 to 10,000 integers"),
        ({"type": "ack", "seqs": [1, "2"]}, "frame.bad", "field 'seqs': expected integers ≥ 1, got '2'"),
        ({"type": "ack", "up_to": 1}, "frame.bad", "field 'sub' is missing"),
        ({"type": "credit", "sub": 1}, "frame.bad", "field 'credit' is missing"),
        ({"type": "credit", "sub": 1, "credit": -5}, "frame.bad", "field 'credit': expected an integer ≥ 1, got -5"),
    ],
)
def test_a_bad_frame_is_refused_with_its_reason(frame: Any, code: str, message: str) -> None:
    error = refusal(frame)

    assert error.code == code
    assert message in str(error)
    assert len(str(error)) < 400
    assert str(error).isprintable()


def test_a_refusal_names_the_frame_and_the_subscription() -> None:
    command = parse({"type": "credit", "id": 7, "sub": "s", "credit": 0})

    assert isinstance(command, Refused)
    assert (command.id, command.sub) == (7, "s")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
field_names = st.sampled_from(
    [
        "id",
        "data",
        "messages",
        "topic",
        "payload",
        "payload_base64",
        "message_id",
        "key",
        "metadata",
        "content_type",
        "ttl",
        "delay",
        "durable",
        "pattern",
        "patterns",
        "sub",
        "starting_seq",
        "after",
        "from",
        "epoch",
        "include_processed",
        "credit",
        "overflow",
        "buffer",
        "group",
        "ack_wait",
        "max_attempts",
        "seq",
        "seqs",
        "up_to",
        "attempt",
        "delay",
        "reason",
    ]
)
frame_types = st.sampled_from(
    ["publish", "publish_batch", "subscribe", "unsubscribe", "ack", "nack", "reject", "extend", "credit", "ping"]
)


@given(frame_types, st.dictionaries(field_names, json_values | st.dictionaries(field_names, json_values)))
def test_no_frame_of_known_fields_raises(kind: str, fields: dict[str, Any]) -> None:
    text = json.dumps({**fields, "type": kind})

    assert len(parse_client_frame(text, LIMITS)) == 1


@given(st.text())
def test_no_text_raises(text: str) -> None:
    assert len(parse_client_frame(text, LIMITS)) >= 0


# --- both ways -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        Subscribe(("a.*",)),
        Subscribe(("a", "b"), 1, 17, UUID(ID), True, 6, 5, "disconnect", 10, 3),
        Subscribe(("#",), "x", "earliest"),
        Subscribe(("#",), "x", datetime(2026, 1, 1, 12, tzinfo=UTC)),
        Unsubscribe(1, 2),
        Acknowledge(((5, UUID(ID)),), 1),
        Acknowledge([(5, None), (6, None)], 1),
        AcknowledgeUpTo("s", 5, 1),
        Subscribe(("a",), 1, credit=5, id=2, group="g", ack_wait=1.5, max_attempts=3),
        Acknowledge(((5, None),), 1, 2, 3),
        Acknowledge([(5, None), (6, None)], 1, "s"),
        Acknowledge([(5, None), (6, None)], 1, 2, 3),
        Nack(Chosen((5,), attempt=2), 1, 1.5, "busy", 3),
        Nack(Chosen(up_to=5), "s"),
        Reject(Chosen([5, 6], attempt=2), 1, "bad", 3),
        Extend(Chosen((5,)), 1, 3),
        Credit(1, 5),
        Ping(),
        Ping(0),
    ],
)
def test_what_a_client_writes_is_what_the_server_reads(command: Command) -> None:
    assert parse(client_frame(command)) == command


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        ('text \x00 "quoted" ü \U0001f600', None),
        ({"a": 1}, None),
        ("a JSON string", "application/json"),
        (b"\x00\xff", None),
        (b"\x00\xff", "image/png"),
        (b"[1,2]", "application/json; charset=utf-8"),
        (None, None),
    ],
)
def test_a_draft_arrives_as_it_left(payload: Any, content_type: str | None) -> None:
    draft = make_draft(
        "a.b",
        payload,
        content_type=content_type,
        key='k"',
        metadata={"x": {"y": "ü"}},
        ttl=1.5,
        delay=0.25,
        message_id=new_message_id(),
        max_payload=1_000,
    )

    command = parse(client_frame(Publish((draft,), 1)))

    assert isinstance(command, Publish), command
    assert command.drafts == (draft,)


@pytest.mark.parametrize(
    "rule",
    [
        Unique(),
        Unique(fields=[], within=0.5),
        Unique(fields=["id"], key=True, metadata=["tags"], within=60, replace=["payload", "schedule"]),
    ],
)
def test_a_unique_draft_with_tags_arrives_as_it_left(rule: Unique) -> None:
    draft = make_draft("a", {"id": 1}, key="k", tags=["x"], unique=rule, max_payload=100)

    command = parse(client_frame(Publish((draft,), 1)))

    assert isinstance(command, Publish), command
    assert command.drafts == (draft,)


def test_a_batch_arrives_as_it_left() -> None:
    drafts = [make_draft("a", number, max_payload=100) for number in range(3)]

    command = parse(client_frame(Publish(drafts, 1, is_batch=True, is_live=True)))

    assert command == Publish(drafts, 1, is_batch=True, is_live=True)


def test_base64_is_the_standard_alphabet() -> None:
    body = bytes(range(256))
    data = {"topic": "a", "payload_base64": base64.b64encode(body).decode()}

    command = parse({"type": "publish", "data": data})

    assert isinstance(command, Publish)
    assert command.drafts[0].payload == body
