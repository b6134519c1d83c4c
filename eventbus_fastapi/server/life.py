"""The life of a connection, as those see it that work for it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from eventbus_fastapi.auth import Principal
from eventbus_fastapi.server.outlet import Ending
from eventbus_fastapi.server.tasks import Work


class Life(Protocol):
    id: str

    @property
    def principal(self) -> Principal:
        """Who the client is now."""

    def start(self, work: Work, name: str = ...) -> asyncio.Task[None]:
        """Start a task that ends with the connection at the latest. A fault in it ends the connection."""

    def end(self, ending: Ending | None) -> None:
        """End the connection; None: the peer is gone. The first reason counts."""

    def expel(self, ending: Ending) -> None:
        """End the connection of a client that may not stay: from now on nothing is sent, but the goodbye."""
