"""The tables of an outbox: their revisions make what the statements expect, beside a bus or alone."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.forward_schema import ForwardTables
from eventbus_fastapi.store.schema import Tables
from tests.store.test_migrations import differences, everything


@pytest.fixture
async def engine(database_url: str) -> Any:
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.mark.parametrize("prefix", ["bus_", "my_own_"])
async def test_the_revisions_make_the_tables_and_leave_nothing_behind(engine: AsyncEngine, prefix: str) -> None:
    before, tables = await everything(engine), ForwardTables(prefix)
    await migrations.run(engine, tables, migrations.upgrade)
    assert await differences(engine, tables) == []

    await migrations.run(engine, tables, migrations.downgrade, "base")
    assert await everything(engine) == before


async def test_an_outbox_and_a_bus_live_in_one_database_under_one_prefix(engine: AsyncEngine) -> None:
    await migrations.run(engine, Tables(), migrations.upgrade)
    await migrations.run(engine, ForwardTables(), migrations.upgrade)
    assert await differences(engine, Tables()) == await differences(engine, ForwardTables()) == []

    await migrations.run(engine, ForwardTables(), migrations.downgrade, "base")
    await migrations.run(engine, Tables(), migrations.check)


async def test_a_history_of_the_program_s_own_moves_them(engine: AsyncEngine) -> None:
    tables = ForwardTables("svc_")

    def move(connection: Connection, tables: ForwardTables) -> None:
        context = MigrationContext.configure(connection)
        migrations.move(context, tables, "base", "0001")

    await migrations.run(engine, tables, move)
    await migrations.run(engine, tables, migrations.check)
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda connection: inspect(connection).get_table_names())
    assert set(names) == migrations.table_names(tables)
