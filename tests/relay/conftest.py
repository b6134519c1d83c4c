"""Fixtures of relays: a bus in a file, and brokers that tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from eventbus_fastapi import EventBus
from tests.brokers import any_broker


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[EventBus]:
    """A started bus on a file of its own."""
    async with EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db", lease=1.0, max_payload=2_000_000) as bus:
        yield bus


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    with any_broker("nats") as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with any_broker("redis") as url:
        yield url


@pytest.fixture(scope="session")
def rabbitmq_url() -> Iterator[str]:
    with any_broker("rabbitmq") as url:
        yield url
