"""What the tests of the command share: a command line and what it did, and a bus to ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from eventbus_fastapi import EventBus, Message


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


def url_in(directory: Path) -> str:
    return f"sqlite+aiosqlite:///{directory}/eventbus.db"
