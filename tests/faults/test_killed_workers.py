"""Workers that are killed and stopped; see `killed_workers`, which runs at any size."""

from __future__ import annotations

import pytest

from tests.faults import killed_workers
from tests.faults.processes import Processes


@pytest.mark.timeout(120)
async def test_every_event_is_handled_and_none_twice_as_the_same_attempt(
    processes: Processes, database_url: str
) -> None:
    numbers = await killed_workers.run(processes, database_url, count=1_500, lease=1.0, pause=0.3, timeout=100)
    assert numbers["workers killed"] + numbers["workers stopped for longer than their lease"] > 0
