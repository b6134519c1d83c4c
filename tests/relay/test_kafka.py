"""What a relay makes of the futures of a producer of Kafka: without any Kafka."""

from __future__ import annotations

import asyncio

from eventbus_fastapi.relay.kafka import _outcome_of


async def test_a_future_that_is_cancelled_as_its_producer_ends_is_a_lost_confirm() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    assert _outcome_of(future).verdict == "unknown"
