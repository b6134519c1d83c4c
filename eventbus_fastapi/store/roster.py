"""The roster: which processes serve queues, and when each was last seen.

A process writes its row every few seconds and removes it at its end. One that was killed leaves its row behind: whoever
looks removes it after some minutes. All times are the database's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi.store.database import AnyRow
from eventbus_fastapi.store.queue_statements import QueueStatements
from eventbus_fastapi.store.reader import LogReader

SILENCE = 15.0
"""Seconds after which a process that was not seen is taken for dead."""
FORGET_AFTER = 300.0
"""Seconds after which the row of one that was not seen is removed."""


class Serving(NamedTuple):
    """How a process serves a queue."""

    workers: int
    """Events that it handles at the same time."""
    busy: int
    """Events that it is handling."""
    is_paused: bool
    groups: tuple[str, ...]


class WorkerStatus(NamedTuple):
    """A process that serves queues."""

    id: str
    """The owner of its leases."""
    host: str
    pid: int
    started_at: int
    """Unix microseconds."""
    seen_at: int
    """Unix microseconds."""
    age: float
    """Seconds since it was seen."""
    queues: Mapping[str, Serving]

    @property
    def is_alive(self) -> bool:
        """Whether it was seen lately."""
        return self.age <= SILENCE


class Roster:
    """See the module's docstring."""

    def __init__(self, store: LogReader) -> None:
        self._store = store
        self._sql = store.tables.statements(QueueStatements)

    async def see(self, worker_id: str, queues: Mapping[str, Serving], *, host: str, pid: int, age: float) -> None:
        """Write that a process lives, which started `age` seconds ago."""
        parameters = {"worker": worker_id, "served": _text(queues)}

        async def work(connection: AsyncConnection) -> None:
            if (await connection.execute(self._sql.see_worker, parameters)).rowcount == 0:
                started = {"host": host, "pid": pid, "age": round(age * 1_000_000)}
                await connection.execute(self._sql.add_worker, {**parameters, **started})

        await self._store.transact(work, retry_on_integrity=True)

    async def forget(self, worker_id: str) -> None:
        """Remove the row of a process that ends."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self._sql.remove_worker, {"worker": worker_id})

        await self._store.transact(work)

    async def all(self) -> list[WorkerStatus]:
        """Return the processes that are known, by host and start; remove those that were silent for too long."""
        async with self._store._translated(), self._store._reader() as connection:
            rows = (await connection.execute(self._sql.read_workers)).all()
        workers = [_worker(row) for row in rows]
        known = [worker for worker in workers if worker.age <= FORGET_AFTER]
        if len(known) < len(workers):
            await self._forget_silent()
        return known

    async def _forget_silent(self) -> None:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self._sql.remove_silent, {"age": round(FORGET_AFTER * 1_000_000)})

        await self._store.transact(work)


def _text(queues: Mapping[str, Serving]) -> str:
    return json.dumps(
        {
            name: {"workers": each.workers, "busy": each.busy, "paused": each.is_paused, "groups": each.groups}
            for name, each in queues.items()
        }
    )


def _worker(row: AnyRow) -> WorkerStatus:
    age = (row.now - row.seen_at) / 1_000_000
    return WorkerStatus(row.id, row.host, row.pid, row.started_at, row.seen_at, age, _queues(row.queues))


def _queues(text: str) -> dict[str, Serving]:
    read: dict[str, dict[str, Any]] = json.loads(text)
    return {
        name: Serving(each["workers"], each["busy"], each["paused"], tuple(each["groups"]))
        for name, each in read.items()
    }
