"""`eventbus ingest`: a process that takes the messages of a broker in."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventbus_fastapi import EventBus
from tests.brokers import any_broker
from tests.processes import EVENTBUS, Process, environment
from tests.relay.sources import filled
from tests.waiting import eventually


@pytest.fixture(scope="module")
def nats_url() -> Iterator[str]:
    with any_broker("nats") as url:
        yield url


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/bus.db"


async def test_messages_are_events_until_sigterm(nats_url: str, database: str) -> None:
    async with filled("nats", nats_url) as stream:
        await stream.send_many(3)
        command = [*EVENTBUS, "ingest", "--from", nats_url, "--stream", stream.name, "--topic-template", "in.{source}"]
        async with Process.running(command, cwd=Path.cwd(), env=environment(EVENTBUS_DATABASE_URL=database)) as process:
            await process.line(f"as ingest.{stream.name}")
            async with EventBus(database) as bus:
                await eventually(lambda: _has(bus, 3))
                assert (await bus.get(3)).message.topic == f"in.{stream.name}"
            assert await process.interrupt(signal.SIGTERM) == 0
        assert await stream.left() == 0


async def _has(bus: EventBus, count: int) -> bool:
    return (await bus.head()).last_seq >= count


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--from", "http://127.0.0.1", "--queue", "orders"], "expected the URL of a broker"),
        (["--from", "NATS", "--stream", "nobody"], "JetStream has no stream 'nobody'"),
        (["--from", "NATS", "--stream", "nobody", "--topic", "a..b"], "segment 2 is empty"),
    ],
)
async def test_what_cannot_be_is_one_line(nats_url: str, database: str, arguments: list[str], reason: str) -> None:
    command = [*EVENTBUS, "ingest", *[nats_url if each == "NATS" else each for each in arguments]]
    variables = environment(EVENTBUS_DATABASE_URL=database, EVENTBUS_LOG_LEVEL="warning")
    async with Process.running(command, cwd=Path.cwd(), env=variables) as process:
        assert await process.end() == 1
        assert [line for line in process.lines if reason in line] == [line for line in process.lines if line]
