"""What operators have said about queues: that one is paused, or served by another number of workers.

A queue of which nothing is said has no row: it is served as its program and deployment say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Insert, Update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi.errors import InvalidQueue, quote
from eventbus_fastapi.names import MAX_NAME, is_name
from eventbus_fastapi.settings import MOST_WORKERS
from eventbus_fastapi.store.queue_statements import QueueStatements
from eventbus_fastapi.store.reader import LogReader


class Control(NamedTuple):
    """What operators have said about a queue."""

    workers: int | None
    """Events that each process handles at the same time; None: as the process says."""
    is_paused: bool


class Queues:
    """See the module's docstring."""

    def __init__(self, store: LogReader) -> None:
        self._store = store
        self._sql = store.tables.statements(QueueStatements)

    async def controls(self) -> dict[str, Control]:
        """Return what is said of queues, by name; one of which nothing is said is not among them."""
        async with self._store._translated(), self._store._reader() as connection:
            rows = (await connection.execute(self._sql.read_queues)).all()
        return {name: Control(workers, bool(is_paused)) for name, workers, is_paused in rows}

    async def pause(self, name: str) -> None:
        """Have nothing more taken for a queue, in any process. What runs goes on.

        Raises:
            InvalidQueue: there cannot be such a queue.
        """
        await self._say(self._sql.pause_queue, self._sql.add_paused, {"queue": check_queue_name(name)})

    async def resume(self, name: str) -> None:
        """End a pause."""
        await self._say(self._sql.resume_queue, None, {"queue": check_queue_name(name)})

    async def scale(self, name: str, workers: int | None) -> None:
        """Have each process that serves a queue handle so many events at the same time; None: as the process says.

        Raises:
            InvalidQueue: there cannot be such a queue, or not so many workers.
        """
        check_queue_name(name)
        if workers is not None and (type(workers) is not int or not 1 <= workers <= MOST_WORKERS):
            raise InvalidQueue(f"workers must be an integer from 1 to {MOST_WORKERS:,} or None, got {quote(workers)}")
        add = None if workers is None else self._sql.add_scaled
        await self._say(self._sql.scale_queue, add, {"queue": name, "count": workers})

    async def _say(self, change: Update, add: Insert | None, parameters: Mapping[str, Any]) -> None:
        async def work(connection: AsyncConnection) -> None:
            if (await connection.execute(change, parameters)).rowcount == 0 and add is not None:
                await connection.execute(add, parameters)
            if add is None:
                await connection.execute(self._sql.remove_queue, {"queue": parameters["queue"]})

        await self._store.transact(work, retry_on_integrity=True)  # two may say the first word at the same time


def check_queue_name(name: object) -> str:
    """Return the name of a queue: 1 to 255 bytes without spaces and control characters.

    Raises:
        InvalidQueue: it cannot be one.
    """
    if not isinstance(name, str) or not is_name(name):
        expected = f"the name of a queue must be 1 to {MAX_NAME} bytes without spaces and control characters"
        raise InvalidQueue(f"{expected}, got {quote(name)}")
    return str.__str__(name)
