"""The arithmetic of rate limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.store.limits import STEPS, Grant, RateLimit, free, granted

PERIOD = 1_000


@given(
    permits=st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 30)), max_size=60),
)
def test_in_no_period_more_is_given_than_the_limit_says(permits: int, steps: list[tuple[int, int]]) -> None:
    """Each step waits a while, asks for some, and takes what is free."""
    limit = RateLimit("x", permits, PERIOD)
    grants: list[Grant] = []
    given_at: list[int] = []
    now = 0
    for pause, wanted in steps:
        now += pause
        taken = min(wanted, free(grants, limit, now).events)
        if taken:
            grants = granted(grants, limit, now, taken)
            given_at += [now] * taken
    for begin in given_at:
        assert sum(begin <= time < begin + PERIOD for time in given_at) <= permits


@given(st.lists(st.integers(0, 5), max_size=500))
def test_the_record_of_a_limit_stays_short(pauses: list[int]) -> None:
    limit = RateLimit("x", 1_000_000, PERIOD)
    grants: list[Grant] = []
    now = 0
    for pause in pauses:
        now += pause
        grants = granted(grants, limit, now, 1)
    assert len(grants) <= STEPS + 1


def test_who_finds_no_permit_is_told_when_there_is_one() -> None:
    limit = RateLimit("x", 2, PERIOD)
    grants = granted(granted([], limit, 0, 1), limit, 500, 1)
    room = free(grants, limit, 600)
    assert room == (0, 400)
    assert free(grants, limit, 600 + room.wait).events == 1
