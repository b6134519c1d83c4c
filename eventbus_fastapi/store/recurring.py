"""The recurring events: what is published by a schedule, and when the next is due.

A tick is published by whoever locks the row of its event first: in one transaction the events of its ticks go to the
outbox and the row moves on to the next tick. So each tick is published once, whatever nodes there are and whenever one
dies, and nodes that find the row locked do not wait for it. The time is the database's.

A program and an operator may both say what a recurring event is. Of what a program says the row keeps a fingerprint;
said again, it changes nothing, so that what an operator has changed outlives a restart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID, uuid5

from sqlalchemy import BigInteger, Delete, Insert, Update, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi import codec
from eventbus_fastapi.cron import cron_of, time_text
from eventbus_fastapi.errors import RecurringNotFound, quote
from eventbus_fastapi.store.database import AnyRow
from eventbus_fastapi.store.reader import LogReader
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.statements import EVENT_FIELDS, Query, now_micros

T = TypeVar("T")

Missed = Literal["skip", "last", "all"]
"""What becomes of ticks that no node published in time: none of them, one event for all of them, an event for each."""

NAMED_BY = "recurring"
"""The key of an event's metadata that holds the name."""
SCHEDULED_AT = "scheduled_at"
"""The key of an event's metadata that holds the time of the tick, RFC 3339."""
MOST_DUE = 1_000
"""Recurring events that one look returns."""


class Declaration(NamedTuple):
    """What is said about a recurring event."""

    cron: str
    timezone: str
    topic: str
    key: str | None
    payload: bytes
    content_type: str
    metadata: str | None
    """A JSON object as text; None when there is none."""
    ttl: int | None
    """Microseconds from the moment an event enters the log."""
    missed: Missed

    @property
    def fingerprint(self) -> str:
        """The same for the same declaration, in every process."""
        text = json.dumps([value.hex() if isinstance(value, bytes) else value for value in self])
        return hashlib.sha256(text.encode()).hexdigest()

    def next_after(self, time: int) -> int:
        return cron_of(self.cron, self.timezone).after(time)


class RecurringEvent(NamedTuple):
    """A recurring event and where it is. Times are unix microseconds."""

    name: str
    declaration: Declaration
    next_at: int
    """The next tick; of one that is paused the one at which it was paused."""
    last_at: int | None
    """The last tick that was published; None: none was."""
    is_paused: bool
    is_declared: bool
    """Whether a program declares it, or has."""
    created_at: int
    updated_at: int


class Due(NamedTuple):
    """What is due, seen without a lock."""

    names: Sequence[str]
    next_at: int | None
    """The next tick of any that is not paused; None: there is none."""
    now: int


class Step(NamedTuple):
    """How far a recurring event moves."""

    ticks: Sequence[int]
    """Those to publish."""
    next_at: int


Decide = Callable[[RecurringEvent, int], Step]
"""Says what to do with one that is due, at a time."""
Change = Callable[[RecurringEvent], Declaration]


class RecurringEvents:
    """See the module's docstring."""

    def __init__(self, store: LogReader) -> None:
        self._store = store
        self.sql = store.tables.statements(RecurringStatements)

    # --- ticks ---

    async def look(self) -> Due:
        """Look, without a lock, what is due and when something will be."""
        async with self._store._translated(), self._store._reader() as connection:
            next_at, now = (await connection.execute(self.sql.next_due)).one()
            if next_at is None or next_at > now:
                return Due((), next_at, now)
            names = (await connection.execute(self.sql.due, {"now": now, "limit": MOST_DUE})).scalars().all()
        return Due(names, next_at, now)

    async def publish_due(self, name: str, decide: Decide) -> Step | None:
        """Publish the ticks of one that is due, and move it on; None: it is not due, or another node does it."""

        async def work(connection: AsyncConnection) -> Step | None:
            row = (await connection.execute(self.sql.lock_due, {"name": name})).first()
            if row is None:
                return None
            event, now = _event(row), row.now
            step = decide(event, now)
            if step.ticks:
                epoch = (await connection.execute(self._store.sql.read_head)).one().epoch
                drafts = [_outbox_row(epoch, event, tick) for tick in step.ticks]
                await connection.execute(self._store.sql.add_to_outbox, drafts)
            last_at = step.ticks[-1] if step.ticks else event.last_at
            await connection.execute(self.sql.set, {"of": name, "next_at": step.next_at, "last_at": last_at})
            return step

        return await self._store.transact(work)

    # --- what there is ---

    async def all(self) -> list[RecurringEvent]:
        """Return all, by name."""
        async with self._store._translated(), self._store._reader() as connection:
            return [_event(row) for row in await connection.execute(self.sql.read_all)]

    async def get(self, name: str) -> RecurringEvent:
        """Return one.

        Raises:
            RecurringNotFound: there is none of this name.
        """
        async with self._store._translated(), self._store._reader() as connection:
            return _found(name, (await connection.execute(self.sql.read, {"name": name})).first())

    async def put(self, name: str, declaration: Declaration, *, by_program: bool = False) -> RecurringEvent:
        """Make one, or have it become as declared; return it.

        What a program says `by_program` is compared with what one said last: the same changes nothing. A pause stays.
        The next tick is the first after now, if the expression or the time zone is another.
        """
        fingerprint = declaration.fingerprint

        async def work(connection: AsyncConnection) -> RecurringEvent:
            row = (await connection.execute(self.sql.lock, {"name": name})).first()
            now = (await connection.execute(self._store.sql.now)).scalar_one()
            if row is None:
                values = {
                    **declaration._asdict(),
                    "name": name,
                    "next_at": declaration.next_after(now),
                    "declared": fingerprint if by_program else None,
                    "created_at": now,
                    "updated_at": now,
                }
                await connection.execute(self.sql.add, values)
            elif by_program and row.declared == fingerprint:
                return _event(row)
            else:
                declared = fingerprint if by_program else row.declared
                await self._write(connection, _event(row), declaration, now, declared)
            return _event((await connection.execute(self.sql.read, {"name": name})).one())

        return await self._store.transact(work, retry_on_integrity=True)  # another node may have made it meanwhile

    async def change(self, name: str, change: Change) -> RecurringEvent:
        """Have one become what `change` makes of it."""

        async def work(connection: AsyncConnection, row: AnyRow, now: int) -> None:
            event = _event(row)
            await self._write(connection, event, change(event), now, row.declared)

        return await self._locked(name, work)

    async def pause(self, name: str) -> RecurringEvent:
        """Publish nothing of one until it is resumed."""

        async def work(connection: AsyncConnection, row: AnyRow, now: int) -> None:
            if row.paused_at is None:
                await connection.execute(self.sql.set, {"of": name, "paused_at": now, "updated_at": now})

        return await self._locked(name, work)

    async def resume(self, name: str) -> RecurringEvent:
        """End a pause. The next tick is the first after now: those of the pause were not missed."""

        async def work(connection: AsyncConnection, row: AnyRow, now: int) -> None:
            if row.paused_at is not None:
                next_at = _event(row).declaration.next_after(now)
                resumed = {"paused_at": None, "next_at": next_at, "updated_at": now}
                await connection.execute(self.sql.set, {"of": name, **resumed})

        return await self._locked(name, work)

    async def delete(self, name: str) -> RecurringEvent:
        """Forget one; return how it was."""

        async def work(connection: AsyncConnection) -> RecurringEvent:
            event = _found(name, (await connection.execute(self.sql.lock, {"name": name})).first())
            await connection.execute(self.sql.delete, {"of": name})
            return event

        return await self._store.transact(work)

    # --- parts ---

    async def _locked(
        self, name: str, work: Callable[[AsyncConnection, AnyRow, int], Awaitable[None]]
    ) -> RecurringEvent:
        """Do something to one under its lock; return how it is then."""

        async def locked(connection: AsyncConnection) -> RecurringEvent:
            row = (await connection.execute(self.sql.lock, {"name": name})).first()
            _found(name, row)
            assert row is not None
            await work(connection, row, (await connection.execute(self._store.sql.now)).scalar_one())
            return _event((await connection.execute(self.sql.read, {"name": name})).one())

        return await self._store.transact(locked)

    async def _write(
        self, connection: AsyncConnection, event: RecurringEvent, wanted: Declaration, now: int, declared: str | None
    ) -> None:
        same_ticks = (wanted.cron, wanted.timezone) == event.declaration[:2]
        values = {
            **wanted._asdict(),
            "of": event.name,
            "next_at": event.next_at if same_ticks else wanted.next_after(now),
            "declared": declared,
            "updated_at": now,
        }
        await connection.execute(self.sql.set, values)


class RecurringStatements:
    """The statements over the table of recurring events. The parameter `of` is a name."""

    def __init__(self, tables: Tables) -> None:
        table = tables.recurring
        waits = table.c.paused_at.is_(None)
        this = table.c.name == bindparam("of")
        self.read_all: Query = select(table).order_by(table.c.name)
        self.read: Query = select(table).where(table.c.name == bindparam("name"))
        self.lock: Query = self.read.with_for_update()
        self.next_due: Query = select(select(func.min(table.c.next_at)).where(waits).scalar_subquery(), now_micros())
        self.due: Query = (
            select(table.c.name)
            .where(waits, table.c.next_at <= bindparam("now", type_=BigInteger))
            .order_by(table.c.next_at, table.c.name)
            .limit(bindparam("limit"))
        )
        self.lock_due: Query = (
            select(table, now_micros().label("now"))
            .where(table.c.name == bindparam("name"), waits, table.c.next_at <= now_micros())
            .with_for_update(skip_locked=True)
        )
        self.add: Insert = insert(table).inline()
        self.set: Update = update(table).where(this)
        """The parameters are what is set."""
        self.delete: Delete = delete(table).where(this)


def metadata_at(event: str, metadata: str | None, tick: int) -> str | None:
    """Return the metadata of an event that is published for a tick.

    Raises:
        InvalidEvent: they are too much together.
    """
    given = {} if metadata is None else codec.load_object(metadata)
    return codec.encode_metadata({**given, NAMED_BY: event, SCHEDULED_AT: time_text(tick)})


def _outbox_row(epoch: UUID, event: RecurringEvent, tick: int) -> dict[str, Any]:
    """The event of a tick. Its id is the tick's own: what is published twice, even by hand, is in the log once."""
    said = event.declaration
    fields = {name: getattr(said, name) for name in EVENT_FIELDS if name != "message_id"}
    return {
        **fields,
        "message_id": uuid5(epoch, f"{tick} {event.name}"),
        "metadata": metadata_at(event.name, said.metadata, tick),
        "ttl": said.ttl,
    }


def _found(name: str, row: AnyRow | None) -> RecurringEvent:
    if row is None:
        raise RecurringNotFound(f"no recurring event {quote(name)}")
    return _event(row)


def _event(row: AnyRow) -> RecurringEvent:
    return RecurringEvent(
        row.name,
        Declaration(*(getattr(row, name) for name in Declaration._fields)),
        row.next_at,
        row.last_at,
        row.paused_at is not None,
        row.declared is not None,
        row.created_at,
        row.updated_at,
    )
