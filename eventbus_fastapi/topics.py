"""Topics and patterns: their grammar, and which pattern matches which topic.

A topic is 1 to 16 segments of `A–Z a–z 0–9 _ - : @ /`, joined by dots, at most 255 bytes: `user.created`. A pattern is
the same, but a whole segment may be `*` (exactly one segment) or `#` (zero or more), anywhere and several times:
`logs.#` matches `logs` and `logs.app.web`, `*.created` matches `user.created` only.

Everything here is pure. No pattern can make matching slow; what a set of patterns can cost, `PatternIndex` says.
Nothing here knows what the patterns are for.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import Generic, NoReturn, TypeVar

from eventbus_fastapi.errors import InvalidPattern, InvalidTopic, quote

T = TypeVar("T", bound=Hashable)

MAX_BYTES = 255
"""Longest topic or pattern, bytes."""
MAX_SEGMENTS = 16
"""Most segments of a topic or pattern."""

ONE = "*"
MANY = "#"

_SEGMENT = r"[A-Za-z0-9_\-:@/]+"
_TOPIC = re.compile(rf"{_SEGMENT}(?:\.{_SEGMENT}){{0,{MAX_SEGMENTS - 1}}}")
_PATTERN = re.compile(rf"(?:{_SEGMENT}|[*#])(?:\.(?:{_SEGMENT}|[*#])){{0,{MAX_SEGMENTS - 1}}}")
_FOREIGN = re.compile(r"[^A-Za-z0-9_\-:@/]")


def check_topic(topic: object) -> str:
    """Return the topic as a plain str.

    Raises:
        InvalidTopic: it does not follow the grammar.
    """
    if not isinstance(topic, str):
        raise InvalidTopic(topic, f"expected str, got {type(topic).__name__}")
    return _checked_topic(topic)


def check_pattern(pattern: object) -> str:
    """Return the pattern as a plain str.

    Raises:
        InvalidPattern: it does not follow the grammar.
    """
    if not isinstance(pattern, str):
        raise InvalidPattern(pattern, f"expected str, got {type(pattern).__name__}")
    return _checked_pattern(pattern)


def matches(pattern: str, topic: str) -> bool:
    """Say whether a (valid) pattern matches a (valid) topic, in at most segments × segments steps."""
    wanted, given = pattern.split("."), topic.split(".")
    w = g = 0
    # When a literal fails, only the last `#` can help: what an earlier one could take, the last one can take as well.
    many, resume = -1, 0
    while g < len(given):
        if w < len(wanted) and wanted[w] == MANY:
            many, resume = w, g
            w += 1
        elif w < len(wanted) and wanted[w] in (ONE, given[g]):
            w += 1
            g += 1
        elif many >= 0:
            resume += 1
            w, g = many + 1, resume
        else:
            return False
    return all(segment == MANY for segment in wanted[w:])


class PatternIndex(Generic[T]):
    """Values by pattern; finds those whose pattern matches a topic.

    Trees of segments, one for each last literal of patterns; a topic looks only into those of its own segments. There
    each node is visited at most once, whatever the patterns are: a visit carries all places in the topic where the
    node may stand at once, as the bits of an integer. Patterns that mean the same (`#.*`, `*.#`, `#.*.#`) share a node,
    and a branch is left out if it needs more segments than the topic has left, or ends in a literal that the topic has
    elsewhere only.

    So ordinary sets cost a few visits, however large they are, and so do hostile ones whose last literals the topic
    lacks. What remains linear in the patterns is a set in which very many begin as the topic does, in different ways
    (`a.*.…`, `*.a.…`), and end as it does, but for a literal in between: they may all be visited, as if they matched.
    """

    def __init__(self) -> None:
        self._roots: dict[str | None, _Node[T]] = {}
        """A tree for each last literal; None: for the patterns of wildcards only."""
        self._size = 0

    def __len__(self) -> int:
        """Return how many different (pattern, value) pairs are held."""
        return self._size

    def add(self, pattern: str, value: T) -> None:
        """Hold `value` under `pattern`; a pair that is held already changes nothing.

        Raises:
            InvalidPattern: the pattern does not follow the grammar; nothing was added.
        """
        segments = _normal_form(check_pattern(pattern))
        node = self._roots.setdefault(_last_literal(segments), _Node())
        path = [node]
        for segment in segments:
            node = node.grow(segment)
            path.append(node)
        if node.put(pattern, value):
            self._size += 1
            _expect(path, segments)

    def remove(self, pattern: str, value: T) -> None:
        """Let go of the pair.

        Raises:
            KeyError: the pair is not held; nothing was changed.
        """
        segments = _normal_form(pattern)
        last = _last_literal(segments)
        if last not in self._roots:
            raise KeyError((pattern, value))
        path = [self._roots[last]]
        for segment in segments:
            child = path[-1].child(segment)
            if child is None:
                raise KeyError((pattern, value))
            path.append(child)
        if not path[-1].drop(pattern, value):
            raise KeyError((pattern, value))
        self._size -= 1
        for segment, node, parent in zip(reversed(segments), reversed(path), reversed(path[:-1]), strict=False):
            if not node.is_empty:
                break
            parent.prune(segment)
        if path[0].is_empty:
            del self._roots[last]

    def match(self, topic: str) -> frozenset[T]:
        """Return the values of all patterns that match a (valid) topic."""
        end = 1 << topic.count(".") + 1
        found = [node for node, places in self._reach(topic) if places & end and node.held is not None]
        if len(found) == 1:
            return found[0].freeze()
        return frozenset().union(*[node.held for node in found if node.held is not None])

    def _reach(self, topic: str) -> Iterator[tuple[_Node[T], int]]:
        """Yield each node that some beginning of the topic leads to, with the places it may stand at.

        Bit n of `places` is set if the node's path can match the first n segments.
        """
        segments = topic.split(".")
        count = len(segments)
        end = 1 << count
        before_end = end - 1
        occurrences: dict[str, int] = {}
        stack = [(self._roots[last], 1) for last in {None, *segments} if last in self._roots]
        while stack:
            visit = stack.pop()
            node, places = visit
            least, behind = node.least, node.behind
            if least and (least > count or not places & ((end << 1 >> least) - 1)):
                continue
            if behind is not None and segments[~behind] != node.last:
                continue
            yield visit
            if node.many is not None:
                stack.append((node.many, (end << 1) - (places & -places)))
            places &= before_end
            if not places:
                continue
            if node.one is not None:
                stack.append((node.one, places << 1))
            if not node.literals:
                continue
            if places & (places - 1) == 0:
                child = node.literals.get(segments[places.bit_length() - 1])
                if child is not None:
                    stack.append((child, places << 1))
                continue
            if not occurrences:
                for number, segment in enumerate(segments):
                    occurrences[segment] = occurrences.get(segment, 0) | 1 << number
            for segment, where in occurrences.items():
                if where & places:
                    child = node.literals.get(segment)
                    if child is not None:
                        stack.append((child, (where & places) << 1))


def _normal_form(pattern: str) -> list[str]:
    """Return the segments with each run of wildcards as its `*` first, then one `#` if it has any."""
    segments: list[str] = []
    for segment in pattern.split("."):
        if segments and segments[-1] == MANY and segment in (ONE, MANY):
            segments[-1:] = [segment, MANY] if segment == ONE else [MANY]
        else:
            segments.append(segment)
    return segments


def _last_literal(segments: list[str]) -> str | None:
    return next((segment for segment in reversed(segments) if segment not in (ONE, MANY)), None)


def _expect(path: list[_Node[T]], segments: list[str]) -> None:
    """Let each node of a pattern's path expect no more of a topic than this pattern does.

    It is not taken back when a pattern is removed: a node may expect less than it could, which is right and slower.
    """
    least = 0
    last: str | None = None
    behind: int | None = None
    ends_in_many = False
    path[-1].expect(0, None, None)
    for node, segment in zip(reversed(path[:-1]), reversed(segments), strict=True):
        if segment == MANY:
            ends_in_many = ends_in_many or last is None
        else:
            if last is None and segment != ONE:
                last = segment
                behind = None if ends_in_many else least
            least += 1
        node.expect(least, last, behind)


class _Node(Generic[T]):
    """A place in the tree of patterns: what follows it, and the values of the pattern that ends here."""

    __slots__ = ("behind", "frozen", "held", "last", "least", "literals", "many", "one")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] | None = None
        self.one: _Node[T] | None = None
        self.many: _Node[T] | None = None
        self.held: dict[T, tuple[str, ...]] | None = None
        """Values, each with its patterns as they were added."""
        self.frozen: frozenset[T] | None = None
        self.least = MAX_SEGMENTS + 1
        """How many segments of a topic the patterns below need at least; at first more than a topic has."""
        self.last: str | None = None
        """The last literal of all patterns below; None: they have none, or different ones."""
        self.behind: int | None = None
        """How many segments come behind `last`; None: any number."""

    @property
    def is_empty(self) -> bool:
        return self.held is None and not self.literals and self.one is None and self.many is None

    def expect(self, least: int, last: str | None, behind: int | None) -> None:
        """Expect of a topic what was expected before and this pattern expects as well."""
        if self.least > MAX_SEGMENTS:
            self.least, self.last, self.behind = least, last, behind
            return
        self.least = min(self.least, least)
        if last != self.last:
            self.last = None
        if behind != self.behind:
            self.behind = None

    def put(self, pattern: str, value: T) -> bool:
        """Hold the pair; say whether it is new."""
        if self.held is None:
            self.held = {}
        patterns = self.held.get(value, ())
        if pattern in patterns:
            return False
        self.held[value] = (*patterns, pattern)
        self.frozen = None
        return True

    def drop(self, pattern: str, value: T) -> bool:
        """Let go of the pair; say whether it was held."""
        patterns = () if self.held is None else self.held.get(value, ())
        if self.held is None or pattern not in patterns:
            return False
        if len(patterns) > 1:
            self.held[value] = tuple(each for each in patterns if each != pattern)
            return True
        del self.held[value]
        self.held = self.held or None
        self.frozen = None
        return True

    def freeze(self) -> frozenset[T]:
        """Return the values. The copy is kept: thousands of values of one pattern are not copied for each topic."""
        if self.frozen is None:
            self.frozen = frozenset(self.held or ())
        return self.frozen

    def child(self, segment: str) -> _Node[T] | None:
        if segment == ONE:
            return self.one
        if segment == MANY:
            return self.many
        return None if self.literals is None else self.literals.get(segment)

    def grow(self, segment: str) -> _Node[T]:
        """Return the child of this segment; make it if there is none."""
        child = self.child(segment)
        if child is None:
            child = _Node()
            if segment == ONE:
                self.one = child
            elif segment == MANY:
                self.many = child
            else:
                if self.literals is None:
                    self.literals = {}
                self.literals[segment] = child
        return child

    def prune(self, segment: str) -> None:
        """Forget the child of this segment."""
        if segment == ONE:
            self.one = None
        elif segment == MANY:
            self.many = None
        elif self.literals is not None:
            del self.literals[segment]
            self.literals = self.literals or None


@lru_cache(maxsize=16_384)
def _checked_topic(topic: str) -> str:
    if len(topic) > MAX_BYTES or not _TOPIC.fullmatch(topic):
        _refuse(topic, InvalidTopic)
    return str.__str__(topic)


@lru_cache(maxsize=4_096)
def _checked_pattern(pattern: str) -> str:
    if len(pattern) > MAX_BYTES or not _PATTERN.fullmatch(pattern):
        _refuse(pattern, InvalidPattern)
    return str.__str__(pattern)


def _refuse(name: str, error: type[InvalidTopic] | type[InvalidPattern]) -> NoReturn:
    """Raise the error with the first thing that is wrong."""
    if not name:
        raise error(name, "it is empty")
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise error(name, f"it is {size} bytes, limit is {MAX_BYTES}")
    segments = name.split(".")
    if len(segments) > MAX_SEGMENTS:
        raise error(name, f"it has {len(segments)} segments, limit is {MAX_SEGMENTS}")
    for number, segment in enumerate(segments, start=1):
        if reason := _wrong_with(segment, in_pattern=error is InvalidPattern):
            raise error(name, f"segment {number} {reason}")
    raise AssertionError(f"the grammar and its explanation disagree on {name!a}")


def _wrong_with(segment: str, *, in_pattern: bool) -> str | None:
    if not segment:
        return "is empty"
    if segment in (ONE, MANY):
        return None if in_pattern else f"is the wildcard {segment!r}, which only a pattern may have"
    foreign = _FOREIGN.search(segment)
    if foreign is None:
        return None
    if foreign[0] in (ONE, MANY) and in_pattern:
        return f"has {foreign[0]!r} beside other characters; a wildcard is a whole segment"
    return f"has the character {quote(foreign[0])}; expected A-Z a-z 0-9 _ - : @ /"
