"""A member of a group in a network of its own, which works slowly:

    python -m tests.faults.member ws://10.200.1.1:20000/ws --ack-wait 3

It takes what it is given and acks nothing. On SIGUSR1 it acks all that it has, and goes on like a quick member. It
prints a line for each event that it `got`, and what became of its acks: `acked`, or `refused`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections import Counter

from eventbus_fastapi.client import ClientConfig, EventBusClient, GroupMessage
from eventbus_fastapi.errors import LeaseLost
from tests.faults.network import set_apart
from tests.faults.processes import Process

GROUP = "sharing"
TOPIC = "work"


def got(process: Process) -> Counter[int]:
    """Return how often a member got which seq."""
    return Counter(_seqs(process, "got"))


def answers(process: Process) -> tuple[list[int], list[int]]:
    """Return the seqs of its acks that counted, and of those that were refused."""
    return _seqs(process, "acked"), _seqs(process, "refused")


def _seqs(process: Process, word: str) -> list[int]:
    lines = (line.split() for line in process.text().splitlines())
    return [int(line[1]) for line in lines if len(line) == 2 and line[0] == word]


def _say(word: str, seq: int) -> None:
    print(word, seq, flush=True)  # noqa: T201


async def _ack(message: GroupMessage) -> None:
    try:
        await message.ack()
    except LeaseLost:
        _say("refused", message.seq)
    else:
        _say("acked", message.seq)


async def run(url: str, ack_wait: float, credit: int) -> None:
    is_quick = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, is_quick.set)

    async def work(message: GroupMessage) -> None:
        await is_quick.wait()
        await _ack(message)

    config = ClientConfig(url=url, reconnect_interval=0.1, max_reconnect_interval=0.5, open_timeout=2.0, proxy=None)
    async with EventBusClient(config) as client, asyncio.TaskGroup() as tasks:
        async for message in client.subscribe(TOPIC, group=GROUP, credit=credit, ack_wait=ack_wait, after=0):
            _say("got", message.seq)
            tasks.create_task(work(message))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--ack-wait", type=float, default=30.0)
    parser.add_argument("--credit", type=int, default=100)
    options = parser.parse_args()
    set_apart()
    asyncio.run(run(options.url, options.ack_wait, options.credit))
