"""Nodes that are restarted one after the other; see `rolling_restart`, which runs with any number of restarts."""

from __future__ import annotations

import pytest

from tests.faults import rolling_restart
from tests.faults.processes import Processes


@pytest.mark.timeout(120)
@pytest.mark.databases("postgresql")  # what differs between databases is tested in tests/store; this takes seconds
async def test_restarts_under_load_lose_no_attempt_and_repeat_none(processes: Processes, database_url: str) -> None:
    numbers = await rolling_restart.run(processes, database_url, rounds=1)

    assert numbers["processes that handled"] >= rolling_restart.NODES
