"""PostgreSQL goes away under load and comes back; see `outage`, which runs at any length."""

from __future__ import annotations

import pytest

from tests.faults import outage
from tests.faults.processes import Processes

RESUMED = 5.0
"""Seconds after which everything goes on, once the database is back."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["fast", "immediate", "frozen"])
async def test_a_database_that_comes_back_is_found_again_and_nothing_answered_is_lost(
    processes: Processes, way: outage.Way
) -> None:
    timeout = 1.0
    numbers = await outage.run(processes, way, seconds=2, statement_timeout=timeout)

    assert numbers["error codes"] == "store.unavailable"
    # What waits behind a commit that runs into the timeout has its own before it.
    assert numbers["an answer took at the longest, s"] < 3 * timeout + RESUMED
    assert numbers["back, until a publish is answered, s"] < RESUMED
    assert numbers["back, until every reader has new events, s"] < RESUMED
    assert numbers["back, until the node is ready, s"] < RESUMED
    assert numbers["connections of the raw readers"] == "1 / 1"


@pytest.mark.timeout(120)
async def test_connections_that_go_dead_without_a_word_are_given_up(processes: Processes) -> None:
    timeout = 1.0
    numbers = await outage.run(processes, "cut", seconds=0, statement_timeout=timeout)

    assert numbers["back, until a publish is answered, s"] < timeout + RESUMED
