"""Cron expressions: which ticks they have, also where clocks change, and which are refused."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus_fastapi.cron import ALIASES, EPOCH, MICROSECOND, Cron, cron_of, time_text
from eventbus_fastapi.errors import InvalidRecurring

BERLIN = "Europe/Berlin"
"""There the clock goes from 2:00 to 3:00 on 29 March 2026, and from 3:00 to 2:00 on 25 October 2026."""


def at(text: str) -> int:
    """Return a time of this text; it is Berlin's where it says no zone."""
    time = datetime.fromisoformat(text)
    return (time.replace(tzinfo=time.tzinfo or ZoneInfo(BERLIN)) - EPOCH) // MICROSECOND


def ticks(cron: Cron, since: str, until: str) -> list[str]:
    """Return the ticks after a time and up to another, in UTC, without their day."""
    found, tick = [], cron.after(at(since))
    while tick <= at(until):
        found.append(time_text(tick)[11:16])
        tick = cron.after(tick)
    return found


@pytest.mark.parametrize(
    ("expression", "timezone", "since", "following"),
    [
        ("* * * * *", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
        ("* * * * *", "UTC", "2026-01-01T00:00:59.999999Z", "2026-01-01T00:01:00Z"),
        ("0 3 * * *", "UTC", "2026-01-01T03:00:00Z", "2026-01-02T03:00:00Z"),
        ("0 3 * * *", BERLIN, "2026-01-01T00:00:00Z", "2026-01-01T02:00:00Z"),
        ("0 3 * * *", BERLIN, "2026-07-01T00:00:00Z", "2026-07-01T01:00:00Z"),
        ("30 9 * * mon-fri", "UTC", "2026-01-02T12:00:00Z", "2026-01-05T09:30:00Z"),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
        ("0 0 13 * 5", "UTC", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),  # the 13th or a Friday
        ("0 0 L * *", "UTC", "2026-02-01T00:00:00Z", "2026-02-28T00:00:00Z"),
        ("0 12 * * 1#2", "UTC", "2026-01-01T00:00:00Z", "2026-01-12T12:00:00Z"),
        ("@hourly", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
        ("@Daily", "Asia/Kathmandu", "2026-01-01T00:00:00Z", "2026-01-01T18:15:00Z"),
    ],
)
def test_the_first_tick_after_a_time(expression: str, timezone: str, since: str, following: str) -> None:
    assert time_text(Cron(expression, timezone).after(at(since))) == following


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["01:00"]),  # 2:30 is passed over: it comes when the clock has moved, once
        ("0,30 2 * * *", ["01:00"]),
        ("0 2-3 * * *", ["01:00"]),
        ("0 1,4 * * *", ["00:00", "02:00"]),
        ("*/30 * * * *", ["23:30", "00:00", "00:30", "01:00", "01:30", "02:00", "02:30", "03:00"]),
        ("0 * * * *", ["00:00", "01:00", "02:00", "03:00"]),
        ("*/30 2 * * *", []),
    ],
)
def test_when_the_clock_moves_forward(expression: str, expected: list[str]) -> None:
    assert ticks(Cron(expression, BERLIN), "2026-03-28T23:00:00Z", "2026-03-29T03:00:00Z") == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["00:30"]),  # 2:30 is there twice, and counts once
        ("0,30 2 * * *", ["00:00", "00:30"]),
        ("0 1-3 * * *", ["23:00", "00:00", "02:00"]),
        ("*/30 * * * *", ["23:00", "23:30", "00:00", "00:30", "01:00", "01:30", "02:00"]),
        ("0 * * * *", ["23:00", "00:00", "01:00", "02:00"]),
        ("*/30 2 * * *", ["00:00", "00:30", "01:00", "01:30"]),
    ],
)
def test_when_the_clock_moves_back(expression: str, expected: list[str]) -> None:
    assert ticks(Cron(expression, BERLIN), "2026-10-24T22:30:00Z", "2026-10-25T02:00:00Z") == expected


@pytest.mark.parametrize("expression", ["30 2 * * *", "0,30 2 * * *", "*/20 * * * *", "0 1-3 * * *", "15 */2 * * *"])
@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_the_ticks_are_the_same_wherever_one_begins_to_look(expression: str, day: str) -> None:
    """Given a day on which the clock changes, then each moment of it agrees on what comes next and what came last."""
    cron = Cron(expression, BERLIN)
    first, end = cron.after(at(f"{day}T00:00:00Z") - 24 * 3_600_000_000), at(f"{day}T12:00:00Z")
    known = [first]
    while known[-1] < end:
        known.append(cron.after(known[-1]))
    for time in range(at(f"{day}T00:00:00Z") - 7_200_000_000, end, 601_000_001):
        assert cron.after(time) == next(tick for tick in known if tick > time)
        assert cron.last(first, time) == max(tick for tick in known if tick <= time)


def test_the_last_tick_of_years_is_found_at_once() -> None:
    """A minute has 60 seconds, and a loop over all the minutes of these years would take more than that."""
    cron = Cron("* * * 1 *")
    first = cron.after(at("2000-06-01T00:00:00Z"))
    assert time_text(cron.last(first, at("2026-06-01T00:00:00Z"))) == "2026-01-31T23:59:00Z"
    assert cron.last(first, first) == first


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "5 fields"),
        ("0 3 * *", "5 fields"),
        ("0 0 3 * * *", "5 fields"),
        ("@reboot", "@hourly"),
        ("61 * * * *", "got '61 * * * *': bad minute"),
        ("0 0 31 2 *", "come true on some day, got '0 0 31 2 *'"),
        ("* * */20 * 1L", "never comes true"),
        ("٣ * * * *", "ASCII"),
        ("0 3 * * * " + "*" * 255, "at most 255 characters, got 265"),
        (None, "str, like '0 3 * * *', got NoneType"),
    ],
)
def test_an_expression_that_cannot_be_used_is_refused(expression: Any, words: str) -> None:
    with pytest.raises(InvalidRecurring) as refused:
        Cron(expression)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "timezone", ["", "Mars/Olympus", "Europe", "../passwd", "/etc/localtime", "localtime", "\0", "\ud800", "x" * 65, 5]
)
def test_an_unknown_time_zone_is_refused(timezone: Any) -> None:
    with pytest.raises(InvalidRecurring, match="timezone must be"):
        Cron("@daily", timezone)


def test_what_is_said_with_more_spaces_is_the_same() -> None:
    assert Cron(" 0  3 *\t* * ").expression == "0 3 * * *"
    assert cron_of("0 3 * * *", "UTC") is cron_of("0 3 * * *", "UTC")


def test_every_alias_is_an_expression() -> None:
    for alias, expression in ALIASES.items():
        assert Cron(alias).after(0) == Cron(expression).after(0)


@given(st.lists(st.text("0123456789*/,-#LWMONFEB", min_size=1, max_size=6), min_size=5, max_size=5).map(" ".join))
def test_whatever_is_said_is_an_expression_or_refused(expression: str) -> None:
    with contextlib.suppress(InvalidRecurring):
        assert Cron(expression, BERLIN).after(at("2026-03-28T23:00:00Z")) > at("2026-03-28T23:00:00Z")
