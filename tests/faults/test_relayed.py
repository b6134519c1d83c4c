"""Relays that are killed, and brokers that are stopped; see `relayed`, which runs at any size."""

from __future__ import annotations

import pytest

from tests.brokers import Kind
from tests.faults import relayed
from tests.faults.processes import Processes


@pytest.mark.timeout(300)
@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("kind", ["nats", "redis", "rabbitmq"])
async def test_nothing_is_lost_order_is_kept_and_doubles_have_a_reason(
    processes: Processes, database_url: str, kind: Kind
) -> None:
    await relayed.run(processes, database_url, kind=kind, count=4_000, kills=2, stops=1, lease=1.0, timeout=120)


@pytest.mark.timeout(180)
@pytest.mark.databases("postgresql")
async def test_of_two_relays_of_a_name_the_other_takes_over_within_the_lease(
    processes: Processes, database_url: str
) -> None:
    await relayed.take_over(processes, database_url, lease=1.0, timeout=60)
