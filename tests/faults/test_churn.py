"""Subscriptions and connections come and go; see `churn`, which runs with any number of them."""

from __future__ import annotations

import pytest

from tests.faults import churn
from tests.faults.processes import Processes


@pytest.mark.databases("sqlite")
async def test_they_leave_nothing_behind(processes: Processes, database_url: str) -> None:
    numbers = await churn.run(processes, database_url, subscriptions=1_600, connections=400)

    for memory in numbers.values():
        assert memory[-1] - memory[1] < 5
