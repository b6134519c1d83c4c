"""A member whose network is gone; see `unplugged`, which runs with any ack wait."""

from __future__ import annotations

import pytest

from tests.faults import unplugged
from tests.faults.network import why_not
from tests.faults.processes import Processes

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.mark.databases("sqlite")  # what differs between databases is tested in tests/store
async def test_what_a_member_held_is_with_another_and_its_late_acks_are_refused(
    processes: Processes, database_url: str
) -> None:
    await unplugged.run(processes, database_url, count=10, ack_wait=1.0, heartbeat=30.0, grace=10)
