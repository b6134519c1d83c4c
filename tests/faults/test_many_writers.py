"""Many processes that publish in transactions; see `many_writers`, which runs at any size."""

from __future__ import annotations

import pytest

from tests.faults import many_writers
from tests.faults.processes import Processes


async def test_every_reader_sees_exactly_what_was_committed_in_one_order(
    processes: Processes, database_url: str
) -> None:
    await many_writers.run(processes, database_url, writers=2, count=150)


@pytest.mark.timeout(120)
async def test_a_killed_node_loses_no_answer_and_no_event(processes: Processes, database_url: str) -> None:
    numbers = await many_writers.run(processes, database_url, writers=2, count=400, kill=True)

    assert numbers["connections of the reader on the first node"] == 2
