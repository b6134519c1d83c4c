"""Whether one pattern contains another: whether it matches every topic that the other matches.

    contains("orders.#", "orders.*.paid")    True
    contains("orders.*", "orders.#")         False: orders.a.b

The containing pattern is read as an automaton whose states are places between its segments, held as the bits of one
integer, and the contained one is its input. A segment of the input moves all states at once; a `*` stands for a segment
that no literal equals. A `#` may stand for any number of such segments, so it can only be where the containing pattern
takes any number, too: within a run of wildcards that has a `#`. So a question costs a step per segment, whatever the
patterns are.

Topics are at most 16 segments long, and that is not made use of: a pattern that is contained only because longer topics
do not exist counts as not contained.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from eventbus_fastapi.topics import MANY, ONE


def contains(containing: str, contained: str) -> bool:
    """Say whether the (valid) pattern `containing` matches all that the (valid) pattern `contained` matches."""
    automaton = _automaton(containing)
    states = automaton.follow(1)
    segments = contained.split(".")
    if all(segment == MANY for segment in segments):
        segments = [ONE, MANY]  # no topic is empty
    for segment in segments:
        if segment == MANY:
            states &= automaton.elastic
        else:
            stay = states & automaton.many
            states = stay | (states & (automaton.one | automaton.literals.get(segment, 0))) << 1
        states = automaton.follow(states)
        if not states:
            return False
    return bool(states & automaton.end)


def covers(granted: Iterable[str], pattern: str) -> bool:
    """Say whether one of the granted patterns contains a pattern."""
    return any(contains(each, pattern) for each in granted)


class _Automaton(NamedTuple):
    """Places in a pattern, as bits: bit n is the place before segment n."""

    one: int
    many: int
    elastic: int
    """Places within a run of wildcards that has a `#`."""
    literals: dict[str, int]
    end: int

    def follow(self, states: int) -> int:
        """Add what is reached without a segment: the places behind a `#`."""
        while (more := states | (states & self.many) << 1) != states:
            states = more
        return states


@lru_cache(maxsize=1_024)
def _automaton(pattern: str) -> _Automaton:
    segments = pattern.split(".")
    one = many = elastic = 0
    literals: dict[str, int] = {}
    for place, segment in enumerate(segments):
        if segment == ONE:
            one |= 1 << place
        elif segment == MANY:
            many |= 1 << place
        else:
            literals[segment] = literals.get(segment, 0) | 1 << place
    start = 0
    for place, segment in enumerate([*segments, ""]):  # the last one ends the last run
        if segment in (ONE, MANY):
            continue
        if MANY in segments[start:place]:
            elastic |= (1 << place + 1) - (1 << start)
        start = place + 1
    return _Automaton(one, many, elastic, literals, 1 << len(segments))
