"""The SQL statements of limits, built once per set of tables. Nothing here executes; see `statements`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Insert, Update, bindparam, func, insert, select, update

from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.statements import Query, now_micros


class LimitStatements:
    """The statements over one set of tables. Parameters are named after the columns; durations are microseconds."""

    def __init__(self, tables: Tables) -> None:
        limit, lease, retry = tables.rate_limit, tables.lease, tables.retry
        now = now_micros()
        group_id = bindparam("group_id", type_=BigInteger)

        self.read_all: Query = select(limit.c.name, limit.c.permits, limit.c.period).order_by(limit.c.name)
        self.read: Query = select(
            limit.c.name, limit.c.permits, limit.c.period, limit.c.grants, now.label("now")
        ).where(limit.c.name == bindparam("name"))
        self.lock: Query = self.read.with_for_update()
        self.add: Insert = insert(limit).inline()
        self.change: Update = (
            update(limit)
            .where(limit.c.name == bindparam("of"))
            .values(permits=bindparam("permits"), period=bindparam("period", type_=BigInteger))
        )
        """Parameters: of, permits, period."""
        self.put: Update = update(limit).where(limit.c.name == bindparam("of")).values(grants=bindparam("grants"))
        """Parameters: of, grants."""
        self.pendings: Query = select(lease.c.pending).where(lease.c.group_id == group_id, lease.c.until > now)
        self.held: Query = (
            select(func.count())
            .select_from(retry)
            .where(retry.c.group_id == group_id, retry.c.token.is_not(None), retry.c.run_at > now)
        )
        """What is in flight: leases that have not ended, and retries that are held."""
