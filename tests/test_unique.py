"""What makes events the same: the rule and the fingerprint that it comes to."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import pytest

from eventbus_fastapi.errors import InvalidEvent
from eventbus_fastapi.unique import Unique
from tests.drafts import draft


def digest(*event: Any, rule: Unique | None = None, **options: Any) -> str:
    found = draft(*event, unique=rule or Unique(), **options).unique
    assert found is not None
    return found.digest


def refusal(rule: Any, *event: Any, **options: Any) -> str:
    with pytest.raises(InvalidEvent) as caught:
        draft(*event, unique=rule, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("payload", "same"),
    [({"a": 1, "b": [2]}, {"b": [2.0], "a": 1.0}), ("text", "text"), (b"x", b"x"), (None, None), ([], [])],
)
def test_the_same_payloads_are_the_same_however_they_are_written(payload: Any, same: Any) -> None:
    assert digest("a", payload) == digest("a", same)


def test_events_that_differ_in_anything_that_is_compared_are_not_the_same() -> None:
    events = [("a", 1), ("b", 1), ("a", 2), ("a", "1"), ("a", b"1"), ("a", True), ("a", None), ("a", {"x": 1})]
    rules = [
        digest("a", {"x": 1}, rule=Unique(fields=[])),
        digest("a", {"x": 1}, rule=Unique(fields=["x"])),
        digest("a", {"x": 1}, rule=Unique(key=True), key="k"),
        digest("a", {"x": 1}, rule=Unique(key=True), key="K"),
        digest("a", {"x": 1}, rule=Unique(metadata=["m"]), metadata={"m": 1}),
        digest("a", {"x": 1}, rule=Unique(metadata=["m"]), metadata={"m": 2}),
    ]
    digests = [*(digest(*event) for event in events), *rules]
    assert len(set(digests)) == len(digests)


def test_an_object_that_tells_of_a_text_is_not_that_text() -> None:
    told = hashlib.sha256(b"text").hexdigest()
    for described in ({"content_type": "text/plain", "sha256": told}, ["text/plain", told]):
        assert digest("a", described) != digest("a", "text")


def test_only_what_is_named_is_compared() -> None:
    rule = Unique(fields=["id"], key=True, metadata=["tenant"], within=60)
    one = digest("a", {"id": 1, "n": 1}, rule=rule, key="k", metadata={"tenant": "t", "n": 1}, ttl=1)
    assert one == digest("a", {"n": 2, "id": 1}, rule=rule, key="k", metadata={"tenant": "t"}, delay=1)
    other = Unique(metadata=["tenant"], key=True, fields=("id",), within=timedelta(days=1), replace=["payload"])
    assert one == digest("a", {"id": 1}, rule=other, key="k", metadata={"tenant": "t"})


def test_tags_can_be_compared() -> None:
    rule = Unique(metadata=["tags"])
    assert digest("a", 1, rule=rule, tags=["x"]) != digest("a", 1, rule=rule, tags=["y"])


@pytest.mark.parametrize(
    ("rule", "payload", "why"),
    [
        (Unique(fields=["id"]), {"n": 1}, "unique by 'id', but the payload has no such field"),
        (Unique(fields=["id"]), [1], "unique by fields needs a payload that is a JSON object, got list"),
        (Unique(fields=["id"]), "text", "unique by fields needs a payload that is a JSON object, got text/plain"),
        (Unique(metadata=["m"]), 1, "unique by 'm', but the metadata has no such field"),
        (Unique(key=True), 1, "unique by key, but the event has no key"),
        ({"fields": ["id"]}, {"id": 1}, "unique must be a Unique, got dict"),
    ],
)
def test_an_event_that_has_not_what_is_compared_is_refused(rule: Any, payload: Any, why: str) -> None:
    assert refusal(rule, "a", payload) == why


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"fields": "id"}, "unique.fields must be a list of str, got str"),
        ({"fields": [1]}, "unique.fields must be a list of str, got one of int"),
        ({"metadata": ["m"] * 65}, "unique.metadata has 65 names, limit is 64"),
        ({"key": 1}, "unique.key must be a bool, got 1"),
        ({"within": 0}, "unique.within must be more than 0 seconds, got 0"),
        ({"within": "1"}, "unique.within must be seconds (a number) or a timedelta, got '1'"),
        ({"replace": ["time"]}, "unique.replace: expected 'payload' or 'schedule', got 'time'"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        Unique(**options)
    assert str(caught.value) == why
