"""`OutboxForwarder`: carries the outbox of a database to a bus elsewhere, over WebSocket.

What waits is in the outbox, so the client keeps nothing: a connection that is lost fails the batch that is under way,
and the forwarder reads it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from eventbus_fastapi.client.client import EventBusClient
from eventbus_fastapi.client.config import ClientConfig, config_of
from eventbus_fastapi.client.token import Token
from eventbus_fastapi.errors import ConnectionRefused
from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.outbox import Outbox
from eventbus_fastapi.pipeline import service
from eventbus_fastapi.pipeline.forwarder import Forwarder
from eventbus_fastapi.telemetry.meters import Meters


class OutboxForwarder:
    """Forwards in the background, from `async with` (or `start()`) on, until it is closed.

        async with Outbox(engine) as outbox, OutboxForwarder(outbox, "wss://bus.example/ws", token=…):
            ...

    A bus or a database that is away is waited for, and said once in the log. Of several forwarders of one outbox, in
    whichever process, one works. `eventbus forward` is the same as a command.

    Args:
        outbox: what is forwarded.
        config: where the bus is, as for `EventBusClient`. Its principal needs the right to publish, no other.
        token: says who it is.

    Raises:
        SettingsError: `config` cannot be used.
    """

    def __init__(self, outbox: Outbox, config: ClientConfig | str | None = None, *, token: Token | None = None) -> None:
        self.outbox = outbox
        self.config = replace(config_of(config, token), max_retries=0)
        self.meters = Meters()
        self._client: EventBusClient | None = None
        self._forwarder: Forwarder | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_forwarding(self) -> bool:
        """Whether this is the one that works, as far as it knows; else it waits for another one's end."""
        return self._forwarder is not None and self._forwarder.holds

    async def start(self) -> None:
        """Begin. Starting twice is once."""
        if self._task is None:
            self._forwarder = self.outbox.forwarder(self._deliver, meters=self.meters)
            self._task = service.start(self._forwarder, self.meters.failures)

    async def close(self) -> None:
        """Let the batch that is under way end, two seconds at most, and another forwarder take over."""
        if self._task is not None and self._forwarder is not None:
            task, self._task = self._task, None
            await service.end({self._forwarder: task})
            await self._forwarder.close()
            await self._disconnect()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _deliver(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        if self._client is None:
            self._client = EventBusClient(self.config)
        try:
            return await self._client.publish_drafts(drafts)
        except ConnectionRefused:  # a client does not try again after that; the next one may have better luck
            await self._disconnect()
            raise

    async def _disconnect(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()
