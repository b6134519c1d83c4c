"""Nodes that serve many, on databases that many nodes share."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pymysql
import pytest
from sqlalchemy import make_url
from websockets.asyncio.client import ClientConnection, connect

from eventbus_fastapi.client import ClientConfig, EventBusClient
from tests.databases import as_sync, kind_of
from tests.faults.followers import V1, SocketFollower, following, until_seen
from tests.faults.many_writers import LAST, publish_last, read_log
from tests.faults.processes import Processes, prepare
from tests.waiting import eventually

SOCKETS = 300
POOL_SIZE = 3
LISTENERS = {"postgresql": 1, "mysql": 0}


@contextlib.asynccontextmanager
async def many_sockets(url: str, count: int) -> AsyncIterator[list[ClientConnection]]:
    """Open sockets, a few at a time, each with a subscription that replays the log."""
    gate = asyncio.Semaphore(20)

    async def open_one(stack: contextlib.AsyncExitStack) -> ClientConnection:
        async with gate:
            socket = await stack.enter_async_context(
                connect(url, subprotocols=[V1], compression=None, proxy=None, open_timeout=60)
            )
            await socket.send(json.dumps({"type": "subscribe", "pattern": "#", "after": 0}))
            return socket

    async with contextlib.AsyncExitStack() as stack:
        yield list(await asyncio.gather(*(open_one(stack) for _ in range(count))))


WATCHER = "watcher"
"""Who counts is not counted, nor one that counted before and has not ended yet."""


def sessions(database_url: str) -> list[tuple[Any, ...]]:
    """Return the sessions that a database server has for this database, with what they are doing."""
    url = make_url(database_url)
    if kind_of(database_url) == "postgresql":
        dsn = as_sync(database_url).replace("+psycopg", "")
        with psycopg.connect(dsn, autocommit=True, application_name=WATCHER) as connection:
            return connection.execute(
                "SELECT pid, state FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' AND application_name <> %s",
                [WATCHER],
            ).fetchall()
    with (
        contextlib.closing(
            pymysql.connect(host=url.host, port=url.port or 3306, user=url.username, password=url.password or "")
        ) as mysql,
        mysql.cursor() as cursor,
    ):
        cursor.execute("SELECT id, command FROM information_schema.processlist WHERE db = %s", (url.database,))
        return list(cursor.fetchall())


@pytest.mark.databases("postgresql", "mysql")
async def test_a_node_needs_no_more_connections_for_three_hundred_sockets(
    processes: Processes, database_url: str
) -> None:
    await prepare(database_url)
    node = await processes.node(database_url, pool_size=POOL_SIZE)
    most = POOL_SIZE + LISTENERS[kind_of(database_url)]
    counts: list[int] = []

    async def watch() -> None:
        while True:
            counts.append(len(await asyncio.to_thread(sessions, database_url)))
            await asyncio.sleep(0.05)

    async with EventBusClient(ClientConfig(url=node.ws, proxy=None)) as client:
        await client.publish_many([("before", number) for number in range(500)])
        watching = asyncio.create_task(watch())
        async with many_sockets(node.ws, SOCKETS) as sockets:
            await asyncio.gather(*(client.publish("after", number) for number in range(100)))
            async with asyncio.timeout(60):
                await asyncio.gather(*(_until_seq(socket, 600) for socket in sockets))
        watching.cancel()

    assert len(counts) > 3
    assert max(counts) <= most
    assert all(state != "idle in transaction" for _, state in sessions(database_url))


async def _until_seq(socket: ClientConnection, seq: int) -> None:
    while True:
        frame = json.loads(await socket.recv())
        for one in frame if isinstance(frame, list) else [frame]:
            if one.get("seq") == seq and one["type"] == "event":
                return


@pytest.mark.databases("sqlite")
async def test_two_workers_on_one_file_are_one_bus(processes: Processes, database_url: str) -> None:
    node = await processes.node(database_url, workers=2)
    followers = [SocketFollower(node.ws) for _ in range(8)]
    clients = [EventBusClient(ClientConfig(url=node.ws, proxy=None)) for _ in range(8)]
    async with following(*followers), contextlib.AsyncExitStack() as stack:
        for client in clients:
            await stack.enter_async_context(client)

        answers = await asyncio.gather(*(_publish(client, 50) for client in clients))
        await publish_last(node)
        await until_seen(followers, LAST, 30)

    log = await read_log(node)
    assert sorted(seq for seqs in answers for seq in seqs) == [seq for seq, _ in log[:-1]]
    for follower in followers:
        assert [(event.seq, event.message_id) for event in follower.seen] == log
    for seqs in answers:
        assert seqs == sorted(seqs)


async def _publish(client: EventBusClient, count: int) -> list[int]:
    return [(await client.publish("a", number)).seq or 0 for number in range(count)]


@pytest.mark.databases("postgresql", "mysql")
async def test_a_node_that_hears_nothing_of_another_finds_its_events_by_looking(
    processes: Processes, database_url: str
) -> None:
    await prepare(database_url)
    publishing = await processes.node(database_url, name="publishing")
    reading = await processes.node(database_url, name="reading", poll_only=True)
    follower = SocketFollower(reading.ws)
    async with following(follower), EventBusClient(ClientConfig(url=publishing.ws, proxy=None)) as client:
        for number in range(1, 11):
            await client.publish("a", number)
            await eventually(lambda: len(follower.seen) == number)  # noqa: B023 - it is done with before the next
