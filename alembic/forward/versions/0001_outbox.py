"""Create an outbox in a database that is not the bus's.

Revision ID: 0001
Revises:

The tables: forward_outbox, forward_refused, forward_lease. This history has nothing to do with that of a bus's tables.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import mysql

from eventbus_fastapi.store.creator import MYSQL, TableCreator, big_key, uuid

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade(op: Operations, prefix: str, schema: str | None) -> None:
    create = TableCreator(op, prefix, schema)
    create.table("forward_outbox", *_waiting_columns(), sa.PrimaryKeyConstraint("id"))
    create.table(
        "forward_refused",
        *_waiting_columns(),
        sa.Column("refused_at", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    create.table(
        "forward_lease",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("token", uuid()),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    _insert_lease(op, prefix, schema)


def downgrade(op: Operations, prefix: str, schema: str | None) -> None:
    TableCreator(op, prefix, schema).drop("forward_lease", "forward_refused", "forward_outbox")


def _waiting_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("id", big_key(), autoincrement=True, nullable=False),
        sa.Column("message_id", uuid(), nullable=False),
        sa.Column("topic", sa.String(255), nullable=False),
        sa.Column("key", sa.String(255)),
        sa.Column("payload", sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), *MYSQL), nullable=False),
        sa.Column("content_type", sa.String(127), nullable=False),
        sa.Column("metadata", sa.Text()),
        sa.Column("ttl", sa.BigInteger()),
        sa.Column("publish_at", sa.BigInteger()),
        sa.Column("unique_rule", sa.Text()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
    ]


def _insert_lease(op: Operations, prefix: str, schema: str | None) -> None:
    """Insert the one row of the lease, unless an earlier run has."""
    lease = sa.table(f"{prefix}forward_lease", sa.column("id"), sa.column("until"), schema=schema)
    is_offline = op.get_context().as_sql
    if is_offline or op.get_bind().scalar(sa.select(sa.func.count()).select_from(lease)) == 0:
        op.execute(sa.insert(lease).values(id=op.inline_literal(1), until=op.inline_literal(0)))
