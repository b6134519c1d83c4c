"""Many processes publish inside their transactions; every reader sees exactly what was committed, in one order.

    python -m tests.faults.many_writers                     # 8 × 2,000 transactions on every database
    python -m tests.faults.many_writers --kill --database postgresql

Two nodes serve three live readers and one that leaves and resumes every 100 events. Meanwhile two programs publish
through the nodes: what was answered must be in the log, once, at the seq that was answered. With `--kill` one node is
killed in the middle and started again.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from eventbus_fastapi.client import ClientConfig, EventBusClient
from tests.faults import command
from tests.faults.followers import ClientFollower, Follower, SocketFollower, following, until_seen
from tests.faults.processes import Node, Process, Processes, prepare
from tests.faults.writer import make_things, read_things
from tests.waiting import eventually

PACE = 0.005
"""Seconds between two publishes of a publisher, so that it leaves the machine to the writers."""
LAST = "last"
"""Topic of the event that is published when everything else was answered: it must come last everywhere."""


class Publishers:
    """Publish through a node, and remember what was answered: seq by message_id."""

    def __init__(self) -> None:
        self.by_client: dict[str, int] = {}
        self.by_http: dict[str, int] = {}
        self.refused = 0
        """HTTP requests that met nobody."""
        self.unanswered = 0
        """HTTP requests without an answer, or with one that says to try again: the event may be there or not."""
        self.stopping = False

    async def use_client(self, node: Node) -> None:
        """One publish after the other; the client sees to it that each is answered."""
        config = ClientConfig(url=node.ws, reconnect_interval=0.1, max_reconnect_interval=0.5, proxy=None)
        async with EventBusClient(config) as client:
            while not self.stopping:
                receipt = await client.publish("direct.client", len(self.by_client))
                assert receipt.seq is not None
                self.by_client[str(receipt.message_id)] = receipt.seq
                await asyncio.sleep(PACE)

    async def use_http(self, node: Node) -> None:
        """One request after the other, none of them twice."""
        async with httpx.AsyncClient(base_url=node.http, trust_env=False) as client:
            while not self.stopping:
                event = {"topic": "direct.http", "payload": len(self.by_http)}
                try:
                    answer = await client.post("/publish", json=event)
                except httpx.ConnectError:
                    self.refused += 1
                    await asyncio.sleep(PACE)
                    continue
                except httpx.HTTPError:
                    answer = httpx.Response(503, json={"retry": True})
                if answer.status_code == 201:
                    self.by_http[answer.json()["message_id"]] = answer.json()["seq"]
                else:
                    assert answer.json()["retry"] is True, answer.text
                    self.unanswered += 1
                await asyncio.sleep(PACE)


async def run(
    processes: Processes,
    database_url: str,
    *,
    writers: int,
    count: int,
    pause: float = 0.01,
    kill: bool = False,
    timeout: float = 60.0,
) -> Mapping[str, Any]:
    """Run the case.

    Raises:
        AssertionError: a reader saw something else than what was committed, or an answer was lost.
    """
    await prepare(database_url)
    make_things(database_url)
    first, second = await asyncio.gather(
        processes.node(database_url, name="first"), processes.node(database_url, name="second")
    )
    resuming = SocketFollower(second.ws, leave_after=100)
    on_first, on_second = SocketFollower(first.ws), SocketFollower(second.ws, dialect="plain")
    readers: list[Follower] = [on_first, on_second, ClientFollower(second.ws), resuming]
    publishers = Publishers()
    began = time.monotonic()
    async with following(*readers):
        publishing = asyncio.gather(publishers.use_client(first), publishers.use_http(first))
        started = [_start_writer(processes, database_url, number, count, pause) for number in range(writers)]
        if kill:
            await eventually(lambda: len(on_second.seen) > writers * count // 4 or _have_ended(started), timeout)
            assert not _have_ended(started), "the writers were faster than the killer"
            first.kill()
            await asyncio.sleep(0.2)  # a node is away for some time
            await first.start()
        for process in started:
            assert await process.wait(timeout) == 0, process.text()
        written = time.monotonic() - began
        publishers.stopping = True
        await asyncio.wait_for(publishing, 30)
        await publish_last(second)
        await until_seen(readers, LAST, timeout)
    took = time.monotonic() - began

    things = read_things(database_url)
    log = await read_log(second)
    _check_log(log, things, publishers)
    for reader in readers:
        seen = [(event.seq, event.message_id) for event in reader.seen]
        assert seen == log, f"{reader.name}: {difference(seen, log)}"
        assert not reader.gaps, f"{reader.name} was told of gaps: {reader.gaps}"
    return {
        "transactions": writers * count,
        "committed with an event": len(things),
        "answered publishes through the first node": len(publishers.by_client) + len(publishers.by_http),
        "HTTP requests refused / without answer": f"{publishers.refused} / {publishers.unanswered}",
        "events in the log": len(log),
        "seen by each reader, in the same order": " / ".join(str(len(reader.seen)) for reader in readers),
        "connections of the one that leaves": resuming.connections,
        "connections of the reader on the first node": on_first.connections,
        "seconds until all was committed": written,
        "seconds until all was seen": took,
    }


def _start_writer(processes: Processes, database_url: str, number: int, count: int, pause: float) -> Process:
    arguments = ["-m", "tests.faults.writer", database_url, "--count", str(count), "--pause", str(pause)]
    arguments += ["--seed", str(number)] + (["--sync"] if number % 2 else [])
    return processes.python(f"writer-{number}", arguments)


def _have_ended(started: Sequence[Process]) -> bool:
    return all(process.exit_code is not None for process in started)


async def publish_last(node: Node) -> None:
    """Publish the event `LAST`, when everything else was answered."""
    async with httpx.AsyncClient(base_url=node.http, trust_env=False) as client:

        async def published() -> bool:
            return (await client.post("/publish", json={"topic": LAST, "payload": None})).is_success

        await eventually(published)


async def read_log(node: Node) -> list[tuple[int, str]]:
    """Return seq and message_id of every event, as history answers them."""
    log: list[tuple[int, str]] = []
    after: int | None = 0
    async with httpx.AsyncClient(base_url=node.http, trust_env=False, timeout=30) as client:
        while after is not None:
            page = (await client.get("/events", params={"after": after, "limit": 1_000})).json()
            log += [(event["seq"], event["message_id"]) for event in page["events"]]
            after = page["next"]
    return log


def _check_log(log: Sequence[tuple[int, str]], things: set[str], publishers: Publishers) -> None:
    seqs = [seq for seq, _ in log]
    assert seqs == list(range(1, len(log) + 1)), "the seqs are not dense"
    places = {message_id: seq for seq, message_id in log}
    assert len(places) == len(log), "an event is in the log twice"
    lost = things - places.keys()
    assert not lost, f"{len(lost)} committed events are missing"
    for answered in (publishers.by_client, publishers.by_http):
        wrong = {message_id for message_id, seq in answered.items() if places.get(message_id) != seq}
        assert not wrong, f"{len(wrong)} answered publishes are not where the answer said"
    others = places.keys() - things - publishers.by_client.keys() - publishers.by_http.keys()
    # The last event, and at most one for each request that was cut off.
    assert len(others) <= 1 + publishers.unanswered, f"{len(others)} events were never committed"


def difference(seen: Sequence[tuple[int, str]], log: Sequence[tuple[int, str]]) -> str:
    """Say where what a reader saw differs from the log."""
    place = next((place for place, pair in enumerate(zip(seen, log, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return f"saw {len(seen)} of {len(log)} events"
    return f"at event {place} it saw {seen[place : place + 3]}, the log has {log[place : place + 3]}"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--count", type=int, default=2_000, help="transactions of each writer")
    parser.add_argument("--pause", type=float, default=0.01, help="longest pause before a commit, seconds")
    parser.add_argument("--kill", action="store_true", help="kill a node in the middle and start it again")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(
        processes,
        database_url,
        writers=options.writers,
        count=options.count,
        pause=options.pause,
        kill=options.kill,
        timeout=900,
    )


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
