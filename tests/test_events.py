"""Events and drafts: what may be published, and how it is refused at the door."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Generic, TypedDict, TypeVar
from uuid import UUID

import pytest
from pydantic import BaseModel, ValidationError

from eventbus_fastapi.errors import InvalidEvent, InvalidPayload, InvalidTopic, NotRunning, PayloadTooLarge
from eventbus_fastapi.events import Draft, Event, Message, make_draft

MESSAGE_ID = UUID("0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3")
T = TypeVar("T")


class UserCreated(Event, topic="user.created"):
    id: int
    username: str = "ada"


def draft_of(event: Any, *payload: Any, max_payload: int = 1_000, **options: Any) -> Draft:
    return make_draft(event, *payload, max_payload=max_payload, **options)


def refusal(event: Any, *payload: Any, **options: Any) -> str:
    with pytest.raises(InvalidEvent) as refused:
        draft_of(event, *payload, **options)
    return str(refused.value)


# --- typed events --------------------------------------------------------------------------------


def test_an_event_has_the_topic_of_its_class() -> None:
    assert UserCreated.__topic__ == "user.created"
    assert UserCreated(id=1).__topic__ == "user.created"


def test_a_subclass_without_a_topic_has_its_parents() -> None:
    class AdminCreated(UserCreated):
        level: int = 1

    assert draft_of(AdminCreated(id=1)).topic == "user.created"


def test_a_subclass_with_a_topic_leaves_its_parents_alone() -> None:
    class AdminCreated(UserCreated, topic="admin.created"):
        pass

    assert draft_of(AdminCreated(id=1)).topic == "admin.created"
    assert draft_of(UserCreated(id=1)).topic == "user.created"


def test_a_generic_event_keeps_its_topic() -> None:
    class Changed(Event, Generic[T], topic="changed"):
        value: T

    assert draft_of(Changed[int](value=1)).topic == "changed"


def test_a_field_called_topic_is_part_of_the_payload() -> None:
    class PostMoved(Event, topic="post.moved"):
        topic: str

    draft = draft_of(PostMoved(topic="cooking"))
    assert (draft.topic, draft.payload) == ("post.moved", b'{"topic":"cooking"}')


def test_a_class_with_a_wrong_topic_cannot_be_made() -> None:
    with pytest.raises(InvalidTopic, match="segment 2 is the wildcard"):

        class Anything(Event, topic="user.*"):
            pass


def test_an_event_takes_the_options_of_pydantic_models() -> None:
    class Strict(Event, topic="strict", frozen=True, extra="forbid"):
        id: int

    with pytest.raises(ValidationError):
        Strict(id=1, name="x")  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Strict(id=1).id = 2  # type: ignore[misc]


def test_an_event_with_nan_is_refused_and_not_written_as_null() -> None:
    class Part(BaseModel):
        value: float

    class Measured(Event, topic="measured"):
        value: float
        parts: tuple[Part, ...] = ()

    with pytest.raises(InvalidPayload, match=r"^payload has NaN at \$\.value$"):
        draft_of(Measured(value=math.nan))
    with pytest.raises(InvalidPayload, match=r"^payload has an infinite number at \$\.parts\[0\]\.value$"):
        draft_of(Measured(value=1, parts=(Part(value=math.inf),)))


def test_an_event_with_a_name_twice_is_refused() -> None:
    class Counted(Event, topic="counted"):
        counts: dict[Any, int]

    with pytest.raises(InvalidPayload, match="the name '1' twice"):
        draft_of(Counted(counts={1: 1, "1": 2}))


# --- what is published ---------------------------------------------------------------------------


def test_an_event_is_published_as_its_json() -> None:
    draft = draft_of(UserCreated(id=1))
    assert (draft.topic, draft.payload) == ("user.created", b'{"id":1,"username":"ada"}')
    assert draft.content_type == "application/json"
    assert draft.message_id.version == 7
    assert draft[6:] == (None, None, None, None)
    assert not draft.is_scheduled


def test_a_topic_takes_any_payload() -> None:
    @dataclass
    class Point:
        x: int

    class Pair(TypedDict):
        x: int

    class Model(BaseModel):
        x: int

    payloads: list[Any] = [Point(1), Pair(x=1), Model(x=1), {"x": 1}]
    assert {draft_of("point", payload).payload for payload in payloads} == {b'{"x":1}'}


def test_an_event_may_be_the_payload_of_another_topic() -> None:
    draft = draft_of("user.copied", UserCreated(id=1))
    assert (draft.topic, draft.payload) == ("user.copied", b'{"id":1,"username":"ada"}')


def test_none_is_a_payload() -> None:
    assert draft_of("ping", None).payload == b"null"


def test_the_content_type_says_how_the_payload_is_stored() -> None:
    assert draft_of("chat", "hi")[3:5] == (b"hi", "text/plain")
    assert draft_of("chat", "hi", content_type="application/json")[3:5] == (b'"hi"', "application/json")
    assert draft_of("image", b"\xff", content_type="image/png")[3:5] == (b"\xff", "image/png")


def test_a_topic_without_a_payload_is_refused() -> None:
    assert refusal("user.created") == ("the event of topic 'user.created' has no payload: give a topic and a payload")


def test_an_event_without_a_topic_is_refused_with_the_remedy() -> None:
    class Untitled(Event):
        id: int

    assert refusal(Untitled(id=1)) == (
        'Untitled has no topic: declare it as class Untitled(Event, topic="…"), or publish a topic with it as payload'
    )


def test_an_event_with_another_payload_is_refused() -> None:
    assert refusal(UserCreated(id=1), {}) == "UserCreated is the payload itself, got another one beside it"


def test_the_class_of_an_event_is_no_event() -> None:
    assert refusal(UserCreated) == "expected an event, got the class UserCreated itself"


@pytest.mark.parametrize("event", [{"id": 1}, None, 5, b"topic"])
def test_what_is_neither_an_event_nor_a_topic_is_refused(event: object) -> None:
    message = f"expected an Event, or a topic and a payload, got {type(event).__name__}"
    assert refusal(event) == refusal(event, {}) == message


def test_a_wrong_topic_is_refused() -> None:
    with pytest.raises(InvalidTopic, match="segment 2 is empty"):
        draft_of("orders.", {})


def test_the_depth_of_a_payload_is_limited() -> None:
    with pytest.raises(InvalidPayload, match="nested deeper than 2 levels"):
        draft_of("deep", [[[]]], max_depth=2)


@pytest.mark.parametrize("payload", ["x" * 11, "ä" * 6, b"x" * 11, "ä" * 11, {"a": "xxxx"}, ["\ud800", "x" * 5]])
def test_a_payload_beyond_the_limit_is_refused_with_its_size(payload: Any) -> None:
    with pytest.raises((PayloadTooLarge, InvalidPayload)) as refused:
        draft_of("big", payload, max_payload=10)
    if isinstance(refused.value, PayloadTooLarge):
        assert refused.value.size > refused.value.limit == 10


def test_the_size_of_text_is_that_of_its_bytes() -> None:
    with pytest.raises(PayloadTooLarge, match=r"^payload is 22 bytes, limit is 10 \(EVENTBUS_MAX_PAYLOAD\)$"):
        draft_of("big", "ä" * 11, max_payload=10)


def test_a_payload_at_the_limit_is_taken() -> None:
    assert draft_of("fits", "x" * 10, max_payload=10).payload == b"x" * 10


# --- identity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("message_id", [MESSAGE_ID, str(MESSAGE_ID)])
def test_a_message_id_of_the_publisher_is_kept(message_id: UUID | str) -> None:
    assert draft_of("a", 1, message_id=message_id).message_id == MESSAGE_ID


def test_a_wrong_message_id_is_refused() -> None:
    assert refusal("a", 1, message_id="17").endswith("got '17'")


@pytest.mark.parametrize("key", ["a", "user 17", "ключ", "x" * 255, "é" * 127])
def test_a_key_is_text_of_up_to_255_bytes(key: str) -> None:
    assert draft_of("a", 1, key=key).key == key


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "key must be 1 to 255 bytes, got 0"),
        ("x" * 256, "key must be 1 to 255 bytes, got 256"),
        ("é" * 128, "key must be 1 to 255 bytes, got 256"),
        ("a\nb", "key 'a\\nb' has a control character"),
        ("a\0", "key 'a\\x00' has a control character"),
        ("\x7f", "key '\\x7f' has a control character"),
        ("\x85", "key '\\x85' has a control character"),
        ("\ud800", "key '\\ud800' has a lone surrogate"),
        (5, "key must be str, got int"),
        (b"a", "key must be str, got bytes"),
    ],
)
def test_a_wrong_key_is_refused(key: object, message: str) -> None:
    assert refusal("a", 1, key=key) == message


def test_metadata_is_stored_as_json() -> None:
    assert draft_of("a", 1, metadata={"trace": "x"}).metadata == '{"trace":"x"}'


def test_wrong_metadata_is_refused() -> None:
    assert refusal("a", 1, metadata={"timestamp": 0}) == "metadata key 'timestamp' is reserved: the bus sets it"


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "microseconds"),
    [
        (1, 1_000_000),
        (0.1, 100_000),
        (1e-9, 1),
        (timedelta(minutes=5), 300_000_000),
        (timedelta(microseconds=1), 1),
        (3_162_240_000, 3_162_240_000_000_000),
    ],
)
def test_ttl_and_delay_are_kept_as_microseconds(seconds: Any, microseconds: int) -> None:
    assert draft_of("a", 1, ttl=seconds).ttl == microseconds
    assert draft_of("a", 1, delay=seconds).delay == microseconds


@pytest.mark.parametrize("nothing", [0, 0.0, -0.0, timedelta(0)])
def test_a_delay_of_nothing_is_none(nothing: Any) -> None:
    draft = draft_of("a", 1, delay=nothing)
    assert draft.delay is None
    assert not draft.is_scheduled


@pytest.mark.parametrize(
    ("ttl", "came"), [(0, "0"), (-1, "-1"), (-1e-9, "-1e-09"), (timedelta(0), "datetime.timedelta(0)")]
)
def test_a_ttl_of_nothing_is_refused(ttl: Any, came: str) -> None:
    assert refusal("a", 1, ttl=ttl) == f"ttl must be more than 0 seconds, got {came}"


@pytest.mark.parametrize("delay", [-1, -1e-9, timedelta(microseconds=-1)])
def test_a_delay_below_nothing_is_refused(delay: Any) -> None:
    assert refusal("a", 1, delay=delay).startswith("delay must be 0 seconds or more, got ")


@pytest.mark.parametrize("name", ["ttl", "delay"])
@pytest.mark.parametrize("duration", [True, False, "5", Decimal(5), [1], 1j])
def test_what_is_no_number_is_no_duration(name: str, duration: object) -> None:
    message = refusal("a", 1, **{name: duration})
    assert message == f"{name} must be seconds (a number) or a timedelta, got {duration!r}"


@pytest.mark.parametrize("name", ["ttl", "delay"])
@pytest.mark.parametrize(
    "duration", [math.inf, -math.inf, math.nan, 1e300, pytest.param(10**5000, id="huge"), timedelta.max]
)
def test_a_duration_beyond_a_century_is_refused(name: str, duration: object) -> None:
    assert refusal("a", 1, **{name: duration}).startswith(f"{name} must be at most 3,162,240,000 seconds, got ")


@pytest.mark.parametrize(
    "publish_at",
    [
        datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        datetime(2026, 1, 2, 5, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_publish_at_is_kept_to_the_microsecond(publish_at: datetime) -> None:
    draft = draft_of("a", 1, publish_at=publish_at)
    assert draft.publish_at == 1_767_323_045_678_901
    assert draft.is_scheduled


@pytest.mark.parametrize("year", [1, 1969, 9999])
def test_publish_at_may_be_any_time_and_fits_its_column(year: int) -> None:
    at = datetime(year, 1, 1, tzinfo=timezone(timedelta(hours=14)))
    kept = draft_of("a", 1, publish_at=at).publish_at
    assert kept is not None
    assert -(2**63) <= kept < 2**63


@pytest.mark.parametrize(
    ("publish_at", "message"),
    [
        (datetime(2026, 1, 2), "publish_at must have a time zone, got '2026-01-02T00:00:00'"),  # noqa: DTZ001
        ("2026-01-02T00:00:00Z", "publish_at must be a datetime, got '2026-01-02T00:00:00Z'"),
        (1_767_323_045, "publish_at must be a datetime, got 1767323045"),
    ],
)
def test_a_wrong_publish_at_is_refused(publish_at: object, message: str) -> None:
    assert refusal("a", 1, publish_at=publish_at) == message


def test_delay_and_publish_at_together_are_refused() -> None:
    assert refusal("a", 1, delay=0, publish_at=datetime.now(UTC)) == "give delay or publish_at, not both"
    assert refusal("a", 1, delay=1, schedule_in=1) == "give delay or schedule_in, not both"


def test_schedule_in_is_delay_by_another_name() -> None:
    assert draft_of("a", 1, schedule_in=2).delay == draft_of("a", 1, delay=timedelta(seconds=2)).delay == 2_000_000
    assert refusal("a", 1, schedule_in=-1) == "schedule_in must be 0 seconds or more, got -1"


# --- tags ----------------------------------------------------------------------------------------


def published(draft: Draft) -> Message:
    return Message(1, *draft[:6], 0)


def test_tags_are_carried_in_the_metadata_and_read_from_the_message() -> None:
    message = published(draft_of("a", 1, tags=("billing", "eu"), metadata={"by": "me"}))
    assert message.tags == ("billing", "eu")
    assert message.metadata == {"by": "me", "tags": ["billing", "eu"]}


@pytest.mark.parametrize("metadata", [None, {"tags": "billing"}, {"tags": ["a", "a"]}, {"tags": [1]}, {"tags": [""]}])
def test_other_tags_in_the_metadata_are_the_users_own_business(metadata: dict[str, Any] | None) -> None:
    message = published(draft_of("a", 1, metadata=metadata))
    assert message.tags == ()
    assert message.metadata == (metadata or {})


def test_no_tags_add_nothing() -> None:
    assert draft_of("a", 1, tags=[]).metadata is None


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ("billing", "tags must be a list of str, got str"),
        ([1], "a tag must be str, got int"),
        (["a", "b", "a"], "tag 'a' is there twice"),
        ([""], "a tag must be 1 to 64 bytes, got 0"),
        (["é" * 33], "a tag must be 1 to 64 bytes, got 66"),
        (["a\n"], "tag 'a\\n' has a control character"),
        ([str(n) for n in range(21)], "an event has at most 20 tags, got 21"),
    ],
)
def test_bad_tags_are_refused(tags: Any, why: str) -> None:
    assert refusal("a", 1, tags=tags) == why


def test_tags_are_given_in_one_way() -> None:
    assert refusal("a", 1, tags=["a"], metadata={"tags": ["b"]}) == "give tags or metadata['tags'], not both"


# --- messages ------------------------------------------------------------------------------------


def message_of(body: bytes, content_type: str, *, seq: int = 17, metadata: str | None = None) -> Message:
    return Message(seq, MESSAGE_ID, "user.created", None, body, content_type, metadata, 1_767_323_045_678_901)


def test_a_message_decodes_its_payload_by_content_type() -> None:
    assert message_of(b'{"id":1}', "application/json").payload == {"id": 1}
    assert message_of(b"hi", "text/plain").payload == "hi"
    assert message_of(b"\xff", "image/png").payload == b"\xff"


def test_a_message_decodes_its_payload_once() -> None:
    message = message_of(b'{"id":1}', "application/json")
    assert message.payload is message.payload


def test_a_message_becomes_the_event_that_was_published() -> None:
    event = UserCreated(id=1)
    assert message_of(draft_of(event).payload, "application/json").decode(UserCreated) == event


def test_a_message_that_does_not_fit_is_an_invalid_payload() -> None:
    with pytest.raises(InvalidPayload, match=r"^payload does not fit UserCreated: id: Field required$"):
        message_of(b"{}", "application/json").decode(UserCreated)


def test_a_message_knows_its_time_and_metadata() -> None:
    message = message_of(b"", "text/plain", metadata='{"trace":"x"}')
    assert message.timestamp == datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    assert message.metadata == {"trace": "x"}
    assert message_of(b"", "text/plain").metadata == {}


def test_a_message_that_was_not_stored_is_not_durable() -> None:
    assert message_of(b"", "text/plain").is_durable
    assert not message_of(b"", "text/plain", seq=0).is_durable


def test_a_message_shows_its_place_but_not_its_payload() -> None:
    shown = repr(message_of(b"secret", "text/plain"))
    assert re.fullmatch(r"<Message seq=17 topic='user\.created' message_id=0192f0c1-.*>", shown)


async def test_a_message_without_a_subscription_cannot_be_acknowledged() -> None:
    with pytest.raises(NotRunning, match="does not come from a subscription"):
        await message_of(b"", "text/plain").ack()
