"""Full jitter: delays between nothing and a ceiling that doubles up to a cap."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.backoff import FullJitter

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
