"""Programs and nodes end, killed or told to, and the others go on."""

from __future__ import annotations

import asyncio

import pytest

from eventbus_fastapi.client import ClientConfig, EventBusClient
from tests.faults.followers import ClientFollower, Follower, SocketFollower, following, until_seen
from tests.faults.many_writers import LAST, publish_last, read_log
from tests.faults.processes import Processes, prepare
from tests.faults.raw_socket import RawSocket
from tests.faults.writer import make_things, read_things
from tests.waiting import eventually


async def test_a_publisher_that_is_killed_has_published_what_it_committed(
    processes: Processes, database_url: str
) -> None:
    await prepare(database_url)
    make_things(database_url)
    node = await processes.node(database_url)
    follower = SocketFollower(node.ws)
    async with following(follower):
        arguments = ["-m", "tests.faults.writer", database_url, "--count", "1000000", "--pause", "0.002"]
        writer = processes.python("writer", arguments)
        await eventually(lambda: len(follower.seen) >= 100, 30)

        writer.kill()
        await publish_last(node)
        await until_seen([follower], LAST, 30)

    assert {event.message_id for event in follower.seen[:-1]} == read_things(database_url)
    assert [(event.seq, event.message_id) for event in follower.seen] == await read_log(node)


@pytest.mark.databases("sqlite")
async def test_of_a_subscriber_that_is_killed_nothing_is_left(processes: Processes, database_url: str) -> None:
    node = await processes.node(database_url)
    other = SocketFollower(node.ws)
    async with following(other), EventBusClient(ClientConfig(url=node.ws, proxy=None)) as client:
        await client.publish("a", 1)
        before = node.process.descriptors()
        command = ["-m", "eventbus_fastapi.cli", "tail", "#", "--from", "earliest", "--url", node.http]
        tails = [processes.python(f"tail-{number}", command) for number in range(3)]
        await eventually(lambda: all("  a  1" in tail.text() for tail in tails), 30)
        assert node.process.descriptors() == before + len(tails)

        for tail in tails:
            tail.kill()
        await client.publish("a", 2)

        await eventually(lambda: len(other.seen) == 2)
        await eventually(lambda: node.process.descriptors() == before)


@pytest.mark.databases("sqlite", "postgresql")
async def test_clients_of_a_node_that_is_told_to_end_come_back_and_miss_nothing(
    processes: Processes, database_url: str
) -> None:
    await prepare(database_url)
    node = await processes.node(database_url, by="serve")
    sockets = [SocketFollower(node.ws), SocketFollower(node.ws, dialect="plain")]
    followers: list[Follower] = [*sockets, ClientFollower(node.ws)]
    receipts: list[int | None] = []
    is_over = asyncio.Event()

    async def publish() -> None:
        config = ClientConfig(url=node.ws, reconnect_interval=0.05, max_reconnect_interval=0.2, proxy=None)
        async with EventBusClient(config) as client:
            while not is_over.is_set():
                receipts.append((await client.publish("load", len(receipts))).seq)

    async with following(*followers):
        publishing = asyncio.create_task(publish())
        for _ in range(2):
            wanted = len(receipts) + 100
            await eventually(lambda: len(receipts) >= wanted, 30)  # noqa: B023 - it is done with before the next
            assert await node.process.terminate() == 0
            await node.start()
        wanted = len(receipts) + 100
        await eventually(lambda: len(receipts) >= wanted, 30)
        is_over.set()
        await publishing
        await publish_last(node)
        await until_seen(followers, LAST, 30)

    log = await read_log(node)
    assert receipts == [seq for seq, _ in log[:-1]]
    for follower in followers:
        assert [(event.seq, event.message_id) for event in follower.seen] == log
    for socket in sockets:
        assert socket.codes == [1012, 1012]


@pytest.mark.databases("sqlite")
async def test_a_client_that_does_not_read_does_not_keep_a_node_from_ending(
    processes: Processes, database_url: str
) -> None:
    node = await processes.node(database_url, by="serve", send_timeout=60)
    slow = RawSocket(node.ws, "v1")
    slow.send(type="subscribe", pattern="#")
    async with EventBusClient(ClientConfig(url=node.ws, proxy=None)) as client:
        for _ in range(100):
            await client.publish_many([("a", "x" * 1_000) for _ in range(100)])

    assert await node.process.terminate() == 0
    slow.close()
