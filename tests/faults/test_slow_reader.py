"""A subscriber that does not read; see `slow_reader`, which runs with any number of events."""

from __future__ import annotations

import pytest

from tests.faults import slow_reader
from tests.faults.processes import Processes

TAIL = 1_000_000
"""Bytes that the node may keep for its live readers."""
MOST_MEMORY = 20
"""Megabytes by which it may grow: about twice of what it does. If it kept all events, it would be more than 30."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dialect", ["plain", "v1"])
@pytest.mark.databases("sqlite")
async def test_a_reader_that_stalls_costs_little_learns_why_and_resumes(
    processes: Processes, database_url: str, dialect: slow_reader.Dialect
) -> None:
    numbers = await slow_reader.run(
        processes, database_url, dialect=dialect, count=20_000, send_timeout=1.0, tail_bytes=TAIL
    )

    assert numbers["memory grew by, with it (MB)"] < MOST_MEMORY
    assert numbers["median delay, with / without"] < 5


@pytest.mark.timeout(120)
@pytest.mark.databases("postgresql", "mysql")
async def test_a_reader_that_was_given_up_resumes(processes: Processes, database_url: str) -> None:
    numbers = await slow_reader.run(
        processes,
        database_url,
        dialect="v1",
        count=20_000,
        is_gone=True,
        send_timeout=0.5,
        close_timeout=0.5,
        tail_bytes=TAIL,
    )

    assert numbers["memory grew by, with it (MB)"] < MOST_MEMORY
    assert numbers["median delay, with / without"] < 5
