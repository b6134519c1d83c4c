"""Containment of patterns: what is contained matches nothing that the other does not."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.auth.containment import contains, covers
from eventbus_fastapi.topics import matches

SEGMENTS = st.sampled_from(["a", "b", "*", "#"])
PATTERNS = st.lists(SEGMENTS, min_size=1, max_size=6).map(".".join)
TOPICS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=8).map(".".join)
FRESH = "z"
"""A segment that no pattern here names, so it stands for every one that none names."""


@given(PATTERNS, PATTERNS, TOPICS)
def test_what_a_contained_pattern_matches_the_containing_one_matches(one: str, other: str, topic: str) -> None:
    if contains(one, other) and matches(other, topic):
        assert matches(one, topic)


@given(PATTERNS, st.lists(SEGMENTS, min_size=1, max_size=4).map(".".join))
def test_it_is_contained_exactly_if_all_that_its_wildcards_stand_for_is_matched(one: str, other: str) -> None:
    assert contains(one, other) == all(matches(one, topic) for topic in meant(other))


@given(PATTERNS)
def test_a_pattern_contains_itself_and_is_in_that_of_everything(pattern: str) -> None:
    assert contains(pattern, pattern)
    assert contains("#", pattern)


@given(PATTERNS, TOPICS)
def test_a_topic_is_contained_in_what_matches_it(pattern: str, topic: str) -> None:
    assert contains(pattern, topic) == matches(pattern, topic)


@given(PATTERNS, PATTERNS, PATTERNS)
def test_what_is_in_a_contained_pattern_is_in_the_containing_one(one: str, two: str, three: str) -> None:
    if contains(one, two) and contains(two, three):
        assert contains(one, three)


def meant(pattern: str) -> list[str]:
    """The topics that decide: each `*` is a fresh segment, each `#` none to so many that more make no difference."""
    choices = [
        [[FRESH] * count for count in range(8)] if part == "#" else [[FRESH if part == "*" else part]]
        for part in pattern.split(".")
    ]
    topics = (".".join(itertools.chain.from_iterable(chosen)) for chosen in itertools.product(*choices))
    return [topic for topic in topics if topic]


@pytest.mark.parametrize(
    ("containing", "contained", "expected"),
    [
        ("a.#", "a", True),
        ("a.#", "a.b.*.#", True),
        ("a.*", "a.#", False),
        ("a.*", "a.*.*", False),
        ("*.*.#", "a.#.b", True),
        ("*.#", "#", True),
        ("*.#.b", "#.b", False),
        ("tenant1.a.#", "tenant1.#", False),
        ("tenant1.a.#", "*.a.#", False),
        ("tenant1.a.#", "#", False),
        ("tenant1.a.#", "Tenant1.a.b", False),
        ("#.secret", "a.*", False),
        ("a", "*", False),
    ],
)
def test_containment_by_example(containing: str, contained: str, expected: bool) -> None:
    assert contains(containing, contained) is expected


def test_one_grant_must_cover_it() -> None:
    assert covers(["a.*", "b.#"], "b.c.d")
    assert not covers(["a", "a.*.#"], "a.#"), "two grants together are not one"
    assert not covers([], "a")


def test_no_pattern_makes_the_question_slow() -> None:
    """Given patterns that cost an exponential number of steps if each `#` were tried, it is answered in a few."""
    hostile = ".".join(["#", "*"] * 8)
    grant = ".".join(["#", "a"] * 8)
    began = time.process_time()
    for _ in range(1_000):
        assert not contains(grant, hostile)
    assert time.process_time() - began < 10, "a question is a step per segment; 10 ms each would be another algorithm"
