"""Subjects of events, and what a stream of NATS has to take for them."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import pytest

from eventbus_fastapi.errors import InvalidRelay
from eventbus_fastapi.events import Message
from eventbus_fastapi.relay.jetstream import subjects_of
from eventbus_fastapi.relay.opening import open_destination
from eventbus_fastapi.relay.subject import SubjectTemplate


def event(topic: str = "user.created", key: str | None = None) -> Message:
    return Message(1, uuid4(), topic, key, b"", "text/plain", None, 1)


@pytest.mark.parametrize(
    ("template", "key", "expected"),
    [
        ("{topic}", None, "user.created"),
        ("orders.{topic}", None, "orders.user.created"),
        ("by-key.{key}.{topic}", "k1", "by-key.k1.user.created"),
        ("by-key.{key}", None, "by-key.-"),
        ("all", "k1", "all"),
    ],
)
def test_a_template_makes_a_subject_of_topic_and_key(template: str, key: str | None, expected: str) -> None:
    assert SubjectTemplate(template).of(event(key=key)) == expected


@pytest.mark.parametrize("template", ["", "{", "{seq}", "{topic!r}", "{topic:>9}", "{}", "{topic.a}"])
def test_a_template_with_anything_else_is_refused(template: str) -> None:
    with pytest.raises(InvalidRelay, match="subject template"):
        SubjectTemplate(template)


@pytest.mark.parametrize("template", ["a b", "a.*", "a.>", ".{topic}", "{topic}.", "a..b"])
def test_what_is_no_subject_of_nats_is_refused_at_the_start(template: str) -> None:
    with pytest.raises(InvalidRelay, match="is no subject of NATS"):
        open_destination("nats://127.0.0.1").prepare("relay", "", template, ["#"])


def test_a_key_is_one_token_of_a_subject_of_nats() -> None:
    write = open_destination("nats://127.0.0.1").write_key
    assert write("user-1:a@b/c") == "user-1:a@b/c"
    assert write("a.b *>ü") == "a%2Eb%20%2A%3E%C3%BC"


@pytest.mark.parametrize(
    ("template", "patterns", "expected"),
    [
        ("{topic}", ["user.created"], ["user.created"]),
        ("{topic}", ["user.*"], ["user.*"]),
        ("{topic}", ["user.#"], ["user", "user.>"]),
        ("e.{topic}", ["#"], ["e.>"]),
        ("{topic}", ["a.#.b"], ["a.>"]),
        ("{topic}", ["user.*", "user.created", "user.#", "order.*.paid"], ["user", "user.>", "order.*.paid"]),
        ("{key}.{topic}", ["user.*"], ["*.user.*"]),
        ("{topic}.{key}", ["user.#"], ["user.>"]),
        ("all", ["#"], ["all"]),
    ],
)
def test_a_stream_takes_the_subjects_of_the_patterns_none_of_them_twice(
    template: str, patterns: Sequence[str], expected: Sequence[str]
) -> None:
    assert subjects_of(template, patterns) == expected


def test_a_stream_for_all_subjects_is_refused_with_what_to_do() -> None:
    destination = open_destination("nats://127.0.0.1", stream="all", create_stream=True)
    with pytest.raises(InvalidRelay, match=r"give a subject template such as 'events\.\{topic\}'"):
        destination.prepare("relay", "", "{topic}", ["#"])


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("nats://127.0.0.1", {"exchange": "x"}),
        ("amqp://127.0.0.1", {"stream": "x"}),
        ("redis://127.0.0.1", {"exchange": "x"}),
        ("kafka://127.0.0.1:9092", {"maxlen": 5}),
    ],
)
def test_an_option_of_another_broker_is_refused(url: str, options: dict[str, object]) -> None:
    with pytest.raises(InvalidRelay, match="has no option"):
        open_destination(url, **options)
