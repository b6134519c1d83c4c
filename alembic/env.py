"""Serves Alembic's own commands in a checkout; the package runs its revisions without it (`store/migrations.py`).

The database and the names of the tables are those of the settings (`EVENTBUS_DATABASE_URL`, `EVENTBUS_TABLE_PREFIX`,
`EVENTBUS_DB_SCHEMA`). A program that calls `alembic.command` may give both itself: `config.attributes["connection"]`,
in whose transaction everything runs, and `config.attributes["tables"]`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from alembic import context
from sqlalchemy import Connection, make_url

from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.schema import Tables


def main() -> None:
    given = context.config.attributes
    if "connection" in given:
        migrate(given["connection"], given.get("tables") or Tables())
        return
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    settings = Settings()
    tables = Tables(settings.table_prefix, settings.db_schema)
    if context.is_offline_mode():
        write_sql(settings, tables)
    else:
        asyncio.run(migrations.run(settings, tables, migrate))


def migrate(connection: Connection, tables: Tables) -> None:
    ours = migrations.table_names(tables)

    def is_ours(name: str | None, kind: str, parents: Any) -> bool:
        if kind == "schema":
            return name == tables.schema
        return kind != "table" or name in ours

    context.configure(
        connection=connection,
        target_metadata=tables.metadata,
        include_name=is_ours,
        include_schemas=tables.schema is not None,
        compare_server_default=True,
        **migrations.context_options(tables),
    )
    with migrations.alone(connection, tables):
        migrations.run_steps(context.get_context(), tables)


def write_sql(settings: Settings, tables: Tables) -> None:
    kind = make_url(settings.database_url).get_backend_name()
    context.configure(dialect_name=kind, **migrations.context_options(tables))
    with context.begin_transaction():
        migrations.run_steps(context.get_context(), tables)


main()
