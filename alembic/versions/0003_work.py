"""Create what groups, queues and publishing need beyond the log.

Revision ID: 0003
Revises: 0002

The tables: archive, queue, worker, rate_limit, unique, recurring. The group's columns: archive, max_in_flight,
rate_limit.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import mysql

from eventbus_fastapi.store.creator import MYSQL, TableCreator, big_key, uuid

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade(op: Operations, prefix: str, schema: str | None) -> None:
    create = TableCreator(op, prefix, schema)
    create.column("group", sa.Column("archive", sa.String(16)))
    create.column("group", sa.Column("max_in_flight", sa.Integer()))
    create.column("group", sa.Column("rate_limit", sa.String(255)))
    create.table(
        "archive",
        sa.Column("id", big_key(), autoincrement=True, nullable=False),
        sa.Column("group_id", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("message_id", uuid(), nullable=False),
        *_event_columns(),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("duration", sa.BigInteger()),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("errors", _long_text(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    create.index("archive", "group_id", columns=["group_id", "id"])
    create.index("archive", "finished_at", columns=["finished_at"])
    create.table(
        "queue",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("workers", sa.Integer()),
        sa.Column("paused_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("name"),
    )
    create.table(
        "worker",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("queues", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    create.table(
        "rate_limit",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("permits", sa.Integer(), nullable=False),
        sa.Column("period", sa.BigInteger(), nullable=False),
        sa.Column("grants", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    create.table(
        "unique",
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("message_id", uuid(), nullable=False),
        sa.Column("until", sa.BigInteger()),
        sa.PrimaryKeyConstraint("fingerprint"),
    )
    create.index("unique", "until", columns=["until"])
    create.table(
        "recurring",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("cron", sa.String(255), nullable=False),
        sa.Column("timezone", sa.String(64), nullable=False),
        *_event_columns(),
        sa.Column("ttl", sa.BigInteger()),
        sa.Column("missed", sa.String(16), nullable=False),
        sa.Column("next_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger()),
        sa.Column("paused_at", sa.BigInteger()),
        sa.Column("declared", sa.String(64)),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    create.index("recurring", "next_at", columns=["next_at"])


def downgrade(op: Operations, prefix: str, schema: str | None) -> None:
    create = TableCreator(op, prefix, schema)
    create.drop("recurring", "unique", "rate_limit", "worker", "queue", "archive")
    create.drop_columns("group", "rate_limit", "max_in_flight", "archive")


def _long_text() -> sa.types.TypeEngine[Any]:
    return sa.Text().with_variant(mysql.MEDIUMTEXT(), *MYSQL)


def _event_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("topic", sa.String(255), nullable=False),
        sa.Column("key", sa.String(255)),
        sa.Column("payload", sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), *MYSQL), nullable=False),
        sa.Column("content_type", sa.String(127), nullable=False),
        sa.Column("metadata", sa.Text()),
    ]
