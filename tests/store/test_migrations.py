"""The revisions of our tables, on every database."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventbus_fastapi.errors import SchemaOutdated, SettingsError, StoreError, StoreUnavailable
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.engines import create_engine
from eventbus_fastapi.store.schema import Tables, TableSet
from tests.databases import as_psycopg, as_sync, kind_of

ROOT = Path(__file__).parents[2]

PREFIXES = pytest.mark.parametrize("prefix", ["bus_", "my_own_"])


@pytest.fixture
async def engine(database_url: str) -> Any:
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


async def upgrade(engine: AsyncEngine, tables: Tables, revision: str = "head") -> None:
    await migrations.run(engine, tables, migrations.upgrade, revision)


async def downgrade(engine: AsyncEngine, tables: Tables, revision: str = "base") -> None:
    await migrations.run(engine, tables, migrations.downgrade, revision)


async def differences(engine: AsyncEngine, tables: TableSet) -> list[Any]:
    """Return what autogenerate would change to make the database equal to the tables."""

    def compare(connection: Connection, tables: TableSet) -> list[Any]:
        ours = migrations.table_names(tables)
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "include_schemas": tables.schema is not None,
            "include_name": lambda name, kind, _: name == tables.schema if kind == "schema" else True,
            "include_object": lambda _, name, kind, *__: kind != "table" or name in ours,
            **migrations.context_options(tables),
        }
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata))

    return await migrations.run(engine, tables, compare)


EVERYTHING = {
    "sqlite": "SELECT type, name FROM sqlite_master",
    "postgresql": """
        SELECT 'relation', nspname || '.' || relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
        UNION SELECT 'type', nspname || '.' || typname FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace
        WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'""",
    "mysql": "SELECT table_type, table_name FROM information_schema.tables WHERE table_schema = database()",
}


async def everything(engine: AsyncEngine) -> set[tuple[str, str]]:
    """Return every table, index, sequence and type that somebody has made in the database."""
    async with engine.connect() as connection:
        rows = await connection.execute(text(EVERYTHING[engine.dialect.name]))
        return {(row[0], row[1]) for row in rows}


async def head_row(engine: AsyncEngine, tables: Tables) -> Any:
    async with engine.connect() as connection:
        return (await connection.execute(tables.head.select())).one()


async def set_revision(engine: AsyncEngine, tables: Tables, revision: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(f"UPDATE {tables.version_table} SET version_num = '{revision}'"))


# --- up and down ---------------------------------------------------------------------------------


@PREFIXES
async def test_an_upgraded_database_equals_the_tables(engine: AsyncEngine, prefix: str) -> None:
    tables = Tables(prefix)
    await upgrade(engine, tables)
    assert await differences(engine, tables) == []


@pytest.mark.databases("postgresql")
async def test_an_upgraded_schema_equals_the_tables_and_leaves_public_alone(engine: AsyncEngine) -> None:
    tables = Tables("bus_", "Events")
    await upgrade(engine, tables)
    assert await differences(engine, tables) == []
    assert {name.split(".")[0] for _, name in await everything(engine)} == {"Events"}


@PREFIXES
async def test_a_downgrade_to_base_leaves_nothing(engine: AsyncEngine, prefix: str) -> None:
    tables = Tables(prefix)
    before = await everything(engine)
    await upgrade(engine, tables)
    assert await everything(engine) > before
    await downgrade(engine, tables)
    assert await everything(engine) == before


@pytest.mark.databases("postgresql")
async def test_a_downgrade_to_base_leaves_nothing_in_the_schema_but_leaves_the_schema(engine: AsyncEngine) -> None:
    tables = Tables("bus_", "events")
    await upgrade(engine, tables)
    await downgrade(engine, tables)
    assert await everything(engine) == set()
    async with engine.connect() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).has_schema("events"))


async def test_two_prefixes_share_a_database_without_meeting(engine: AsyncEngine) -> None:
    ours, theirs = Tables("a_"), Tables("b_")
    await upgrade(engine, ours)
    await upgrade(engine, theirs)
    await downgrade(engine, ours)
    assert await differences(engine, theirs) == []


async def test_an_upgrade_inserts_the_head_of_an_empty_log(engine: AsyncEngine) -> None:
    tables = Tables()
    await upgrade(engine, tables)
    row = await head_row(engine, tables)
    assert (row.id, row.last_seq, row.first_seq) == (1, 0, 1)
    assert row.epoch.version == 4


async def test_a_log_that_was_removed_and_made_anew_has_another_epoch(engine: AsyncEngine) -> None:
    tables = Tables()
    await upgrade(engine, tables)
    first = await head_row(engine, tables)
    await downgrade(engine, tables)
    await upgrade(engine, tables)
    assert (await head_row(engine, tables)).epoch != first.epoch


async def test_an_upgrade_of_what_is_up_to_date_changes_nothing(engine: AsyncEngine) -> None:
    tables = Tables()
    await upgrade(engine, tables)
    row = await head_row(engine, tables)
    await upgrade(engine, tables)
    assert await head_row(engine, tables) == row


async def test_a_downgrade_of_an_empty_database_changes_nothing(engine: AsyncEngine) -> None:
    await downgrade(engine, Tables())
    assert await everything(engine) == set()


async def test_revisions_may_be_relative(engine: AsyncEngine) -> None:
    tables = Tables()
    await upgrade(engine, tables, "+1")
    assert await migrations.run(engine, tables, migrations.current) == migrations.revisions()[0]
    await downgrade(engine, tables, "-1")
    assert await migrations.run(engine, tables, migrations.current) is None


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("revision", ["9999", "-1", "+0", "+", "+1x", "+" + "9" * 5_000, "+١", "", "nonsense'"])
async def test_an_unknown_revision_is_refused(engine: AsyncEngine, revision: str) -> None:
    expected = r"there is no revision .* to go to, expected base, 0001, 0002, 0003, head, or relative \+1, \+2, …$"
    with pytest.raises(StoreError, match=expected):
        await upgrade(engine, Tables(), revision)
    assert await everything(engine) == set()


@pytest.mark.databases("sqlite")
async def test_a_downgrade_goes_down_only(engine: AsyncEngine) -> None:
    with pytest.raises(
        StoreError, match=r"no revision '\+1' to go to, expected base, 0001, 0002, 0003, head, or relative -1, -2, …$"
    ):
        await downgrade(engine, Tables(), "+1")


async def test_a_relative_revision_beyond_head_or_below_base_is_refused_and_changes_nothing(
    engine: AsyncEngine,
) -> None:
    tables = Tables()
    with pytest.raises(StoreError, match=r"there is no revision -1 from base, they go from base to 0003 \(head\)"):
        await downgrade(engine, tables, "-1")
    await upgrade(engine, tables)
    before = await everything(engine)
    with pytest.raises(StoreError, match=r"there is no revision \+1 from 0003, they go from base to 0003 \(head\)"):
        await upgrade(engine, tables, "+1")
    with pytest.raises(StoreError, match="there is no revision -4 from 0003"):
        await downgrade(engine, tables, "-4")
    assert await everything(engine) == before


@pytest.mark.databases("sqlite", "mysql")
async def test_a_schema_is_refused_where_there_are_none(engine: AsyncEngine) -> None:
    for work in (migrations.upgrade, migrations.check):
        with pytest.raises(SettingsError, match="EVENTBUS_DB_SCHEMA"):
            await migrations.run(engine, Tables("bus_", "events"), work)


@pytest.mark.databases("sqlite", "postgresql")
async def test_an_upgrade_is_part_of_the_callers_transaction(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.run_sync(migrations.upgrade, Tables())
        await connection.rollback()
    assert await everything(engine) == set()


@pytest.mark.databases("mysql")
async def test_an_upgrade_that_was_broken_off_is_taken_up_by_the_next_one(engine: AsyncEngine) -> None:
    tables = Tables()
    await upgrade(engine, tables)
    async with engine.begin() as connection:
        for broken in ("DROP TABLE bus_processed", "DROP INDEX bus_scheduled_publish_at ON bus_scheduled"):
            await connection.execute(text(broken))
        await connection.execute(text("DELETE FROM bus_alembic_version"))
    await upgrade(engine, tables)
    assert await differences(engine, tables) == []
    assert (await head_row(engine, tables)).last_seq == 0


@pytest.mark.databases("mysql")
async def test_a_downgrade_that_was_broken_off_is_taken_up_by_the_next_one(engine: AsyncEngine) -> None:
    await upgrade(engine, Tables())
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE bus_processed"))
    await downgrade(engine, Tables())
    assert await everything(engine) == set()


@pytest.mark.databases("mysql")
async def test_topics_compare_by_their_bytes(engine: AsyncEngine) -> None:
    await upgrade(engine, Tables())
    async with engine.connect() as connection:
        columns = await connection.execute(
            text(
                "SELECT DISTINCT collation_name FROM information_schema.columns WHERE table_schema = database() "
                "AND table_name <> 'bus_alembic_version' AND collation_name IS NOT NULL"
            )
        )
        assert columns.scalars().all() == ["utf8mb4_bin"]


async def test_psycopg_does_the_same(new_database: Callable[[str], str]) -> None:
    engine = create_async_engine(as_psycopg(new_database("postgresql")))
    await upgrade(engine, Tables())
    assert await differences(engine, Tables()) == []
    await downgrade(engine, Tables())
    assert await everything(engine) == set()
    await engine.dispose()


# --- what a start asks ---------------------------------------------------------------------------


async def test_a_check_is_content_with_the_newest_revision(engine: AsyncEngine) -> None:
    await upgrade(engine, Tables())
    await migrations.run(engine, Tables(), migrations.check)
    assert await migrations.run(engine, Tables(), migrations.current) == migrations.head_revision()


async def test_a_check_of_an_empty_database_names_the_command(engine: AsyncEngine) -> None:
    with pytest.raises(SchemaOutdated) as caught:
        await migrations.run(engine, Tables("x_"), migrations.check)
    assert str(caught.value) == (
        "the database has no tables of the bus (x_alembic_version is missing or empty), "
        f"revision {migrations.head_revision()} is needed; run `eventbus migrate upgrade` "
        "with EVENTBUS_DATABASE_URL set to the database, EVENTBUS_TABLE_PREFIX=x_"
    )


@pytest.mark.databases("postgresql")
async def test_a_check_of_a_missing_schema_names_the_schema(engine: AsyncEngine) -> None:
    with pytest.raises(SchemaOutdated, match=r"events\.bus_alembic_version .*EVENTBUS_DB_SCHEMA=events"):
        await migrations.run(engine, Tables("bus_", "events"), migrations.check)


async def test_a_check_of_older_tables_names_both_revisions(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await upgrade(engine, Tables())
    monkeypatch.setattr(migrations, "revisions", lambda *_: ("0001", "0002", "0003", "0004"))
    with pytest.raises(SchemaOutdated, match=r"at revision 0003, revision 0004 is needed; run `eventbus migrate upgr"):
        await migrations.run(engine, Tables(), migrations.check)


async def test_tables_of_a_newer_package_are_neither_used_nor_changed(engine: AsyncEngine) -> None:
    tables = Tables()
    await upgrade(engine, tables)
    await set_revision(engine, tables, "9999")
    before = await everything(engine)
    for work in (migrations.check, migrations.upgrade):
        with pytest.raises(SchemaOutdated, match=r"at revision 9999, which .* does not know, revision 0003 is needed"):
            await migrations.run(engine, tables, work)
    with pytest.raises(SchemaOutdated, match="install the newer eventbus-fastapi"):
        await downgrade(engine, tables)
    assert await everything(engine) == before


async def test_an_up_to_date_database_is_checked_in_silence(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tables = Tables()
    await upgrade(engine, tables)
    handlers, level = list(logging.getLogger().handlers), logging.getLogger("alembic").level
    capfd.readouterr()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        await upgrade(engine, tables)
        await migrations.run(engine, tables, migrations.check)
    assert [record.getMessage() for record in caplog.records if not record.name.startswith("sqlalchemy")] == []
    assert capfd.readouterr() == ("", "")
    assert (logging.getLogger().handlers, logging.getLogger("alembic").level) == (handlers, level)


async def test_what_an_upgrade_did_is_logged_and_not_printed(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "eventbus_fastapi"):
        await upgrade(engine, Tables())
    assert "moved bus_alembic_version from revision base to 0003" in caplog.messages
    assert capfd.readouterr() == ("", "")


async def test_a_database_that_cannot_be_reached_is_unavailable() -> None:
    settings = Settings(database_url="postgresql+asyncpg://postgres@127.0.0.1:1/nothing")
    with pytest.raises(StoreUnavailable, match="Connect call failed"):
        await migrations.run(settings, Tables(), migrations.current)


# --- many at once --------------------------------------------------------------------------------


async def test_upgrades_at_once_in_one_process_make_one_log(database_url: str) -> None:
    tables = Tables()
    settings = Settings(database_url=database_url)
    await asyncio.gather(*(migrations.run(settings, tables, migrations.upgrade) for _ in range(5)))
    engine = create_engine(settings)
    assert (await head_row(engine, tables)).last_seq == 0
    assert await differences(engine, tables) == []
    await engine.dispose()


UPGRADE = """
import asyncio, sys
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.schema import Tables, TableSet

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(migrations.run(Settings(), Tables(), migrations.upgrade))
"""


@pytest.mark.databases("sqlite")
async def test_upgrades_at_once_in_several_processes_make_one_log(engine: AsyncEngine, database_url: str) -> None:
    processes = [await start(["-c", UPGRADE], EVENTBUS_DATABASE_URL=database_url) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    outcomes = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    assert [(process.returncode, *outcome) for process, outcome in zip(processes, outcomes, strict=True)] == [
        (0, b"", b"")
    ] * 4
    assert (await head_row(engine, Tables())).last_seq == 0
    assert await differences(engine, Tables()) == []


# --- as SQL text ---------------------------------------------------------------------------------


@PREFIXES
async def test_the_sql_text_makes_the_same_tables(engine: AsyncEngine, database_url: str, prefix: str) -> None:
    tables = Tables(prefix)
    await execute_script(engine, migrations.sql(database_url, tables))
    assert await differences(engine, tables) == []
    await migrations.run(engine, tables, migrations.check)


@pytest.mark.databases("postgresql")
async def test_the_sql_text_makes_the_schema(engine: AsyncEngine, database_url: str) -> None:
    tables = Tables("bus_", "Events")
    await execute_script(engine, migrations.sql(database_url, tables))
    assert await differences(engine, tables) == []
    await execute_script(engine, migrations.sql(database_url, tables, "head", "base"))
    assert await everything(engine) == set()


async def test_the_sql_text_of_a_downgrade_removes_everything(engine: AsyncEngine, database_url: str) -> None:
    tables = Tables()
    await upgrade(engine, tables)
    await execute_script(engine, migrations.sql(database_url, tables, "head", "base"))
    assert await everything(engine) == set()


async def test_each_database_that_runs_the_sql_text_gets_an_epoch_of_its_own(
    engine: AsyncEngine, database_url: str
) -> None:
    tables = Tables()
    script = migrations.sql(database_url, tables)
    await execute_script(engine, script)
    first = await head_row(engine, tables)
    await downgrade(engine, tables)
    await execute_script(engine, script)
    assert (await head_row(engine, tables)).epoch != first.epoch


def test_the_sql_text_needs_no_database_only_its_kind() -> None:
    assert migrations.sql("postgresql", Tables()) == migrations.sql("postgresql+psycopg://nobody@nowhere/x", Tables())


@pytest.mark.parametrize(
    ("start", "end", "same"), [("base", "+1", "0001"), ("base", "+3", "head"), ("head", "-1", "0002")]
)
def test_the_sql_text_to_a_relative_revision_is_seen_from_its_start(start: str, end: str, same: str) -> None:
    assert migrations.sql("postgresql", Tables(), start, end) == migrations.sql("postgresql", Tables(), start, same)


@pytest.mark.parametrize(("start", "end"), [("base", "-1"), ("head", "+1")])
def test_the_sql_text_goes_no_further_than_the_revisions(start: str, end: str) -> None:
    with pytest.raises(StoreError, match="they go from base to 0003"):
        migrations.sql("postgresql", Tables(), start, end)


@pytest.mark.parametrize("revision", ["base", "head"])
def test_the_sql_text_from_a_revision_to_itself_does_nothing(revision: str) -> None:
    assert migrations.sql("postgresql", Tables("bus_", "events"), revision, revision).split() == ["BEGIN;", "COMMIT;"]


@pytest.mark.parametrize("name", ["nope", "nope://", "oracle", "mssql+aioodbc://db/app"])
def test_there_is_no_sql_text_for_other_databases(name: str) -> None:
    with pytest.raises(SettingsError, match=r"expected one of sqlite, postgresql, mysql, mariadb"):
        migrations.sql(name, Tables())


async def execute_script(engine: AsyncEngine, script: str) -> None:
    statements = [part.strip() for part in re.sub(r"^--.*$", "", script, flags=re.MULTILINE).split(";")]
    async with engine.begin() as connection:
        for statement in statements:
            if statement and statement not in ("BEGIN", "COMMIT"):
                await connection.exec_driver_sql(statement)


# --- Alembic by hand -----------------------------------------------------------------------------


@pytest.mark.databases("postgresql")
async def test_alembic_by_hand_upgrades_checks_and_downgrades(engine: AsyncEngine, database_url: str) -> None:
    async def alembic(*arguments: str) -> str:
        arguments = ("-m", "alembic", "-c", str(ROOT / "alembic.ini"), *arguments)
        return await run(arguments, EVENTBUS_DATABASE_URL=database_url, EVENTBUS_TABLE_PREFIX="x_")

    await alembic("upgrade", "head")
    assert await differences(engine, Tables("x_")) == []
    assert "No new upgrade operations detected" in await alembic("check")
    await alembic("downgrade", "base")
    assert await everything(engine) == set()
    assert "CREATE TABLE x_head" in await alembic("upgrade", "head", "--sql")


async def test_alembics_own_commands_take_a_connection(engine: AsyncEngine) -> None:
    config = Config(ROOT / "alembic.ini")
    config.attributes["tables"] = Tables("x_")

    def up(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        command.check(config)

    async with engine.begin() as connection:
        await connection.run_sync(up)
    assert await differences(engine, Tables("x_")) == []


async def test_an_installed_package_carries_its_revisions(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "eventbus_fastapi", tmp_path / "eventbus_fastapi")
    shutil.copytree(ROOT / "alembic", tmp_path / "eventbus_fastapi" / "_alembic")
    script = "from eventbus_fastapi.store import migrations as m; print(m.__file__, m.revisions())"
    output = await run(["-c", script], PYTHONPATH=str(tmp_path), cwd=tmp_path)
    assert output.split() == [
        str(tmp_path / "eventbus_fastapi/store/migrations.py"),
        *str(migrations.revisions()).split(),
    ]


# --- Alembic of the user's own -------------------------------------------------------------------

PAGE = (ROOT / "docs" / "migrations.md").read_text()


def from_page(title: str) -> str:
    """Return the block of docs/migrations.md that has this title, without the indentation of its list item."""
    found = re.search(rf'^   ```python title="{re.escape(title)}"\n(.*?)^   ```$', PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/migrations.md has no block {title}"
    return re.sub(r"^   ", "", found[1], flags=re.MULTILINE)


TEMPLATES = {"sqlite": "generic", "postgresql": "async", "mysql": "generic"}

METADATA = """
import sqlalchemy

target_metadata = sqlalchemy.MetaData()
sqlalchemy.Table("users", target_metadata, sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True))

"""

USERS = """
def upgrade() -> None:
    op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))


def downgrade() -> None:
    op.drop_table("users")
"""


class Project:
    """Somebody's project with an Alembic history of its own."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.template = TEMPLATES[kind_of(url)]
        self.url = url if self.template == "async" else as_sync(url)
        self.config = Config(directory / "alembic.ini", stdout=io.StringIO())

    def create(self) -> None:
        command.init(self.config, str(self.directory / "migrations"), self.template)
        self.edit("alembic.ini", "driver://user:pass@localhost/dbname", self.url.replace("%", "%%"))
        self.edit("migrations/env.py", "target_metadata = None\n", METADATA)
        self.revision("add users", USERS)

    async def alembic(self, *arguments: str) -> str:
        return await run(["-m", "alembic", *arguments], cwd=self.directory)

    def revision(self, message: str, functions: str) -> None:
        """Make a revision and write these functions in place of its empty ones."""
        command.revision(self.config, message)
        path = next(self.directory.glob(f"migrations/versions/*_{message.replace(' ', '_')}.py"))
        path.write_text(path.read_text().split("def upgrade()")[0] + functions)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.directory / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


async def test_the_page_adds_our_tables_to_somebodys_own_history(
    engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    project = Project(tmp_path, database_url)
    project.create()
    before = await everything(engine)

    project.edit("migrations/env.py", METADATA, METADATA + from_page("env.py"))
    argument = "target_metadata=target_metadata"
    project.edit("migrations/env.py", f"{argument},", argument)
    project.edit("migrations/env.py", argument, f"{argument}, {from_page('context.configure').strip()}")
    project.revision("add the event bus", from_page("revision"))

    await project.alembic("upgrade", "head")
    await migrations.run(engine, Tables(), migrations.check)
    assert await differences(engine, Tables()) == []
    assert (await head_row(engine, Tables())).last_seq == 0
    assert "No new upgrade operations detected" in await project.alembic("check")

    await project.alembic("downgrade", "-1")
    left = {name for kind, name in await everything(engine) - before if kind != "type"}
    assert not any("bus_" in name for name in left)
    assert any("users" in name for name in left)

    script = await project.alembic("upgrade", "head", "--sql")
    assert script.index("CREATE TABLE users") < script.index("CREATE TABLE bus_event")
    assert script.count("INSERT INTO bus_head") == script.count("INSERT INTO bus_alembic_version") == 1
    assert script.count("COMMIT") <= 1


# --- processes -----------------------------------------------------------------------------------


async def start(arguments: Any, cwd: Path = ROOT, **environment: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EVENTBUS_")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return await asyncio.create_subprocess_exec(
        *[sys.executable, "-W", "error", *arguments],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        cwd=cwd,
        env={**inherited, "PYTHONPATH": path, **environment},
    )


async def run(arguments: Any, cwd: Path = ROOT, **environment: str) -> str:
    """Run Python and return what it printed; it must succeed, without a warning."""
    process = await start(arguments, cwd, **environment)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert b"Warning" not in errors, errors.decode()
    return output.decode()
