"""Many open sockets when a node stops; see `stopping_crowd`, which runs with any number of them."""

from __future__ import annotations

import pytest

from tests.faults import stopping_crowd
from tests.faults.processes import Processes


@pytest.mark.databases("sqlite")
async def test_all_are_told_when_to_come_back_and_those_that_do_not_read_hold_up_nothing(
    processes: Processes, database_url: str
) -> None:
    await stopping_crowd.run(processes, database_url, sockets=40, unread=4)
