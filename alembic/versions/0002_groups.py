"""Create the groups.

Revision ID: 0002
Revises: 0001

The tables: group, lease, retry, dead_letter.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import mysql

from eventbus_fastapi.store.creator import MYSQL, TableCreator, big_key, uuid

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade(op: Operations, prefix: str, schema: str | None) -> None:
    create = TableCreator(op, prefix, schema)
    create.table(
        "group",
        sa.Column("id", big_key(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("patterns", sa.Text(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("ordered_by", sa.String(16)),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("paused_at", sa.BigInteger()),
        sa.Column("lost", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    create.index("group", "name", columns=["name"], unique=True)
    create.table(
        "lease",
        sa.Column("token", uuid(), nullable=False),
        sa.Column("group_id", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("pending", sa.Text(), nullable=False),
        sa.Column("key_seqs", _long_text()),
        sa.PrimaryKeyConstraint("token"),
    )
    create.index("lease", "group_id", columns=["group_id", "until"])
    create.table(
        "retry",
        sa.Column("group_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        *_event_columns(),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("run_at", sa.BigInteger(), nullable=False),
        sa.Column("token", uuid()),
        sa.Column("owner", sa.String(64)),
        sa.Column("errors", _long_text(), nullable=False),
        sa.PrimaryKeyConstraint("group_id", "seq"),
    )
    create.index("retry", "run_at", columns=["group_id", "run_at", "seq"])
    create.index("retry", "key", columns=["group_id", "key", "seq"])
    create.table(
        "dead_letter",
        sa.Column("id", big_key(), autoincrement=True, nullable=False),
        sa.Column("group_id", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        *_event_columns(),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("errors", _long_text(), nullable=False),
        sa.Column("died_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    create.index("dead_letter", "seq", columns=["group_id", "seq"], unique=True)


def downgrade(op: Operations, prefix: str, schema: str | None) -> None:
    TableCreator(op, prefix, schema).drop("dead_letter", "retry", "lease", "group")


def _long_text() -> sa.types.TypeEngine[Any]:
    return sa.Text().with_variant(mysql.MEDIUMTEXT(), *MYSQL)


def _event_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("message_id", uuid(), nullable=False),
        sa.Column("topic", sa.String(255), nullable=False),
        sa.Column("key", sa.String(255)),
        sa.Column("payload", sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), *MYSQL), nullable=False),
        sa.Column("content_type", sa.String(127), nullable=False),
        sa.Column("metadata", sa.Text()),
    ]
