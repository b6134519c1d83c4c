"""Nodes that are killed while they publish recurring events; see `killed_recurrers`, which runs at any size."""

from __future__ import annotations

import pytest

from tests.faults import killed_recurrers
from tests.faults.processes import Processes


@pytest.mark.timeout(120)
async def test_every_tick_is_published_once(processes: Processes, database_url: str) -> None:
    numbers = await killed_recurrers.run(processes, database_url, count=60, kills=3, pause=0.4, timeout=60)
    assert numbers["nodes killed"] >= 3
