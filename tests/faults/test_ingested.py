"""Processes that ingest are killed; see `ingested`, which runs at any size."""

from __future__ import annotations

import pytest

from tests.brokers import any_broker
from tests.faults import ingested
from tests.faults.processes import Processes


@pytest.mark.timeout(180)
@pytest.mark.databases("sqlite", "postgresql")
async def test_every_message_is_one_event_however_often_the_process_is_killed(
    processes: Processes, database_url: str
) -> None:
    with any_broker("rabbitmq") as url:
        numbers = await ingested.run(processes, database_url, url, count=900, kills=2, pause=0.3, timeout=120)
    assert numbers["processes killed"] >= 2
