"""Topics and patterns: the grammar, what matches what, and that nothing makes it slow."""

from __future__ import annotations

import contextlib
import itertools
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.errors import InvalidPattern, InvalidTopic
from eventbus_fastapi.topics import PatternIndex, check_pattern, check_topic, matches

# --- grammar -------------------------------------------------------------------------------------

TOPICS = ["a", "user.created", "A-Z_0-9", "urn:uuid:1@host/path.x", ".".join("abcdefghijklmnop"), "x" * 255]
PATTERNS = [*TOPICS, "*", "#", "user.*", "user.#", "*.created", "#.a.#.b.#", "*.*.#"]


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_is_segments_joined_by_dots(topic: str) -> None:
    assert check_topic(topic) == topic


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_may_have_wildcards_as_whole_segments(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


WRONG_IN_BOTH = [
    ("", "it is empty"),
    (".", "segment 1 is empty"),
    (".orders", "segment 1 is empty"),
    ("orders.", "segment 2 is empty"),
    ("orders..new", "segment 2 is empty"),
    ("a.b c", "segment 2 has the character ' '; expected A-Z a-z 0-9 _ - : @ /"),
    ("a\n", "segment 1 has the character '\\n'; expected A-Z a-z 0-9 _ - : @ /"),
    ("straße", "segment 1 has the character '\\xdf'; expected A-Z a-z 0-9 _ - : @ /"),
    ("a.\ud800", "segment 2 has the character '\\ud800'; expected A-Z a-z 0-9 _ - : @ /"),
    ("x" * 256, "it is 256 bytes, limit is 255"),
    ("ß" * 128, "it is 256 bytes, limit is 255"),
    (".".join("a" * 17), "it has 17 segments, limit is 16"),
]


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        *WRONG_IN_BOTH,
        ("user.*", "segment 2 is the wildcard '*', which only a pattern may have"),
        ("#", "segment 1 is the wildcard '#', which only a pattern may have"),
        ("a*", "segment 1 has the character '*'; expected A-Z a-z 0-9 _ - : @ /"),
        (None, "expected str, got NoneType"),
        (b"a", "expected str, got bytes"),
        (5, "expected str, got int"),
        (["a"], "expected str, got list"),
    ],
)
def test_a_wrong_topic_is_refused_with_the_reason(topic: object, reason: str) -> None:
    with pytest.raises(InvalidTopic) as refused:
        check_topic(topic)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        *WRONG_IN_BOTH,
        ("user.a*", "segment 2 has '*' beside other characters; a wildcard is a whole segment"),
        ("##", "segment 1 has '#' beside other characters; a wildcard is a whole segment"),
        ("*#", "segment 1 has '*' beside other characters; a wildcard is a whole segment"),
        (None, "expected str, got NoneType"),
    ],
)
def test_a_wrong_pattern_is_refused_with_the_reason(pattern: object, reason: str) -> None:
    with pytest.raises(InvalidPattern) as refused:
        check_pattern(pattern)
    assert refused.value.reason == reason


def test_a_refusal_quotes_what_came_escaped_and_short() -> None:
    with pytest.raises(InvalidTopic) as refused:
        check_topic("\x1b[31m" * 100)
    assert str(refused.value).startswith("invalid topic '\\x1b[31m\\x1b[31m")
    assert len(str(refused.value)) < 200


def test_a_member_of_an_enum_becomes_plain_str() -> None:
    class Topic(StrEnum):
        CREATED = "enum.created"

    assert type(check_topic(Topic.CREATED)) is str
    assert type(check_pattern(Topic.CREATED)) is str


@given(st.text())
def test_any_text_is_a_topic_or_refused_as_invalid(text: str) -> None:
    for check, error in ((check_topic, InvalidTopic), (check_pattern, InvalidPattern)):
        with contextlib.suppress(error):
            assert check(text) == text


# --- matching ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "topic"),
    [
        ("user.created", "user.created"),
        ("user.*", "user.created"),
        ("*.created", "user.created"),
        ("*", "logs"),
        ("#", "logs"),
        ("#", "logs.app.web"),
        ("logs.#", "logs"),
        ("logs.#", "logs.app"),
        ("logs.#", "logs.app.web"),
        ("#.error", "error"),
        ("#.error", "app.web.error"),
        ("logs.#.error", "logs.error"),
        ("logs.#.error", "logs.error.error"),
        ("#.a.#.b.#", "x.a.y.b"),
        ("#.*", "a"),
        ("*.#", "a"),
        ("#.*.#.*.#", "a.b"),
        ("#.#", "a"),
        ("#.a.b", "a.a.b"),
    ],
)
def test_these_match(pattern: str, topic: str) -> None:
    assert matches(pattern, topic)


@pytest.mark.parametrize(
    ("pattern", "topic"),
    [
        ("user.created", "user.Created"),
        ("user.created", "user"),
        ("user", "user.created"),
        ("*", "user.created"),
        ("user.*", "user"),
        ("user.*", "user.profile.created"),
        ("*.*", "a"),
        ("logs.#", "log"),
        ("logs.#", "logs2"),
        ("#.error", "error.app"),
        ("#.a.#.b.#", "b.a"),
        ("#.*.#.*.#", "a"),
    ],
)
def test_these_do_not_match(pattern: str, topic: str) -> None:
    assert not matches(pattern, topic)


SEGMENTS = st.sampled_from(["a", "b", "c"])
topics = st.lists(SEGMENTS, min_size=1, max_size=8).map(".".join)
patterns = st.lists(SEGMENTS | st.sampled_from("*#"), min_size=1, max_size=8).map(".".join)


def oracle(pattern: list[str], topic: list[str]) -> bool:
    """The definition, word for word: exponential, and plainly right."""
    if not pattern:
        return not topic
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(oracle(rest, topic[taken:]) for taken in range(len(topic) + 1))
    return bool(topic) and first in ("*", topic[0]) and oracle(rest, topic[1:])


@given(patterns, topics)
def test_matching_is_what_the_definition_says(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) == oracle(pattern.split("."), topic.split("."))


@given(st.lists(patterns, max_size=12), topics)
def test_the_index_finds_exactly_what_matches(held: list[str], topic: str) -> None:
    index: PatternIndex[str] = PatternIndex()
    for pattern in held:
        index.add(pattern, pattern)
    assert index.match(topic) == {pattern for pattern in held if oracle(pattern.split("."), topic.split("."))}


@given(st.lists(st.tuples(patterns, st.integers(0, 2)), max_size=12), st.data(), topics)
def test_what_is_removed_leaves_no_trace(held: list[tuple[str, int]], data: st.DataObject, topic: str) -> None:
    index: PatternIndex[int] = PatternIndex()
    pairs = list(dict.fromkeys(held))
    for pattern, value in pairs:
        index.add(pattern, value)
    gone = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    for pattern, value in gone:
        index.remove(pattern, value)
    left = [pair for pair in pairs if pair not in gone]
    assert len(index) == len(left)
    assert index.match(topic) == {value for pattern, value in left if matches(pattern, topic)}


def test_an_index_from_which_all_was_removed_is_as_small_as_a_new_one() -> None:
    index: PatternIndex[int] = PatternIndex()
    for pattern in PATTERNS:
        index.add(pattern, 1)
    for pattern in PATTERNS:
        index.remove(pattern, 1)
    assert len(index) == 0
    assert index._roots == {}


def test_a_pair_is_held_once_however_often_it_is_added() -> None:
    index: PatternIndex[str] = PatternIndex()
    index.add("user.*", "reader")
    index.add("user.*", "reader")
    assert len(index) == 1
    index.remove("user.*", "reader")
    assert index.match("user.created") == frozenset()


def test_one_value_may_be_held_under_patterns_that_mean_the_same() -> None:
    index: PatternIndex[str] = PatternIndex()
    index.add("*.#", "reader")
    index.add("#.*", "reader")
    index.remove("*.#", "reader")
    assert index.match("a.b") == {"reader"}


@pytest.mark.parametrize(
    ("pattern", "value"), [("user.*", "other"), ("user", "reader"), ("user.*.x", "reader"), ("", "reader")]
)
def test_removing_what_is_not_held_is_a_key_error_and_changes_nothing(pattern: str, value: str) -> None:
    index: PatternIndex[str] = PatternIndex()
    index.add("user.*", "reader")
    with pytest.raises(KeyError):
        index.remove(pattern, value)
    assert index.match("user.created") == {"reader"}
    assert len(index) == 1


def test_an_invalid_pattern_is_not_added() -> None:
    index: PatternIndex[str] = PatternIndex()
    with pytest.raises(InvalidPattern):
        index.add("user.a*", "reader")
    assert len(index) == 0


def test_what_was_found_does_not_change_when_the_index_does() -> None:
    index: PatternIndex[str] = PatternIndex()
    index.add("user.*", "first")
    found = index.match("user.created")
    index.add("user.*", "second")
    assert found == {"first"}
    assert index.match("user.created") == {"first", "second"}


def test_a_wildcard_in_a_topic_is_no_wildcard() -> None:
    index: PatternIndex[str] = PatternIndex()
    index.add("user.created", "reader")
    assert index.match("user.*") == frozenset()
    assert index.match("#") == frozenset()


# --- bounds --------------------------------------------------------------------------------------


def visits(index: PatternIndex[int], topic: str) -> int:
    return sum(1 for _ in index._reach(topic))


def size(index: PatternIndex[int]) -> int:
    """How many nodes the tree has."""
    nodes, count = [*index._roots.values()], 0
    while nodes:
        node = nodes.pop()
        count += 1
        nodes += [child for child in (node.one, node.many, *(node.literals or {}).values()) if child is not None]
    return count


def test_a_pattern_of_many_hashes_is_not_slow() -> None:
    """A backtracking matcher needs billions of steps for this one."""
    pattern = ".".join(["#", "a"] * 8)
    topic = ".".join(["a"] * 15 + ["b"])
    assert not matches(pattern, topic)
    index: PatternIndex[int] = PatternIndex()
    index.add(pattern, 1)
    assert visits(index, topic) <= 17


def test_a_topic_visits_only_its_own_part_of_a_hundred_thousand_patterns() -> None:
    index: PatternIndex[int] = PatternIndex()
    for number in range(20_000):
        index.add(f"user.{number}.created", number)
        index.add(f"room{number}.*", number)
        index.add(f"tenant{number}.#", number)
        index.add(f"*.{number}.#", number)
        index.add(f"#.kind{number}", number)
    assert len(index) == 100_000
    assert index.match("user.17.created") == {17}
    assert index.match("room9.said") == {9}
    assert index.match("tenant3.a.b.kind4") == {3, 4}
    assert visits(index, "user.17.created") <= 10
    assert visits(index, "tenant3.a.b.kind4") <= 10


@pytest.mark.parametrize("alphabet", ["a*", "a#", "*#", "ab#", "a*#"])
@pytest.mark.parametrize("end", ["never", "a.never", "never.#", "never.*"])
def test_patterns_that_end_in_what_a_topic_lacks_are_not_visited(alphabet: str, end: str) -> None:
    """A hundred thousand of them made one topic take 70 ms."""
    index: PatternIndex[int] = PatternIndex()
    for number, segments in enumerate(itertools.product(alphabet, repeat=6)):
        index.add(".".join((*segments, end)), number)
    topic = ".".join("a" * 14)
    assert index.match(topic) == frozenset()
    assert visits(index, topic) <= 17
    assert visits(index, f"never.{topic}") <= (17 if end in ("never", "a.never", "never.*") else size(index))


def test_patterns_that_are_longer_than_the_topic_are_not_visited() -> None:
    index: PatternIndex[int] = PatternIndex()
    for number, segments in enumerate(itertools.product("a*", repeat=12)):
        index.add(".".join(segments), number)
    assert visits(index, ".".join("a" * 11)) == 0
    assert len(index.match(".".join("a" * 12))) == 2**12


def test_the_many_spellings_of_a_pattern_are_visited_as_one() -> None:
    """Of `*` and `#` there are only so many meanings: how many segments at least, and whether more."""
    index: PatternIndex[int] = PatternIndex()
    for number, segments in enumerate(itertools.product("*#", repeat=12)):
        index.add(".".join(segments), number)
    assert size(index) <= 12 + 13
    assert len(index.match(".".join("a" * 12))) == 2**12
    assert len(index.match("a")) == 1 + 12


@pytest.mark.parametrize("alphabet", ["a*", "a#", "*#", "ab#", "a*#"])
def test_no_set_of_patterns_makes_a_topic_visit_a_node_twice(alphabet: str) -> None:
    """Patterns that lack a literal in between only are the costly ones: see `PatternIndex`."""
    index: PatternIndex[int] = PatternIndex()
    for number, segments in enumerate(itertools.product(alphabet, repeat=6)):
        index.add(".".join((*segments, "never", "#", "a")), number)
    reached = [id(node) for node, _ in index._reach(".".join("a" * 16))]
    assert 0 < len(reached) == len(set(reached)) < size(index)


@pytest.mark.parametrize("alphabet", ["a*", "a#", "*#", "ab#", "a*#"])
def test_patterns_of_many_different_ends_are_not_visited_by_a_topic_without_them(alphabet: str) -> None:
    index: PatternIndex[int] = PatternIndex()
    for number, segments in enumerate(itertools.product(alphabet, repeat=6)):
        index.add(".".join((*segments, f"end{number}")), number)
    assert visits(index, ".".join("a" * 16)) == 0
    assert visits(index, "a.a.a.a.a.a.end0") <= 7 * 16


def test_an_index_expects_nothing_of_patterns_that_are_gone() -> None:
    index: PatternIndex[int] = PatternIndex()
    index.add("a.b.c", 1)
    index.remove("a.b.c", 1)
    index.add("a.#", 2)
    assert index.match("a.x") == {2}
    assert visits(index, "b") == 0
