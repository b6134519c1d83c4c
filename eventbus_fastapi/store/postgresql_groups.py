"""The groups on PostgreSQL: the two steps of the happy path are one statement and one round trip each.

A claim moves the cursor and writes the lease; a settlement of whole ranges removes their leases. Everything else, and
whatever fails, is done the portable way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    Text,
    Uuid,
    bindparam,
    cast,
    delete,
    func,
    insert,
    null,
    select,
    update,
)

from eventbus_fastapi.events import Message
from eventbus_fastapi.store.group import Claim, Group, Settlement
from eventbus_fastapi.store.groups import Groups, expected, micros
from eventbus_fastapi.store.reader import LogReader
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.seqs import encode_seqs
from eventbus_fastapi.store.statements import now_micros

Fill = Callable[[dict[str, Any]], list[Any]]
"""Makes of parameters what asyncpg takes: the text of a statement and its values in order."""


class PostgreSQLGroups(Groups):
    """See the module's docstring. `lend` gives an asyncpg connection for a statement that stands alone; `failures` are
    the driver's.
    """

    def __init__(
        self,
        store: LogReader,
        *,
        compile_text: Callable[[Any], Fill],
        lend: Callable[[], AbstractAsyncContextManager[Any]],
        failures: tuple[type[Exception], ...],
    ) -> None:
        super().__init__(store)
        fast = store.tables.statements(FastGroupStatements)
        self._claim_text, self._finish_text = compile_text(fast.claim), compile_text(fast.finish)
        self._lend = lend
        self._failures = failures

    async def claim(
        self, group: Group, messages: Sequence[Message], *, up_to: int, owner: str, lease: float
    ) -> Claim | None:
        if not messages or group.ordered_by is not None or group.is_limited:
            return await super().claim(group, messages, up_to=up_to, owner=owner, lease=lease)
        claim = Claim(uuid4(), tuple(message.seq for message in messages), up_to)
        parameters = {
            **expected(group),
            "cursor": up_to,
            "token": claim.token,
            "owner": owner,
            "first": claim.seqs[0],
            "pending": encode_seqs(claim.seqs),
            "duration": micros(lease),
        }
        async with self._store._translated():
            with contextlib.suppress(*self._failures):
                async with self._lend() as driver:
                    row = await driver.fetchrow(*self._claim_text(parameters))
                return None if row is None else claim
        return await super().claim(group, messages, up_to=up_to, owner=owner, lease=lease)

    async def settle(self, settlements: Sequence[Settlement]) -> set[tuple[UUID, int]]:
        finished = {
            item.token: item
            for item in settlements
            if item.pending == () and not item.again and not item.dead and not item.endings
        }
        if len(finished) < len(settlements):
            return await super().settle(settlements)
        async with self._store._translated():
            with contextlib.suppress(*self._failures):
                async with self._lend() as driver:
                    rows = await driver.fetch(*self._finish_text({"tokens": list(finished)}))
                alive = {row[0] for row in rows}
                return {(token, seq) for token, item in finished.items() if token not in alive for seq in item.seqs}
        return await super().settle(settlements)


class FastGroupStatements:
    """The statements over one set of tables."""

    def __init__(self, tables: Tables) -> None:
        group, lease = tables.group, tables.lease
        moved = (
            update(group)
            .where(
                group.c.id == bindparam("group_id", type_=BigInteger),
                group.c.cursor == bindparam("expected", type_=BigInteger),
                group.c.patterns == bindparam("expected_patterns", type_=Text),
                func.coalesce(group.c.ordered_by, "") == bindparam("expected_order", type_=Text),
                func.coalesce(group.c.max_in_flight, 0) == bindparam("expected_in_flight", type_=Integer),
                func.coalesce(group.c.rate_limit, "") == bindparam("expected_rate", type_=Text),
                group.c.name == bindparam("expected_name", type_=Text),
                group.c.paused_at.is_(None),
            )
            .values(cursor=bindparam("cursor", type_=BigInteger))
            .returning(group.c.id)
            .cte("moved")
        )
        self.claim = (
            insert(lease)
            .from_select(
                ["token", "group_id", "owner", "until", "first_seq", "pending", "key_seqs"],
                select(
                    cast(bindparam("token", type_=Uuid()), Uuid()),
                    moved.c.id,
                    cast(bindparam("owner", type_=Text()), Text()),
                    now_micros() + bindparam("duration", type_=BigInteger),
                    cast(bindparam("first", type_=BigInteger), BigInteger()),
                    cast(bindparam("pending", type_=Text()), Text()),
                    null(),
                ),
            )
            .returning(lease.c.token)
        )
        """No row: the cursor is elsewhere, or the group is paused or gone."""
        tokens = cast(bindparam("tokens", type_=ARRAY(Uuid())), ARRAY(Uuid()))
        self.finish = delete(lease).where(lease.c.token == func.any(tokens)).returning(lease.c.token)
        """Removes the leases of an array of tokens; returns those that there were."""
