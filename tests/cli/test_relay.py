"""`eventbus relay`: hands events on to a broker, in a process of its own."""

from __future__ import annotations

import builtins
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from eventbus_fastapi import EventBus
from tests.brokers import any_broker
from tests.cli.command_line import Command, url_in
from tests.processes import EVENTBUS, Process, environment
from tests.waiting import eventually


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with any_broker("redis") as url:
        yield url


async def test_events_are_relayed_until_sigterm_and_the_next_process_goes_on(tmp_path: Path, redis_url: str) -> None:
    topic = f"test-{uuid4().hex[:12]}.made"
    command = [*EVENTBUS, "relay", "--to", redis_url, "--pattern", topic, "--name", "cache", "--from", "earliest"]
    database_url = url_in(tmp_path)
    variables = environment(EVENTBUS_DATABASE_URL=database_url)
    client: Any = Redis.from_url(redis_url, decode_responses=True)
    async with EventBus(database_url) as bus:
        for last in (2, 4):
            await bus.publish_many([(topic, 1), ("other", 1), (topic, 2)])
            async with Process.running(command, cwd=tmp_path, env=variables) as process:
                await process.line(f"relaying {topic} to {redis_url} as cache")

                async def has_all(last: int = last) -> bool:
                    return bool(await client.xlen(topic) == last)

                await eventually(has_all, 30)
                assert await process.interrupt(signal.SIGTERM) == 0
                assert "Traceback" not in process.output
        assert [entry for entry, _ in await client.xrange(topic)] == ["1-0", "3-0", "4-0", "6-0"]
        figures = (await bus.groups.group("cache")).figures
        assert (figures.lag, figures.in_flight, figures.retries) == (0, 0, 0)
    await client.delete(topic)
    await client.aclose()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--to", "mqtt://user:secret@127.0.0.1"), "expected the URL of a broker, nats://, amqp://, redis://"),
        (("--to", "nats://127.0.0.1", "--subject-template", "{seq}"), "expected {topic} or {key}, got {seq}"),
        (("--to", "nats://127.0.0.1", "--subject-template", "a b"), "is no subject of NATS"),
        (("--to", "nats://127.0.0.1", "--exchange", "x"), "a relay into NATS has no option exchange"),
        (("--to", "nats://127.0.0.1", "--create-stream"), "needs its name"),
        (("--to", "redis://127.0.0.1", "--pattern", "a..b"), "invalid pattern 'a..b'"),
        (("--to", "redis://127.0.0.1", "--name", ""), "name"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    eventbus: Command, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    done = eventbus("relay", *options, "--database-url", url_in(tmp_path))
    assert done.code in (1, 2)
    assert reason in done.err
    assert "Traceback" not in done.err
    assert "secret" not in done.err


def test_without_the_extra_the_error_says_what_to_install(
    eventbus: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "faststream":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("importlib.import_module", refuse)
    done = eventbus("relay", "--to", "nats://127.0.0.1", "--database-url", url_in(tmp_path))
    assert done.code == 1
    assert "pip install 'eventbus-fastapi[relay]'" in done.error
