"""Unique publishing: who was first of those that are the same.

The first one writes a row of the table `unique`, in the transaction that stores its event; whoever comes later finds
it. So transactions that publish the same at the same time wait for one another, only they, and a rollback leaves no
trace. A row has ended when its time is over, or, where it has none, when its event does not wait any more; the next one
takes it over.

What the steps look like, and why. The row is inserted unless there is one, without an error, which on PostgreSQL would
end the caller's transaction. Then it is read with a lock: that waits for whoever changes it, and sees it though the
caller's transaction on MySQL has a snapshot without it. Only a statement after that asks whether it has ended: in one
statement PostgreSQL would look at the row as it is now, and at the scheduled ones as they were when it began to wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Connection,
    Delete,
    Insert,
    Update,
    and_,
    bindparam,
    delete,
    literal,
    null,
    select,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite

from eventbus_fastapi.events import Draft
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.statements import Query, now_micros
from eventbus_fastapi.unique import Unique


class Ended(NamedTuple):
    """A row that nobody needs any more."""

    fingerprint: str
    message_id: UUID


class UniqueEvents:
    """See the module's docstring. All of it works on a sync connection, whose transaction is the caller's."""

    def __init__(self, tables: Tables) -> None:
        self._sql = tables.statements(UniqueStatements)

    def first_of(self, connection: Connection, draft: Draft) -> UUID | None:
        """Return the message_id of the first one of those that are the same; None: the draft is, and is to be stored.

        What the rule has replaced of the first one, is replaced. One that is published again under its own message_id
        is no duplicate here: that its event is stored already is found out as for every event.
        """
        assert draft.unique is not None
        digest, within, rule = draft.unique
        mine = {"fingerprint": digest, "message_id": draft.message_id, "within": within}
        add = self._sql.add[connection.dialect.name]
        while True:
            connection.execute(add, mine)
            row = connection.execute(self._sql.hold, {"fingerprint": digest}).one_or_none()
            if row is not None:
                break  # else it was there, and was removed since
        first: UUID = row.message_id
        if first == draft.message_id:
            return None
        if self._has_ended(connection, first, row.until, rule):
            connection.execute(self._sql.take_over, {"digest": digest, **mine})
            return None
        if rule.replace and (row.until is None or self._waits(connection, first, rule)):
            self._replace(connection, first, draft)
        return first

    def _has_ended(self, connection: Connection, first: UUID, until: int | None, rule: Unique) -> bool:
        if until is None:
            return not self._waits(connection, first, rule)
        now: int = connection.execute(self._sql.now).scalar_one()
        return until <= now

    def _waits(self, connection: Connection, message_id: UUID, rule: Unique) -> bool:
        """Say whether an event waits for its time. If it is to be changed, it waits until the transaction ends: what
        it takes over must not be in no event, because it was let in meanwhile.

        It is found without a lock and then locked by its id, as those do who let it in: by its message_id, MySQL would
        take the locks in another order, and one of the two would end as a deadlock.
        """
        is_mysql = connection.dialect.name in MYSQL
        ids = connection.execute(self._sql.waiting, {"message_id": message_id}).scalars().all()
        if not ids and is_mysql:
            ids = connection.execute(self._sql.waiting_locked, {"message_id": message_id}).scalars().all()
        if not is_mysql and not rule.replace:
            return bool(ids)
        return any(connection.execute(self._sql.hold_waiting, {"waiting": row}).first() is not None for row in ids)

    def _replace(self, connection: Connection, first: UUID, draft: Draft) -> None:
        """Put the draft in the place of the first one, which waits, as far as its rule says."""
        assert draft.unique is not None
        replaced = draft.unique.rule.replace
        values: dict[str, Any] = {}
        if "payload" in replaced:
            values = {name: getattr(draft, name) for name in ("payload", "content_type", "metadata", "ttl")}
        if "schedule" in replaced:
            values["publish_at"] = draft.publish_at
            if draft.publish_at is None:
                values["publish_at"] = now_micros() + literal(draft.delay or 0, BigInteger)
        connection.execute(self._sql.change_waiting.values(values), {"first": first})

    def seq_of(self, connection: Connection, message_id: UUID) -> int | None:
        """Return the seq of an event, if it is in the log."""
        found = connection.execute(self._sql.seq_of, {"message_id": message_id}).first()
        return None if found is None else found.seq

    def ended(self, connection: Connection, limit: int) -> list[Ended]:
        """Return up to `limit` rows that nobody needs any more; nothing is locked."""
        found: list[Ended] = []
        for query in (self._sql.over, self._sql.not_waiting):
            if len(found) < limit:
                rows = connection.execute(query, {"limit": limit - len(found)})
                found += [Ended(row.fingerprint, row.message_id) for row in rows]
        return found

    def remove(self, connection: Connection, ended: Sequence[Ended]) -> None:
        """Remove such rows, but none that somebody has taken over since or is about to."""
        digests = [row.fingerprint for row in ended]
        free = {Ended(*row) for row in connection.execute(self._sql.hold_free, {"digests": digests})}
        if gone := [{"digest": row.fingerprint} for row in ended if row in free]:
            connection.execute(self._sql.remove, gone)


MYSQL = ("mysql", "mariadb")


class UniqueStatements:
    """The statements over one set of tables."""

    def __init__(self, tables: Tables) -> None:
        unique, scheduled, event = tables.unique, tables.scheduled, tables.event
        within = bindparam("within", type_=BigInteger)
        until = now_micros() + within
        message_id = bindparam("message_id", type_=unique.c.message_id.type)

        self.add: dict[str, Insert] = _add_or_keep(tables)
        """By dialect; parameters: fingerprint, message_id, within. Of a row that is there nothing is changed."""
        self.hold: Query = (
            select(unique.c.message_id, unique.c.until)
            .where(unique.c.fingerprint == bindparam("fingerprint"))
            .with_for_update()
        )
        self.take_over: Update = (
            update(unique).where(unique.c.fingerprint == bindparam("digest")).values(message_id=message_id, until=until)
        )
        self.now: Query = select(now_micros())
        self.waiting: Query = select(scheduled.c.id).where(scheduled.c.message_id == message_id)
        self.waiting_locked: Query = self.waiting.with_for_update(read=True)
        """Where a transaction may have a snapshot that a statement reads, unless it locks."""
        self.hold_waiting: Query = (
            select(scheduled.c.id).where(scheduled.c.id == bindparam("waiting", type_=BigInteger)).with_for_update()
        )
        self.change_waiting: Update = update(scheduled).where(
            scheduled.c.message_id == bindparam("first", type_=scheduled.c.message_id.type)
        )
        self.seq_of: Query = select(event.c.seq).where(event.c.message_id == message_id)

        row = select(unique.c.fingerprint, unique.c.message_id).limit(bindparam("limit"))
        self.over: Query = row.where(unique.c.until <= now_micros())
        still_waits = select(scheduled.c.id).where(scheduled.c.message_id == unique.c.message_id).exists()
        self.not_waiting: Query = row.where(and_(unique.c.until.is_(null()), ~still_waits))
        self.hold_free: Query = (
            select(unique.c.fingerprint, unique.c.message_id)
            .where(unique.c.fingerprint.in_(bindparam("digests", expanding=True)))
            .with_for_update(skip_locked=True)
        )
        self.remove: Delete = delete(unique).where(unique.c.fingerprint == bindparam("digest"))


def _add_or_keep(tables: Tables) -> dict[str, Insert]:
    unique = tables.unique
    values = {
        "fingerprint": bindparam("fingerprint"),
        "message_id": bindparam("message_id", type_=unique.c.message_id.type),
        "until": now_micros() + bindparam("within", type_=BigInteger),
    }
    kept = mysql.insert(unique).values(values).on_duplicate_key_update(fingerprint=unique.c.fingerprint)
    return {
        "sqlite": sqlite.insert(unique).values(values).on_conflict_do_nothing(),
        "postgresql": postgresql.insert(unique).values(values).on_conflict_do_nothing(),
        **dict.fromkeys(MYSQL, kept),  # INSERT IGNORE would let other errors pass, too
    }
