"""Hostile clients beside others; see `hostile_crowd`, which runs with any number of them."""

from __future__ import annotations

import pytest

from tests.faults import hostile_crowd
from tests.faults.hostile_client import KINDS
from tests.faults.processes import Processes


@pytest.mark.databases("sqlite")
async def test_others_get_all_their_events_and_the_memory_is_bounded(processes: Processes, database_url: str) -> None:
    numbers = await hostile_crowd.run(
        processes,
        database_url,
        count=2 * len(KINDS),
        seconds=3,
        send_timeout=1,
        close_timeout=1,
        body_timeout=1,
    )

    grown = numbers["memory beside them, at most (MB)"] - numbers["memory without them (MB)"]
    assert grown < 150
