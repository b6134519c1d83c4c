"""What there is of groups: their names, what they read, where they are, how they are doing.

It makes, changes, resets and deletes them; what they have in flight is read here, and changed in `groups`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi.errors import GroupConflict, GroupNotFound, quote
from eventbus_fastapi.store.archive import Archive
from eventbus_fastapi.store.database import AnyRow, Collision, chunks
from eventbus_fastapi.store.group import ArchiveMode, Figures, Group, Look, OrderedBy, WaitingRetry
from eventbus_fastapi.store.group_name import check_group_name
from eventbus_fastapi.store.group_statements import GroupStatements
from eventbus_fastapi.store.reader import LogReader
from eventbus_fastapi.store.seqs import decode_seqs


class GroupRegistry:
    """See the module's docstring."""

    def __init__(self, store: LogReader) -> None:
        self._store = store
        self.sql = store.tables.statements(GroupStatements)
        self._archive = Archive(store)

    # --- groups ---

    async def ensure(
        self,
        name: str,
        patterns: Sequence[str],
        *,
        after: int,
        ordered_by: OrderedBy | None = None,
        max_attempts: int = 10,
        archive: ArchiveMode = "none",
        max_in_flight: int | None = None,
        rate_limit: str | None = None,
        is_declared: bool = False,
    ) -> Group:
        """Return the group of this name; make it, reading after a seq, if there is none.

        One that exists keeps its place. `is_declared`: it takes over the patterns and the rest as given here.

        Raises:
            InvalidGroup: it cannot be the name of a group.
            GroupConflict: it is a relay's, and who asks is none; or the other way round.
        """
        check_group_name(name)
        values = {
            "patterns": patterns_text(patterns),
            "ordered_by": ordered_by,
            "max_attempts": max_attempts,
            "archive": archive,
            "max_in_flight": max_in_flight,
            "rate_limit": rate_limit,
        }
        if await self._read(name) is None:
            await self._add({"name": name, "cursor": after, **values})
        group = await self.get(name)
        if (group.ordered_by == "log") != (ordered_by == "log"):
            kind = "is a relay's, and nobody else can" if group.ordered_by == "log" else "is there, and no relay can"
            raise GroupConflict(f"the group {quote(name)} {kind} take events of it")
        wanted = group._replace(
            patterns=tuple(patterns),
            ordered_by=ordered_by,
            max_attempts=max_attempts,
            archive=archive,
            max_in_flight=max_in_flight,
            rate_limit=rate_limit,
        )
        if is_declared and wanted != group:
            await self._declare(group.id, values)
            group = await self.get(name)
        return group

    async def _declare(self, group_id: int, values: dict[str, Any]) -> None:
        """Change what is said of a group. In one that is ordered by key from now on, what is in flight has its keys."""

        async def work(connection: AsyncConnection) -> None:
            parameters = {"group_id": group_id}
            # First the lock that a claim takes: one that knows no order yet is over, or will find another.
            await connection.execute(self.sql.lock_group, parameters)
            await connection.execute(self.sql.declare_group, {**parameters, **values})
            if values["ordered_by"] is None:
                return
            for token, pending in (await connection.execute(self.sql.unkeyed_leases, parameters)).all():
                keys: dict[str, list[int]] = {}
                for seqs in chunks(decode_seqs(pending)):
                    for key, seq in await connection.execute(self.sql.keys_of_seqs, {"seqs": seqs}):
                        keys.setdefault(key, []).append(seq)
                await connection.execute(self.sql.key_lease, {"held": token, "keys": json.dumps(keys)})

        await self._store.transact(work)

    async def get(self, name: str) -> Group:
        """Return a group.

        Raises:
            GroupNotFound: there is none of this name.
            InvalidGroup: there cannot be.
        """
        check_group_name(name)  # a database does not take every string
        group = await self._read(name)
        if group is None:
            raise GroupNotFound(f"no group {quote(name)}")
        return group

    async def get_by_id(self, group_id: int) -> Group:
        """Return a group as it is now.

        Raises:
            GroupNotFound: it was deleted.
        """
        async with self._store._translated(), self._store._reader() as connection:
            row = (await connection.execute(self.sql.read_group_by_id, {"group_id": group_id})).first()
        if row is None:
            raise GroupNotFound("the group was deleted")
        return group_of(row)

    async def all(self) -> list[Group]:
        async with self._store._translated(), self._store._reader() as connection:
            return [group_of(row) for row in await connection.execute(self.sql.read_groups)]

    async def figures(self, group: Group) -> Figures:
        """Return how a group is doing. What goes on meanwhile may be counted twice, and is never missed."""
        parameters = {"group_id": group.id}
        async with self._store._translated(), self._store._reader() as connection:
            # In the order in which events go on, from the log to the leases and the retries: none is missed.
            behind = (await connection.execute(self.sql.lag, parameters)).first()
            pendings = (await connection.execute(self.sql.pendings, parameters)).scalars().all()
            waiting, held, dead = (await connection.execute(self.sql.counts, parameters)).one()
        if behind is None:
            raise GroupNotFound(f"no group {quote(group.name)}")
        in_flight = sum(len(decode_seqs(pending)) for pending in pendings) + held
        lag, since = behind if group.patterns else (0, None)
        return Figures(lag, _seconds(since), in_flight, waiting, dead)

    async def all_figures(self) -> dict[int, Figures]:
        """Return how all groups are doing, by id: `figures` with about as many statements for all as for one."""
        async with self._store._translated(), self._store._reader() as connection:
            lags = (await connection.execute(self.sql.all_lags)).all()  # in this order: see `figures`
            entered = await self._entered(connection, {row.cursor for row in lags if row.cursor < row.last_seq})
            pendings = (await connection.execute(self.sql.all_pendings)).all()
            retries = (await connection.execute(self.sql.all_retries)).all()
            dead = {row[0]: row[1] for row in await connection.execute(self.sql.all_dead)}
        waiting = {row[0]: row[1] - row[2] for row in retries}
        in_flight = {row[0]: row[2] for row in retries}
        for group_id, pending in pendings:
            in_flight[group_id] = in_flight.get(group_id, 0) + len(decode_seqs(pending))
        found = {}
        for group_id, cursor, last_seq, now in lags:
            since = entered.get(cursor)
            seconds = 0.0 if since is None else _seconds(now - since)
            of_group = (in_flight.get(group_id, 0), waiting.get(group_id, 0), dead.get(group_id, 0))
            found[group_id] = Figures(last_seq - cursor, seconds, *of_group)
        return found

    async def _entered(self, connection: AsyncConnection, cursors: set[int]) -> dict[int, int]:
        """Return when the first event after each of some cursors entered the log.

        That is the next seq, unless a TTL or retention took it.
        """
        found: dict[int, int] = {}
        for chunk in chunks(sorted(cursors)):
            rows = await connection.execute(self.sql.times_of, {"seqs": [cursor + 1 for cursor in chunk]})
            found.update((seq - 1, created_at) for seq, created_at in rows)
        for cursor in cursors - found.keys():
            row = (await connection.execute(self._store.sql.first_from, {"seq": cursor + 1})).first()
            if row is not None:
                found[cursor] = row.created_at
        return found

    async def pause(self, name: str) -> None:
        """Hand out nothing more of a group; what is in flight may be settled."""
        await self._execute(self.sql.pause_group, {"group_id": (await self.get(name)).id})

    async def resume(self, name: str) -> None:
        """End a pause."""
        await self._execute(self.sql.resume_group, {"group_id": (await self.get(name)).id})

    async def reset(self, name: str, after: int) -> None:
        """Have a group read from after a seq. What is in flight or waits for a retry is forgotten, and whoever holds it
        cannot settle it any more; dead letters stay.
        """
        group_id = (await self.get(name)).id

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self.sql.move_group, {"group_id": group_id, "cursor": after})
            for statement in self.sql.drop_leases:
                await connection.execute(statement, {"group_id": group_id})

        await self._store.transact(work)

    async def delete(self, name: str) -> None:
        """Forget a group with all it has in flight, its retries, its dead letters and its archive."""
        group_id = (await self.get(name)).id
        # The archive may be long: first in parts, so that little of it is left for the one transaction.
        while await self._archive.remove_of_group(group_id):
            pass

        async def work(connection: AsyncConnection) -> None:
            # First the lock that a claim takes: its lease would be written behind the group's last.
            await connection.execute(self.sql.lock_group, {"group_id": group_id})
            for statement in self.sql.remove_group:
                await connection.execute(statement, {"group_id": group_id})

        await self._store.transact(work)

    async def floor(self) -> int | None:
        """Return the first seq that some group still needs of the log; None: there are no groups."""
        async with self._store._translated(), self._store._reader() as connection:
            unread, held = (await connection.execute(self.sql.floor)).one()
        return min((seq for seq in (unread, held) if seq is not None), default=None)

    # --- what there is to do ---

    async def look(self, group_ids: Sequence[int]) -> list[Look]:
        """Return what there is to do for some groups besides reading on, seen without a lock."""
        if not group_ids:
            return []
        async with self._store._translated(), self._store._reader() as connection:
            rows = await connection.execute(self.sql.look, {"group_ids": list(group_ids)})
            return [Look(group_of(row), *row[-3:]) for row in rows]

    async def retries(self, group: Group, *, after: int = 0, limit: int = 100) -> list[WaitingRetry]:
        """Return what waits for another attempt, or is held for it, with a seq after `after`; in the order of seqs."""
        parameters = {"group_id": group.id, "after": after, "limit": limit}
        async with self._store._translated(), self._store._reader() as connection:
            return [
                WaitingRetry._make((*row[:6], bool(row.is_held), json.loads(row.errors)))
                for row in await connection.execute(self.sql.list_retries, parameters)
            ]

    async def blocked_keys(self, group: Group, limit: int = 100) -> list[tuple[str, int, int]]:
        """Return keys that wait for an event to be settled: the key, the seq of its first event, how many there are."""
        async with self._store._translated(), self._store._reader() as connection:
            rows = await connection.execute(self.sql.blocked_keys, {"group_id": group.id, "limit": limit})
            return [(row[0], row[1], row[2]) for row in rows]

    # --- parts ---

    async def _read(self, name: str) -> Group | None:
        async with self._store._translated(), self._store._reader() as connection:
            row = (await connection.execute(self.sql.read_group, {"name": name})).first()
        return None if row is None else group_of(row)

    async def _add(self, values: dict[str, Any]) -> None:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self.sql.add_group, values)

        try:
            await self._store.transact(work, is_optimistic=True)
        except Collision:
            return  # another node was faster

    async def _execute(self, statement: Any, parameters: dict[str, Any]) -> int:
        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(statement, parameters)).rowcount

        return await self._store.transact(work)


def _seconds(micros: int | None) -> float:
    return max(0, micros or 0) / 1_000_000


def group_of(row: AnyRow) -> Group:
    """Return the group that a row is."""
    return Group(
        row.id,
        row.name,
        tuple(json.loads(row.patterns)),
        row.cursor,
        row.ordered_by,
        row.max_attempts,
        row.paused_at is not None,
        row.lost,
        row.archive or "none",
        row.max_in_flight,
        row.rate_limit,
    )


def patterns_text(patterns: Sequence[str]) -> str:
    """Return patterns as their column has them."""
    return json.dumps(list(patterns))
