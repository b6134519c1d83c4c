"""Create the log.

Revision ID: 0001
Revises:

The tables: head, event, outbox, scheduled, processed. The names of tables and indexes begin with the prefix that
the caller configured. On MySQL each CREATE and DROP commits at once, so a run that was broken off is taken up where
it stopped.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import mysql

from eventbus_fastapi.store.creator import MYSQL, TableCreator, big_key, uuid

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The database makes the epoch of a script, which may be run on several databases: each log needs its own.
NEW_EPOCH = {
    "postgresql": "gen_random_uuid()",
    "sqlite": "randomblob(16)",
    **dict.fromkeys(MYSQL, "unhex(replace(uuid(), '-', ''))"),
}


def upgrade(op: Operations, prefix: str, schema: str | None) -> None:
    create = TableCreator(op, prefix, schema)
    create.table(
        "head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("epoch", uuid(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    create.table(
        "event",
        sa.Column("seq", big_key(), autoincrement=False, nullable=False),
        *_event_columns(),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("seq"),
    )
    create.index("event", "message_id", columns=["message_id"], unique=True)
    create.index(
        "event",
        "expires_at",
        columns=["expires_at"],
        postgresql_where=sa.text("expires_at IS NOT NULL"),
        sqlite_where=sa.text("expires_at IS NOT NULL"),
    )
    create.table(
        "outbox",
        sa.Column("id", big_key(), autoincrement=True, nullable=False),
        *_event_columns(),
        sa.Column("ttl", sa.BigInteger()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    create.table(
        "scheduled",
        sa.Column("id", big_key(), autoincrement=True, nullable=False),
        *_event_columns(),
        sa.Column("ttl", sa.BigInteger()),
        sa.Column("publish_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    create.index("scheduled", "publish_at", columns=["publish_at", "id"])
    create.index("scheduled", "message_id", columns=["message_id"])
    create.table(
        "processed",
        sa.Column("seq", big_key(), autoincrement=False, nullable=False),
        sa.Column("processed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    _insert_head(op, prefix, schema)


def downgrade(op: Operations, prefix: str, schema: str | None) -> None:
    TableCreator(op, prefix, schema).drop("processed", "scheduled", "outbox", "event", "head")


def _event_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("message_id", uuid(), nullable=False),
        sa.Column("topic", sa.String(255), nullable=False),
        sa.Column("key", sa.String(255)),
        sa.Column("payload", sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), *MYSQL), nullable=False),
        sa.Column("content_type", sa.String(127), nullable=False),
        sa.Column("metadata", sa.Text()),
    ]


def _insert_head(op: Operations, prefix: str, schema: str | None) -> None:
    """Insert the one row of the head, unless an earlier run has."""
    offline, dialect = op.get_context().as_sql, op.get_context().dialect.name
    if offline:
        epoch: sa.ColumnElement[Any] = sa.literal_column(NEW_EPOCH[dialect])
    else:
        epoch = sa.literal(uuid4() if dialect == "postgresql" else uuid4().bytes)
    head = sa.table(
        f"{prefix}head",
        *(sa.column(name) for name in ("id", "last_seq", "first_seq", "epoch")),
        schema=schema,
    )
    if offline or op.get_bind().scalar(sa.select(sa.func.count()).select_from(head)) == 0:
        one, zero = op.inline_literal(1), op.inline_literal(0)
        op.execute(sa.insert(head).values(id=one, last_seq=zero, first_seq=one, epoch=epoch))
