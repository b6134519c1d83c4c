"""Delays before the next try: full jitter, and what a handler's failure asks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.backoff import Backoff, Exponential, Fixed, FullJitter, Sequence

SECONDS = st.floats(min_value=1e-6, max_value=1e6)


def test_the_ceiling_doubles_with_each_attempt() -> None:
    backoff = FullJitter(0.5, 60.0, random=lambda: 1.0)
    assert [backoff.delay(attempt) for attempt in range(4)] == [0.5, 1.0, 2.0, 4.0]


def test_the_ceiling_stops_at_the_cap() -> None:
    assert FullJitter(1.0, 10.0, random=lambda: 1.0).delay(4) == 10.0


def test_a_delay_is_the_random_part_of_the_ceiling() -> None:
    assert FullJitter(1.0, 10.0, random=lambda: 0.25).delay(1) == 0.5


def test_the_first_delay_may_be_nothing() -> None:
    assert FullJitter(1.0, 10.0, random=lambda: 0.0).delay(0) == 0.0


def test_a_million_attempts_overflow_nothing() -> None:
    assert FullJitter(3.0, 30.0, random=lambda: 1.0).delay(1_000_000) == 30.0


@given(SECONDS, SECONDS, st.integers(0, 10**30))
def test_a_delay_is_from_nothing_to_the_cap(base: float, cap: float, attempt: int) -> None:
    assert 0.0 <= FullJitter(base, cap).delay(attempt) <= cap


@pytest.mark.parametrize(("base", "cap"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, math.nan)])
def test_base_and_cap_must_be_above_nothing(base: float, cap: float) -> None:
    with pytest.raises(ValueError, match="base and cap must be seconds above 0"):
        FullJitter(base, cap)


def test_attempts_are_counted_from_nothing() -> None:
    with pytest.raises(ValueError, match="attempts are counted from 0, got -1"):
        FullJitter(1.0, 2.0).delay(-1)


# --- backoffs of handlers: the attempt that failed, counted from 1 → seconds until the next, or None ---


def test_an_exponential_backoff_grows_by_its_factor_up_to_its_cap() -> None:
    backoff = Exponential(base=30, factor=3, cap=timedelta(minutes=10), jitter=0)
    assert [backoff(attempt) for attempt in (1, 2, 3, 4)] == [30.0, 90.0, 270.0, 600.0]


def test_the_jitter_is_the_part_of_a_delay_that_is_random() -> None:
    lowest = Exponential(base=100, jitter=0.2, random=lambda: 1.0)
    highest = Exponential(base=100, jitter=0.2, random=lambda: 0.0)
    assert (lowest(1), highest(1)) == (80.0, 100.0)


@given(st.integers(1, 10**30))
def test_by_default_a_delay_is_half_to_the_whole_of_what_it_has_grown_to(attempt: int) -> None:
    whole = Exponential(jitter=0)(attempt)
    assert whole / 2 <= Exponential()(attempt) <= whole <= 3600


def test_ten_retries_of_the_default_outlast_an_hour() -> None:
    assert sum(Exponential(random=lambda: 1.0)(attempt) for attempt in range(1, 11)) > 3600


def test_a_fixed_backoff_is_always_the_same() -> None:
    backoff = Fixed(timedelta(minutes=1))
    assert (backoff(1), backoff(1_000)) == (60.0, 60.0)


def test_a_sequence_ends_after_its_last_delay() -> None:
    backoff = Sequence([30 * 60, timedelta(hours=1)])
    assert [backoff(attempt) for attempt in (1, 2, 3)] == [1800.0, 3600.0, None]
    assert len(backoff) == 2


@pytest.mark.parametrize("backoff", [Exponential(), Sequence([1.0])])
def test_failed_attempts_are_counted_from_one(backoff: Backoff) -> None:
    with pytest.raises(ValueError, match="attempts are counted from 1, got 0"):
        backoff(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exponential(base=-1), "base must be 0 to 3,162,240,000 seconds (a number) or a timedelta, got -1"),
        (lambda: Exponential(base=0), "base and cap must be seconds above 0, got base=0.0, cap=3600.0"),
        (lambda: Exponential(cap=math.inf), "cap must be 0 to"),
        (lambda: Exponential(factor=0.5), "factor must be a number of at least 1, got 0.5"),
        (lambda: Exponential(jitter=1.5), "jitter must be a number from 0 to 1, got 1.5"),
        (lambda: Fixed(math.nan), "delay must be 0 to"),
        (lambda: Fixed(True), "delay must be 0 to"),
        (lambda: Sequence([]), "expected at least one delay"),
        (lambda: Sequence([1, timedelta(seconds=-1)]), "delay 2 must be 0 to"),
    ],
)
def test_a_backoff_that_cannot_be_used_is_refused(make: Callable[[], Backoff], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
