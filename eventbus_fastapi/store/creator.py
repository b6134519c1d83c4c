"""What the revisions of our tables have in common: how tables and indexes are created on each database.

The columns of a revision are its own and never change again. On MySQL each CREATE and DROP commits at once, so a run
that was broken off is taken up where it stopped.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import mysql

MYSQL = ("mysql", "mariadb")

TABLE_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in MYSQL
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}.items()
}


class TableCreator:
    """Creates tables and indexes under the prefix; on MySQL only those that an earlier run did not reach."""

    def __init__(self, op: Operations, prefix: str, schema: str | None) -> None:
        self.op, self.prefix, self.schema = op, prefix, schema
        context = op.get_context()
        resumes = context.dialect.name in MYSQL and not context.as_sql
        self.inspector = sa.inspect(op.get_bind()) if resumes else None

    def table(self, name: str, *columns: sa.schema.SchemaItem) -> None:
        table = f"{self.prefix}{name}"
        if self.inspector is None or not self.inspector.has_table(table, self.schema):
            self.op.create_table(table, *columns, schema=self.schema, **TABLE_OPTIONS)

    def index(self, table: str, name: str, *, columns: list[str], **options: Any) -> None:
        table, index = f"{self.prefix}{table}", f"{self.prefix}{table}_{name}"
        if self.inspector is None or not self.inspector.has_index(table, index, self.schema):
            self.op.create_index(index, table, columns, schema=self.schema, **options)

    def column(self, table: str, column: sa.Column[Any]) -> None:
        """Add a column to a table."""
        table = f"{self.prefix}{table}"
        if self.inspector is None or column.name not in self._columns(table):
            self.op.add_column(table, column, schema=self.schema)

    def drop_columns(self, table: str, *names: str) -> None:
        """Drop columns of a table; on MySQL those that are left of an earlier run."""
        table = f"{self.prefix}{table}"
        for name in names:
            if self.inspector is None or name in self._columns(table):
                self.op.drop_column(table, name, schema=self.schema)

    def drop(self, *names: str) -> None:
        """Drop tables; on MySQL those that are left of an earlier run."""
        for name in names:
            is_mysql = self.op.get_context().dialect.name in MYSQL
            self.op.drop_table(f"{self.prefix}{name}", schema=self.schema, if_exists=is_mysql)

    def _columns(self, table: str) -> set[str]:
        assert self.inspector is not None
        return {column["name"] for column in self.inspector.get_columns(table, self.schema)}


def uuid() -> sa.types.TypeEngine[Any]:
    return sa.Uuid().with_variant(sa.LargeBinary(16), "sqlite").with_variant(mysql.BINARY(16), *MYSQL)


def big_key() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")
