"""Every SQL statement over the outbox of a database that is not the bus's; see `forward_schema`.

As in `statements`: nothing here executes, parameters are named after the columns, the time is the database's.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Delete,
    Insert,
    LargeBinary,
    Table,
    Update,
    bindparam,
    cast,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    update,
)

from eventbus_fastapi.events import Draft
from eventbus_fastapi.store.forward_schema import ForwardTables
from eventbus_fastapi.store.statements import EVENT_FIELDS, Query, now_micros
from eventbus_fastapi.unique import Unique

WAITING_FIELDS = (*EVENT_FIELDS, "ttl", "publish_at", "unique_rule")
"""What an outbox keeps of an event, beside when it came."""


class ForwardStatements:
    """The statements over one set of tables."""

    def __init__(self, tables: ForwardTables) -> None:
        self.tables = tables
        outbox, refused, lease = tables.outbox, tables.refused, tables.lease
        now = now_micros()

        # --- publishing ---
        self.add: Insert = insert(outbox).values(created_at=now).inline()
        """Parameters: `WAITING_FIELDS`."""
        self.add_later: Insert = self.add.values(publish_at=now + bindparam("delay", type_=BigInteger))
        """The same, with `delay` in place of `publish_at`."""

        # --- who forwards ---
        token = bindparam("mine", type_=lease.c.token.type)
        until = now + bindparam("lease", type_=BigInteger)
        self.hold: Update = (
            update(lease)
            .where(lease.c.id == 1, or_(lease.c.token == token, lease.c.until <= now))
            .values(token=token, until=until)
        )
        self.renew: Update = update(lease).where(lease.c.id == 1, lease.c.token == token).values(until=until)
        self.release: Update = (
            update(lease).where(lease.c.id == 1, lease.c.token == token).values(token=null(), until=0)
        )

        # --- forwarding ---
        limit: BindParameter[int] = bindparam("limit")
        self.sizes: Query = select(outbox.c.id, func.length(outbox.c.payload)).order_by(outbox.c.id).limit(limit)
        # Other programs may have written text, which SQLite keeps as such and a driver would not take for bytes.
        read = {"payload": cast(outbox.c.payload, LargeBinary).label("payload")}
        columns = [outbox.c.id, *(read.get(name, outbox.c[name]) for name in WAITING_FIELDS), now.label("now")]
        self.oldest: Query = select(*columns).order_by(outbox.c.id).limit(limit)
        self.removals: dict[Table, Delete] = {
            table: delete(table).where(table.c.id == bindparam("row")) for table in (outbox, refused)
        }
        """By table; the parameter is one row's id."""
        kept = [*WAITING_FIELDS, "created_at"]
        self.refuse: Insert = insert(refused).from_select(
            [*kept, "refused_at", "code", "reason"],
            select(
                *(outbox.c[name] for name in kept),
                now,
                bindparam("code", type_=refused.c.code.type),
                bindparam("reason", type_=refused.c.reason.type),
            ).where(outbox.c.id == bindparam("row")),
        )
        """Parameters: row (of the outbox), code, reason."""
        self.put_back: Insert = insert(outbox).from_select(
            kept, select(*(refused.c[name] for name in kept)).where(refused.c.id == bindparam("row"))
        )

        # --- looking ---
        self.refusals: Query = (
            select(
                refused.c.id,
                refused.c.message_id,
                refused.c.topic,
                refused.c.key,
                func.length(refused.c.payload),
                refused.c.refused_at,
                refused.c.code,
                refused.c.reason,
            )
            .where(refused.c.id > bindparam("after", type_=BigInteger))
            .order_by(refused.c.id)
            .limit(limit)
        )
        self.hold_refused: Query = (
            select(refused.c.id).where(refused.c.id.in_(bindparam("ids", expanding=True))).with_for_update()
        )
        age = select(now - outbox.c.created_at).order_by(outbox.c.id).limit(1).scalar_subquery()
        self.figures: Query = select(
            select(func.count()).select_from(outbox).scalar_subquery(),
            age,
            select(func.count()).select_from(refused).scalar_subquery(),
        )

    def insert_draft(self, draft: Draft) -> tuple[Insert, dict[str, Any]]:
        """Return the insert that hands one event to the outbox, and its parameters."""
        values = draft._asdict()
        delay, unique = values.pop("delay"), values.pop("unique")
        values["unique_rule"] = None if unique is None else rule_text(unique.rule)
        if delay is None:
            return self.add, values
        del values["publish_at"]
        return self.add_later, {**values, "delay": delay}


def rule_text(rule: Unique) -> str:
    """Return a rule as a JSON object."""
    within = rule.within.total_seconds() if isinstance(rule.within, timedelta) else rule.within
    return json.dumps(
        {
            "fields": rule.fields,
            "key": rule.key,
            "metadata": rule.metadata,
            "within": within,
            "replace": rule.replace,
        }
    )
