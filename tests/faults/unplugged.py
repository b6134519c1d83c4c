"""A WebSocket member of a group is unplugged: what it holds is with another member within the ack wait.

    python -m tests.faults.unplugged                        # ack wait 30 s, on every database; root, Linux
    python -m tests.faults.unplugged --ack-wait 3 --heartbeat 1

The member's network drops everything silently, in a namespace of its own; neither end is told. What it held is given to
the other member when the ack wait ends, and what is published meanwhile goes there at once. The member acks into the
void. When it is back, each of these acks is refused, and it is given events again. With a short heartbeat its
connection is given up meanwhile, and it comes back with a new one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.client import ClientConfig, EventBusClient, GroupSubscription
from eventbus_fastapi.settings import Settings
from tests.faults import command
from tests.faults.member import GROUP, TOPIC, answers, got
from tests.faults.network import Network, why_not
from tests.faults.processes import Node, Process, Processes, prepare
from tests.waiting import eventually

GRACE = 1.5
"""Seconds beyond the ack wait: from a retry that is due to its arrival."""


class Other:
    """The other member, which acks at once."""

    def __init__(self) -> None:
        self.taken: dict[int, tuple[int, float]] = {}
        """By seq: the attempt, and when it came."""

    @contextlib.asynccontextmanager
    async def working(self, node: Node, ack_wait: float) -> AsyncIterator[None]:
        async with EventBusClient(ClientConfig(url=node.ws, proxy=None)) as client:
            subscription = client.subscribe(TOPIC, group=GROUP, ack_wait=ack_wait, after=0)
            await subscription.wait_started()
            task = asyncio.create_task(self._work(subscription))
            yield
            assert not task.done(), task.exception()
            task.cancel()
            await asyncio.wait([task])

    async def _work(self, subscription: GroupSubscription) -> None:
        async for message in subscription:
            self.taken[message.seq] = (message.attempt, time.monotonic())
            await message.ack()


async def run(
    processes: Processes, database_url: str, *, count: int, ack_wait: float, heartbeat: float, grace: float = GRACE
) -> Mapping[str, Any]:
    """Unplug a member that holds some of `count` events, for a little longer than the ack wait.

    Raises:
        AssertionError: an event was not with the other member in time, or an ack counted though it was late.
    """
    await prepare(database_url)
    async with Network.opened(processes) as network, EventBus(settings=Settings(database_url=database_url)) as bus:
        node = await processes.node(database_url, listen_on=network.here, heartbeat=heartbeat)
        arguments = [node.ws, "--ack-wait", str(ack_wait), "--credit", str(count)]
        member = processes.python("member", ["-m", "tests.faults.member", *arguments])
        await network.connect(member)
        await _publish(bus, count)
        await eventually(lambda: len(got(member)) == count, 30)  # nobody else is there yet
        other = Other()
        async with other.working(node, ack_wait):
            network.unplug()
            unplugged = time.monotonic()
            held = set(got(member))
            meanwhile = await _publish(bus, count)
            await eventually(lambda: meanwhile <= other.taken.keys(), ack_wait + grace)
            await eventually(lambda: held <= other.taken.keys(), ack_wait + grace + 5)
            member.signal(signal.SIGUSR1)
            if heartbeat < ack_wait:
                await asyncio.sleep(3 * heartbeat)  # its connection is given up
            network.plug()
            plugged = time.monotonic()
            await eventually(lambda: sum(map(len, answers(member))) >= count, 60)
            returned = time.monotonic()
            acked, refused = answers(member)
            await _until_it_works(bus, member)
        waited = max(other.taken[seq][1] for seq in held) - unplugged
        dead = await bus.node.store.groups.dead_letters(await bus.node.store.groups.get(GROUP))
    await bus.engine.dispose()

    assert waited <= ack_wait + grace, f"the last came after {waited:.2f} s, the ack wait is {ack_wait:g} s"
    assert {other.taken[seq][0] for seq in held} == {2}, "the other member got something else than second attempts"
    assert {other.taken[seq][0] for seq in meanwhile} == {1}, "what was published meanwhile was not given at once"
    assert acked == [], f"{len(acked)} late acks counted"
    assert set(refused) == held
    assert dead == []
    return {
        "held when unplugged": len(held),
        f"with another after at most (s; asked ≤ {ack_wait:g} + {grace:g})": waited,
        "published meanwhile, given to the other at once": len(meanwhile),
        "late acks that counted / were refused": f"{len(acked)} / {len(refused)}",
        "unplugged for (s)": plugged - unplugged,
        "answers after the return within (s)": returned - plugged,
    }


async def _publish(bus: EventBus, count: int) -> set[int]:
    return {receipt.seq or 0 for receipt in await bus.publish_many([(TOPIC, number) for number in range(count)])}


async def _until_it_works(bus: EventBus, member: Process) -> None:
    """Publish until an ack of the member counts."""

    async def works() -> bool:
        await _publish(bus, 4)
        return bool(answers(member)[0])

    await eventually(works, 30)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=100, help="events that it holds")
    parser.add_argument("--ack-wait", type=float, default=30.0)
    parser.add_argument("--heartbeat", type=float, default=60.0)


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(
        processes, database_url, count=options.count, ack_wait=options.ack_wait, heartbeat=options.heartbeat
    )


if __name__ == "__main__":
    if (reason := why_not()) is not None:
        sys.exit(f"this case cannot run here: {reason}")
    command.run(_case, __doc__, _add_options)
