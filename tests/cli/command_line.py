"""What the tests of the command share: a command line and what it did, and a bus to ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from eventbus_fastapi import EventBus, Message
from eventbus_fastapi.store.group import Again, Death, Ended, Ending, Settlement


class Done(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        assert self.out == ""
        assert self.err.count("\n") == 1
        assert self.err.startswith("error: ")
        assert "Traceback" not in self.err
        return self.err.rstrip("\n")


Command = Callable[..., Done]


class Server(NamedTuple):
    bus: EventBus
    url: str

    async def log(self) -> list[Message]:
        return (await self.bus.node.history(["#"], 0, 1_000)).messages


class Beside(NamedTuple):
    """A bus that runs, and the command on its database."""

    bus: EventBus
    command: Command
    database_url: str

    async def run(self, *arguments: str) -> Done:
        return await asyncio.to_thread(self.command, *arguments, "--database-url", self.database_url)

    async def kill(self, group: str, *topics: str) -> None:
        """Publish events of these topics, which die in a group at once."""
        await self.settle(group, *topics, dead=True)

    async def settle(self, name: str, *topics: str, dead: bool) -> None:
        """Publish events that fail in a group: they die, or wait for an hour."""
        messages, settlement = await self._claim(name, *topics)
        if dead:
            settlement = settlement._replace(dead=[Death(message.seq, 1, [ERROR]) for message in messages])
        else:
            again = [Again(message.seq, 1, 3_600_000_000, [ERROR]) for message in messages]
            settlement = settlement._replace(again=again)
        await self.bus.node.store.groups.settle([settlement])

    async def finish(self, name: str, *topics: str, outcome: Ended = "acked") -> None:
        """Publish events that end in a group, which keeps that."""
        messages, settlement = await self._claim(name, *topics)
        endings = [Ending(message, outcome, 2, 250_000, "one", [ERROR]) for message in messages]
        done = settlement._replace(done=[message.seq for message in messages], endings=endings)
        await self.bus.node.store.groups.settle([done])

    async def _claim(self, name: str, *topics: str) -> tuple[list[Message], Settlement]:
        await self.bus.publish_many([(topic, {"n": 1}) for topic in topics])
        groups, store = self.bus.node.store.groups, self.bus.node.store
        group = await groups.ensure(name, ["#"], after=0)
        messages = (await store.read(group.cursor, 1_000)).messages
        claim = await groups.claim(group, messages, up_to=messages[-1].seq, owner="one", lease=60)
        assert claim is not None
        return messages, Settlement(group.id, claim.token, pending=())


ERROR = {
    "attempt": 1,
    "type": "httpx.ConnectError",
    "message": "refused\nby peer",
    "traceback": "Traceback:\n  line 1\nhttpx.ConnectError: refused",
    "time": 1_767_225_600_000_000,
    "node": "web-1",
}


def url_in(directory: Path) -> str:
    return f"sqlite+aiosqlite:///{directory}/eventbus.db"
