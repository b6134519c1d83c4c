"""Fan-out over a NATS that is killed; see `fanned_out`, which runs with any number of events and sockets."""

from __future__ import annotations

import pytest

from tests.faults import fanned_out
from tests.faults.processes import Processes


@pytest.mark.timeout(240)
@pytest.mark.databases("postgresql")  # what differs between databases is tested in tests/pipeline; this takes seconds
async def test_every_socket_sees_each_event_once_and_in_order_while_nats_is_killed(
    processes: Processes, database_url: str
) -> None:
    await fanned_out.run(processes, database_url, count=4_000, sockets=12, down=1.0)
