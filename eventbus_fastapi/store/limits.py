"""Limits that hold across all nodes: how often attempts may begin, and how many events a group may have in flight.

A rate limit has a name, and groups that name it share it. It keeps when permits were given lately, and gives no more
than `permits` in any `period`, wherever the period begins. A permit is an attempt: it is taken in the transaction that
claims the event, under the lock of the limit's row, so nothing is given twice and nothing is lost with a node.

The times of grants are kept in at most a hundred steps per period, each as if all of it was given at its end: a limit
is never exceeded, and may be short of itself by a hundredth of its period.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi.backoff import seconds
from eventbus_fastapi.errors import InvalidGroup, NotFound, quote
from eventbus_fastapi.store.database import Collision
from eventbus_fastapi.store.group import Group
from eventbus_fastapi.store.group_name import check_group_name
from eventbus_fastapi.store.limit_statements import LimitStatements
from eventbus_fastapi.store.reader import LogReader
from eventbus_fastapi.store.seqs import decode_seqs

STEPS = 100
"""Into so many parts a period is divided at most."""
LOOK_AGAIN = 100_000
"""Microseconds after which there may be room in a group whose events others have in flight."""
MAX_PERMITS = 1_000_000
MAX_PERIOD = 31 * 86_400 * 1_000_000
"""Longest period, microseconds: a month."""


class RateLimit(NamedTuple):
    """How often something may begin."""

    name: str
    permits: int
    """Attempts that may begin in any period."""
    period: int
    """Microseconds."""


class Room(NamedTuple):
    """How many events may be taken now."""

    events: int
    wait: int = 0
    """Microseconds until there may be room, where there is none."""

    def within(self, other: Room) -> Room:
        """Return what both leave."""
        return Room(min(self.events, other.events), max(self.wait, other.wait))


class Grant(NamedTuple):
    """Permits that were given within a short time."""

    first: int
    last: int
    permits: int


class Limits:
    """See the module's docstring."""

    def __init__(self, store: LogReader) -> None:
        self._store = store
        self.sql = store.tables.statements(LimitStatements)

    async def declare(self, limit: RateLimit) -> None:
        """Make a limit, or change it; what was granted stays granted.

        Raises:
            InvalidGroup: it cannot be a limit.
        """
        check_limit(limit)

        async def add(connection: AsyncConnection) -> None:
            if (await connection.execute(self.sql.read, {"name": limit.name})).first() is None:
                await connection.execute(self.sql.add, {**limit._asdict(), "grants": "[]"})

        async def change(connection: AsyncConnection) -> None:
            parameters = {"of": limit.name, "permits": limit.permits, "period": limit.period}
            await connection.execute(self.sql.change, parameters)

        with suppress(Collision):  # another node was faster
            await self._store.transact(add, is_optimistic=True)
        await self._store.transact(change)

    async def all(self) -> list[RateLimit]:
        """Return all limits, by name."""
        async with self._store._translated(), self._store._reader() as connection:
            return [RateLimit(*row) for row in await connection.execute(self.sql.read_all)]

    async def get(self, name: str) -> RateLimit:
        """Return a limit.

        Raises:
            NotFound: there is none of this name.
            InvalidGroup: there cannot be.
        """
        check_group_name(name, "rate limit")
        async with self._store._translated(), self._store._reader() as connection:
            row = (await connection.execute(self.sql.read, {"name": name})).first()
        if row is None:
            raise NotFound(f"no rate limit {quote(name)}")
        return RateLimit(*row[:3])

    # --- taking ---

    async def room(self, connection: AsyncConnection, group: Group, most: int, *, is_locked: bool = True) -> Room:
        """Return how many events of a group may be taken, up to `most`.

        `is_locked`: the group's row is locked by this transaction, and the limit's is from now on, so that it stays
        true until the commit.
        """
        room = Room(most)
        if group.max_in_flight is not None:
            left = group.max_in_flight - await self._in_flight(connection, group)
            room = room.within(Room(left) if left > 0 else Room(0, LOOK_AGAIN))
        if group.rate_limit is not None:
            query = self.sql.lock if is_locked else self.sql.read
            row = (await connection.execute(query, {"name": group.rate_limit})).first()
            if row is None:
                raise InvalidGroup(f"the rate limit {quote(group.rate_limit)} of group {quote(group.name)} is gone")
            room = room.within(free(read_grants(row.grants), RateLimit(*row[:3]), row.now))
        return room

    async def grant(self, connection: AsyncConnection, group: Group, count: int) -> None:
        """Take permits for events that a group has claimed; no more than `room` has said in this transaction."""
        if group.rate_limit is None or count == 0:
            return
        row = (await connection.execute(self.sql.lock, {"name": group.rate_limit})).one()
        grants = granted(read_grants(row.grants), RateLimit(*row[:3]), row.now, count)
        await connection.execute(self.sql.put, {"of": group.rate_limit, "grants": json.dumps(grants)})

    async def _in_flight(self, connection: AsyncConnection, group: Group) -> int:
        parameters = {"group_id": group.id}
        pendings = (await connection.execute(self.sql.pendings, parameters)).scalars()
        held = (await connection.execute(self.sql.held, parameters)).scalar_one()
        return sum(len(decode_seqs(pending)) for pending in pendings) + int(held)


def check_limit(limit: RateLimit) -> None:
    """Raise InvalidGroup if something cannot be a rate limit."""
    check_group_name(limit.name, "rate limit")
    if type(limit.permits) is not int or not 1 <= limit.permits <= MAX_PERMITS:
        raise InvalidGroup(
            f"the permits of rate limit {quote(limit.name)} must be an int from 1 to {MAX_PERMITS:,}, "
            f"got {quote(limit.permits)}"
        )
    if not 1 <= limit.period <= MAX_PERIOD:
        raise InvalidGroup(
            f"the period of rate limit {quote(limit.name)} must be more than 0 and at most "
            f"{MAX_PERIOD // 1_000_000:,} seconds, got {limit.period / 1_000_000:g}"
        )


def limit_period(name: str, per: object) -> int:
    """Return a period in microseconds, given as seconds or a timedelta.

    Raises:
        InvalidGroup: it is no duration; `check_limit` says whether it can be a period.
    """
    try:
        given = seconds("per", per)
    except ValueError as exc:
        raise InvalidGroup(f"rate limit {quote(name)}: {exc}") from None
    # Too little to count is still more than nothing.
    return round(given * 1_000_000) or int(given > 0)


def free(grants: Sequence[Grant], limit: RateLimit, now: int) -> Room:
    """Return how many permits may be given now, and else when the next may."""
    recent = _recent(grants, limit, now)
    left = limit.permits - sum(grant.permits for grant in recent)
    if left > 0:
        return Room(left)
    for grant in recent:
        left += grant.permits
        if left > 0:
            return Room(0, grant.last + limit.period - now)
    raise AssertionError("a limit of which nothing was given has permits")


def granted(grants: Sequence[Grant], limit: RateLimit, now: int, permits: int) -> list[Grant]:
    """Return the grants that matter after some permits were given now."""
    recent = _recent(grants, limit, now)
    if recent and now - recent[-1].first < limit.period // STEPS:
        newest = recent.pop()
        return [*recent, Grant(newest.first, max(newest.last, now), newest.permits + permits)]
    return [*recent, Grant(now, now, permits)]


def _recent(grants: Sequence[Grant], limit: RateLimit, now: int) -> list[Grant]:
    return [grant for grant in grants if grant.last + limit.period > now]


def read_grants(text: str) -> list[Grant]:
    return [Grant(*each) for each in json.loads(text)]
