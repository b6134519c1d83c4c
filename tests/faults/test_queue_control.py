"""A queue under control from another process; see `queue_control`, which runs on every database."""

from __future__ import annotations

import pytest

from tests.faults import queue_control
from tests.faults.processes import Processes


@pytest.mark.databases("sqlite")
@pytest.mark.timeout(180)
async def test_a_queue_does_as_operators_say_while_events_flow(processes: Processes, database_url: str) -> None:
    numbers = await queue_control.run(processes, database_url, rows=60)
    assert numbers["at once when scaled"] == queue_control.MANY
