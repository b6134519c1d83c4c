"""Every SQL statement of the bus, built once per set of tables and the same for async, sync and our own connections.

Nothing here executes. A name says what the statement is for; parameters are named after the columns. The time is
always the database's: `now_micros()` compiles to unix microseconds on each dialect.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Delete,
    Insert,
    Select,
    Table,
    Update,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from eventbus_fastapi.durations import MAX_DURATION
from eventbus_fastapi.events import Draft
from eventbus_fastapi.store.schema import Tables

Query = Select[*tuple[Any, ...]]
"""A SELECT of any columns."""

EVENT_FIELDS = ("message_id", "topic", "key", "payload", "content_type", "metadata")
LONGEST_TTL = MAX_DURATION * 1_000_000
"""What counts of a ttl, microseconds. One that foreign SQL wrote into the outbox could go beyond the largest number."""


class now_micros(FunctionElement[int]):  # noqa: N801 - reads as the SQL function it stands for
    """The database's clock as unix microseconds, at the moment the statement runs, not when its transaction began."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_micros, "postgresql")
def _now_postgresql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


@compiles(now_micros, "mysql")
@compiles(now_micros, "mariadb")
def _now_mysql(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))"


@compiles(now_micros, "sqlite")
def _now_sqlite(element: Any, compiler: SQLCompiler, **options: Any) -> str:
    # unixepoch('subsec') needs SQLite 3.42; julianday is exact to the millisecond.
    return "(CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000)"


def expiry(entered: ColumnElement[int], ttl: ColumnElement[int]) -> ColumnElement[int]:
    """When an event of the outbox expires that enters the log at a time."""
    return entered + case((ttl > LONGEST_TTL, LONGEST_TTL), else_=ttl)


class Statements:
    """The statements over one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        head, event, outbox, scheduled, processed = (
            tables.head,
            tables.event,
            tables.outbox,
            tables.scheduled,
            tables.processed,
        )
        now = now_micros()
        has_outbox = select(func.min(outbox.c.id)).scalar_subquery()

        # --- publishing ---
        self.add_to_outbox: Insert = insert(outbox).values(created_at=now).inline()
        """Parameters: the event's fields and ttl."""
        self.schedule_after: Insert = (
            insert(scheduled).values(publish_at=now + bindparam("delay", type_=BigInteger)).inline()
        )
        self.schedule_at: Insert = insert(scheduled).inline()
        self.add_to_log: Insert = insert(event).inline()

        # --- the head and its lock ---
        self.read_head: Query = select(head.c.last_seq, head.c.first_seq, head.c.epoch).where(head.c.id == 1)
        self.lock_head: Query = select(head.c.last_seq).where(head.c.id == 1).with_for_update()
        self.look_at_outbox: Query = select(has_outbox, now)
        self.look_at_head_and_outbox: Query = select(head.c.last_seq, has_outbox, now).where(head.c.id == 1)
        self.peek: Query = select(
            head.c.last_seq,
            has_outbox,
            select(func.min(scheduled.c.publish_at)).scalar_subquery(),
            now,
        ).where(head.c.id == 1)
        self.move_head: Update = (
            update(head).where(head.c.id == 1).values(last_seq=bindparam("last_seq", type_=BigInteger))
        )
        self.raise_floor: Update = (
            update(head)
            .where(head.c.id == 1, head.c.first_seq < bindparam("floor", type_=BigInteger))
            .values(first_seq=bindparam("floor", type_=BigInteger))
        )
        self.now: Query = select(now)
        self.outbox_age: Query = select(now - outbox.c.created_at).order_by(outbox.c.id).limit(1)
        """Of the oldest that is committed."""

        # --- sequencing ---
        self.oldest_of_outbox: Query = (
            select(outbox.c.id, outbox.c.message_id, func.length(outbox.c.payload).label("size"))
            .order_by(outbox.c.id)
            .limit(bindparam("limit"))
        )
        entered = bindparam("now", type_=BigInteger)
        self.copy_to_log: Insert = insert(event).from_select(
            ["seq", *EVENT_FIELDS, "created_at", "expires_at"],
            select(
                bindparam("base", type_=BigInteger) + func.row_number().over(order_by=outbox.c.id),
                *(outbox.c[name] for name in EVENT_FIELDS),
                entered,
                expiry(entered, outbox.c.ttl),
            ).where(outbox.c.id.in_(bindparam("ids", expanding=True))),
        )
        """Parameters: ids of the outbox, base (the seq before theirs), now."""
        self.removals: dict[Table, Delete] = {
            table: delete(table).where(table.c.id == bindparam("row")) for table in (outbox, scheduled)
        }
        """By table; the parameter is one row's id."""
        self.seqs_of_message_ids: Query = select(event.c.message_id, event.c.seq).where(
            event.c.message_id.in_(bindparam("message_ids", expanding=True))
        )
        self.waiting_of_message_ids: tuple[Query, ...] = tuple(
            select(table.c.message_id).where(table.c.message_id.in_(bindparam("message_ids", expanding=True)))
            for table in (scheduled, outbox)
        )
        """In this order: what is promoted in between is found in the second."""
        self.due: Query = (
            select(scheduled.c.id, func.length(scheduled.c.payload).label("size"))
            .where(scheduled.c.publish_at <= now)
            .order_by(scheduled.c.publish_at, scheduled.c.id)
            .limit(bindparam("limit"))
            .with_for_update(skip_locked=True)
        )
        waiting_fields = [*EVENT_FIELDS, "ttl"]
        self.copy_to_outbox: Insert = insert(outbox).from_select(
            [*waiting_fields, "created_at"],
            select(*(scheduled.c[name] for name in waiting_fields), now)
            .where(scheduled.c.id.in_(bindparam("ids", expanding=True)))
            .order_by(scheduled.c.publish_at, scheduled.c.id),
        )
        """The parameter: ids of the scheduled."""

        # --- reading ---
        message_columns: list[ColumnElement[Any]] = [
            event.c.seq,
            *(event.c[name] for name in EVENT_FIELDS),
            event.c.created_at,
            event.c.expires_at,
        ]
        size = func.length(event.c.payload)
        small_payload = case((size <= bindparam("small", type_=BigInteger), event.c.payload))
        self.read_log, self.read_small, self.sizes_of_log = (
            select(*columns)
            .where(event.c.seq > bindparam("after", type_=BigInteger))
            .order_by(event.c.seq)
            .limit(bindparam("limit"))
            for columns in (
                message_columns,
                [small_payload if column is event.c.payload else column for column in message_columns],
                [event.c.seq, size],
            )
        )
        """Events; the same with NULL for payloads of more than `small` bytes; how long the payloads are."""
        self.read_one: Query = (
            select(*message_columns, processed.c.seq)
            .outerjoin_from(event, processed, processed.c.seq == event.c.seq)
            .where(event.c.seq == bindparam("seq", type_=BigInteger))
        )
        self.first_from: Query = (
            select(event.c.seq, event.c.created_at)
            .where(event.c.seq >= bindparam("seq", type_=BigInteger))
            .order_by(event.c.seq)
            .limit(1)
        )
        self.processed_between: Query = select(processed.c.seq).where(
            processed.c.seq > bindparam("after", type_=BigInteger),
            processed.c.seq <= bindparam("up_to", type_=BigInteger),
            processed.c.processed_at < bindparam("before", type_=BigInteger),
        )

        # --- acknowledging ---
        self.state_of_seqs: Query = (
            select(event.c.seq, event.c.message_id, processed.c.seq, event.c.topic)
            .outerjoin_from(event, processed, processed.c.seq == event.c.seq)
            .where(event.c.seq.in_(bindparam("seqs", expanding=True)))
        )
        self.mark_processed: Insert = insert(processed).values(processed_at=now).inline()

        # --- retention ---
        self.expired: Query = (
            select(event.c.seq).where(event.c.expires_at <= now).order_by(event.c.expires_at).limit(bindparam("limit"))
        )
        self.oldest_of_log: Query = (
            select(event.c.seq, event.c.created_at).order_by(event.c.seq).limit(bindparam("limit"))
        )
        self.remove_from_log: Delete = delete(event).where(event.c.seq.in_(bindparam("seqs", expanding=True)))
        self.remove_from_processed: Delete = delete(processed).where(
            processed.c.seq.in_(bindparam("seqs", expanding=True))
        )

    def insert_draft(self, draft: Draft) -> tuple[Insert, dict[str, Any]]:
        """Return the insert that hands one event to the outbox (or to the scheduled), and its parameters."""
        values = draft._asdict()
        delay, publish_at, _ = values.pop("delay"), values.pop("publish_at"), values.pop("unique")
        if delay is not None:
            return self.schedule_after, {**values, "delay": delay}
        if publish_at is not None:
            return self.schedule_at, {**values, "publish_at": publish_at}
        return self.add_to_outbox, values
