"""The revisions of our tables: says where a database stands, and moves it from one revision to another.

The steps are Alembic revisions (`alembic/versions` in a checkout, `eventbus_fastapi/_alembic/versions` in an
installed package). They run on the connection that the caller gives and in its transaction; nothing is committed
here, except on MySQL, where every CREATE and DROP commits by itself. Our version table is
`{prefix}alembic_version`, so a database may hold other Alembic histories beside ours.

Alembic's global proxies (`alembic.op`, `alembic.context`) and its env.py are never used here: several migrations
may run in one process at once, also from inside a migration of the user's own. Nothing is printed, no logging is
set up.

There are two histories: that of a bus's tables, and that of an outbox in another database (`forward_schema`). Which one
is meant is said by the tables that a function gets. What is said without any is about a bus's.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Column, Connection, MetaData, String, Table, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateSchema, DropTable

from eventbus_fastapi.errors import SchemaOutdated, SettingsError, StoreError, StoreUnavailable, quote
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.engines import BEGIN, MYSQL, create_engine, parse_url
from eventbus_fastapi.store.failures import FAILURES, translate
from eventbus_fastapi.store.schema import Tables, TableSet

logger = logging.getLogger(__name__)

P = ParamSpec("P")
S = TypeVar("S", bound=TableSet)
T = TypeVar("T")

TRANSACTIONAL = ("sqlite", "postgresql")
"""The databases where an upgrade is one transaction: it happens or it does not."""
MYSQL_LOCK_TIMEOUT = 60
"""Seconds to wait on MySQL while another process migrates the same tables."""


# --- where a database stands ---------------------------------------------------------------------


def current(connection: Connection, tables: TableSet) -> str | None:
    """Return the revision of our tables in the database; None when it has none."""
    _check_schema_setting(connection.dialect.name, tables)
    if not inspect(connection).has_table(tables.version_table, tables.schema):
        return None
    found = connection.scalars(select(_version_table(tables).c.version_num)).all()
    return ", ".join(sorted(found)) or None


def head_revision(history: str = Tables.history) -> str:
    """Return the revision that this version of the package works with."""
    return revisions(history)[-1]


@cache
def revisions(history: str = Tables.history) -> tuple[str, ...]:
    """Return every revision that this version of the package knows, oldest first."""
    return tuple(reversed([script.revision for script in _scripts(history).walk_revisions()]))


def check(connection: Connection, tables: TableSet) -> None:
    """Make sure that the database has the tables that this version of the package works with.

    Raises:
        SchemaOutdated: it has none, older or newer ones; the message names the command to run.
    """
    found, needed = current(connection, tables), head_revision(tables.history)
    if found is None:
        raise SchemaOutdated(
            f"the database has no {tables.title} ({_qualified(tables)} is missing or empty), "
            f"revision {needed} is needed; run `{tables.command}`{_environment(tables)}"
        )
    _refuse_newer(found, tables)
    if found != needed:
        raise SchemaOutdated(
            f"the {tables.title} are at revision {found}, revision {needed} is needed; "
            f"run `{tables.command}`{_environment(tables)}"
        )


def table_names(tables: TableSet) -> frozenset[str]:
    """Return the names of all our tables and of the version table: what other histories must leave alone."""
    return frozenset({table.name for table in tables.metadata.tables.values()} | {tables.version_table})


# --- moving it -----------------------------------------------------------------------------------


def upgrade(connection: Connection, tables: TableSet, revision: str = "head") -> None:
    """Bring the tables up to `revision`; do nothing when they are there or beyond.

    `revision` is one of `revisions()`, "head", or relative ("+1"): so many beyond where they are. Safe to call from
    several processes at once: one does the work, the others wait until its transaction ends. A schema that is missing
    is created. On SQLite a transaction that is open already must have begun with BEGIN IMMEDIATE. On MySQL the
    transaction is committed before and after.

    Raises:
        SchemaOutdated: the tables are newer than this version of the package.
        StoreError: there is no such revision, or not so many.
        SettingsError: `tables` names a schema and the database is not PostgreSQL.
    """
    history = tables.history
    with alone(connection, tables):
        start = current(connection, tables)
        end = _resolve(revision, start, tables, sign="+")
        if _place(history, end) > _place(history, start):
            _migrate(connection, tables, start, end)


def downgrade(connection: Connection, tables: TableSet, revision: str) -> None:
    """Take the tables back to `revision`; do nothing when they are there or below.

    `revision` is one of `revisions()`, "base", or relative ("-1"). "base" removes all our tables with every event
    in them, and the version table; a schema stays, even one that `upgrade` created. Locks, transactions and errors
    are those of `upgrade`.
    """
    history = tables.history
    with alone(connection, tables):
        start = current(connection, tables)
        end = _resolve(revision, start, tables, sign="-")
        if _place(history, end) < _place(history, start):
            _migrate(connection, tables, start, end)


def move(context: MigrationContext, tables: TableSet, start: str, end: str) -> None:
    """Run the steps between two of our revisions as a part of a migration in another Alembic history.

    `context` is what `op.get_context()` returns there. Online this is `upgrade` or `downgrade` to `end`; offline
    (`--sql`) the steps are written to where the other history is written. A relative `end` is seen from `start`.
    """
    _check_schema_setting(context.dialect.name, tables)
    first = _resolve(start, None, tables)
    last = _resolve(end, first, tables)
    if context.as_sql:
        _write_sql(context, tables, first, last)
        return
    if context.connection is None:
        raise StoreError("the migration context has no connection")
    history = tables.history
    go = upgrade if _place(history, last) > _place(history, first) else downgrade
    go(context.connection, tables, last or "base")


def sql(database: str | URL, tables: TableSet, start: str = "base", end: str = "head") -> str:
    """Return the SQL text that moves a database from one revision to another; nothing is connected to.

    `database` is a URL, of which only the kind of database matters, or the name of one: "postgresql".

    Raises:
        SettingsError: it is no database that the bus works with, or `tables` names a schema that it cannot have.
        StoreError: there is no such revision.
    """
    url = database if isinstance(database, URL) else parse_url(database if "://" in database else f"{database}://")
    kind = url.get_backend_name()
    if kind not in (*TRANSACTIONAL, *MYSQL):
        expected = ", ".join((*TRANSACTIONAL, *MYSQL))
        raise SettingsError(f"database URL names {quote(kind)}, expected one of {expected}")
    text = io.StringIO()
    context = MigrationContext.configure(
        dialect_name=kind,
        opts={"as_sql": True, "output_buffer": text, "transactional_ddl": kind in TRANSACTIONAL},
    )
    with context.begin_transaction():
        move(context, tables, start, end)
    return text.getvalue()


async def run(
    database: Settings | AsyncEngine,
    tables: S,
    work: Callable[Concatenate[Connection, S, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run one of the functions above in a transaction of its own, as in `run(settings, tables, upgrade)`.

    An engine made from settings is disposed again.

    Raises:
        StoreUnavailable: the database cannot be reached or is busy; trying again makes sense.
        StoreError: it refused the work, or what `work` raises.
        SettingsError: the URL of the settings cannot be used.
    """
    engine = database if isinstance(database, AsyncEngine) else create_engine(database)
    try:
        async with engine.connect() as connection:
            await connection.execution_options(**{BEGIN: "IMMEDIATE"})
            async with connection.begin():
                return await connection.run_sync(work, tables, *args, **kwargs)
    except FAILURES as exc:
        raise translate(exc) from exc
    finally:
        if engine is not database:
            await engine.dispose()


# --- for env.py ----------------------------------------------------------------------------------


def run_steps(context: MigrationContext, tables: TableSet) -> None:
    """Run the steps that `context` was made for. A schema comes before the first, the version table goes with the last.

    Offline, the version table stays: only who asked for the steps knows where they end.
    """
    is_reading = context.opts.get("dont_mutate", False)
    if not is_reading:
        _prepare(context, tables)
    context.run_migrations(op=Operations(context), prefix=tables.prefix, schema=tables.schema)
    if not is_reading and not context.as_sql and not context.get_current_heads():
        _drop_version_table(context, tables)


def context_options(tables: TableSet) -> dict[str, Any]:
    """Return what an Alembic context must know of our history, for `context.configure(**…)`."""
    return {"version_table": tables.version_table, "version_table_schema": tables.schema}


@contextmanager
def alone(connection: Connection, tables: TableSet) -> Iterator[None]:
    """Keep other migrations of the same tables waiting until the connection's transaction ends."""
    dialect = connection.dialect.name
    if dialect == "sqlite":
        _begin_immediate(connection)
        yield
    elif dialect == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_lock_number(tables.schema, tables.prefix))))
        yield
    else:
        # MySQL commits at every CREATE and DROP, so only a lock of the session spans the work. A commit comes first,
        # as a snapshot taken earlier would not see what others did, and last, so that the next one sees the version.
        name = f"eventbus:{_lock_number(connection.scalar(select(func.database())), tables.prefix)}"
        if not connection.scalar(select(func.get_lock(name, MYSQL_LOCK_TIMEOUT))):
            raise StoreUnavailable(f"another migration of {_qualified(tables)} has run for {MYSQL_LOCK_TIMEOUT} s")
        try:
            connection.exec_driver_sql("COMMIT")
            yield
            connection.exec_driver_sql("COMMIT")
        finally:
            connection.execute(select(func.release_lock(name)))


# --- how -----------------------------------------------------------------------------------------


@cache
def _scripts(history: str) -> ScriptDirectory:
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "_alembic", package.parent / "alembic"):
        if (directory / history / "versions").is_dir():
            return ScriptDirectory(str(directory / history))
    raise StoreError(f"the migrations are missing, expected them in {package / '_alembic'}")


def _resolve(revision: str, start: str | None, tables: TableSet, *, sign: str = "+-") -> str | None:
    """Return the revision that is meant, seen from `start`; None is base. A relative one begins with one of `sign`."""
    if start is not None:
        _refuse_newer(start, tables)
    history = tables.history
    if revision == "head":
        return head_revision(history)
    if revision == "base":
        return None
    if re.fullmatch(rf"[{sign}][1-9][0-9]{{0,3}}", revision):
        return _go(history, start, int(revision))
    if revision not in revisions(history):
        expected = ", ".join(("base", *revisions(history), "head"))
        relative = " or ".join(f"{one}1, {one}2, …" for one in sign)
        raise StoreError(
            f"there is no revision {quote(revision)} to go to, expected {expected}, or relative {relative}"
        )
    return revision


def _go(history: str, start: str | None, steps: int) -> str | None:
    place = _place(history, start) + steps
    if not 0 <= place <= len(revisions(history)):
        head = head_revision(history)
        raise StoreError(f"there is no revision {steps:+d} from {start or 'base'}, they go from base to {head} (head)")
    return (None, *revisions(history))[place]


def _place(history: str, revision: str | None) -> int:
    return 0 if revision is None else revisions(history).index(revision) + 1


def _migrate(connection: Connection, tables: TableSet, start: str | None, end: str | None) -> None:
    context = MigrationContext.configure(connection, opts=_steps(tables, start, end))
    run_steps(context, tables)
    logger.info("moved %s from revision %s to %s", _qualified(tables), start or "base", end or "base")


def _write_sql(outer: MigrationContext, tables: TableSet, start: str | None, end: str | None) -> None:
    if start == end:
        return
    context = MigrationContext.configure(
        dialect=outer.dialect,
        opts={
            **_steps(tables, start, end),
            "as_sql": True,
            "output_buffer": outer.output_buffer,
            "starting_rev": start or "base",
        },
    )
    run_steps(context, tables)
    if end is None:
        _drop_version_table(context, tables)


def _steps(tables: TableSet, start: str | None, end: str | None) -> dict[str, Any]:
    history = tables.history
    scripts = _scripts(history)

    def steps(heads: Any, context: MigrationContext) -> Any:
        if _place(history, end) > _place(history, start):
            return scripts._upgrade_revs(end or "base", start or "base")
        return scripts._downgrade_revs(end or "base", start)

    return {**context_options(tables), "script": scripts, "fn": steps}


def _prepare(context: MigrationContext, tables: TableSet) -> None:
    connection = None if context.as_sql else context.connection
    # CREATE SCHEMA IF NOT EXISTS needs the right to create one even where it exists, so look first.
    has_schema = connection is not None and tables.schema and inspect(connection).has_schema(tables.schema)
    if tables.schema and not has_schema and not context.get_current_heads():
        context.execute(CreateSchema(tables.schema, if_not_exists=True))
    if connection is not None and context.dialect.name in MYSQL:
        # Alembic would give the primary key a name, which MariaDB answers with a warning.
        _version_table(tables).create(connection, checkfirst=True)


def _drop_version_table(context: MigrationContext, tables: TableSet) -> None:
    context.execute(DropTable(_version_table(tables), if_exists=True))


def _version_table(tables: TableSet) -> Table:
    return Table(
        tables.version_table,
        MetaData(schema=tables.schema),
        Column("version_num", String(32), primary_key=True),
    )


def _begin_immediate(connection: Connection) -> None:
    if not connection.in_transaction():
        mode = connection.get_execution_options().get(BEGIN, "DEFERRED")
        connection.execution_options(**{BEGIN: "IMMEDIATE"})
        connection.begin()
        connection.execution_options(**{BEGIN: mode})
    # An engine without our listener leaves BEGIN to the driver, which puts it off until the first INSERT.
    driver: Any = connection.connection.driver_connection
    if not driver.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _lock_number(*names: str | None) -> int:
    digest = hashlib.sha256(repr(("eventbus", *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _check_schema_setting(dialect: str, tables: TableSet) -> None:
    if tables.schema is not None and dialect != "postgresql":
        raise SettingsError(f"setting db_schema (EVENTBUS_DB_SCHEMA) is for PostgreSQL only, the database is {dialect}")


def _refuse_newer(found: str, tables: TableSet) -> None:
    if found in revisions(tables.history):
        return
    needed = head_revision(tables.history)
    try:
        package = f"eventbus-fastapi {version('eventbus-fastapi')}"
    except PackageNotFoundError:
        package = "this eventbus-fastapi"
    raise SchemaOutdated(
        f"the {tables.title} are at revision {found}, which {package} does not know, revision {needed} "
        f"is needed; install the newer eventbus-fastapi that made them, or run there "
        f"`{tables.command.replace('upgrade', f'downgrade {needed}')}`{_environment(tables)}"
    )


def _qualified(tables: TableSet) -> str:
    return tables.version_table if tables.schema is None else f"{tables.schema}.{tables.version_table}"


def _environment(tables: TableSet) -> str:
    """Say which settings the command needs to find the same tables."""
    settings = ["EVENTBUS_DATABASE_URL set to the database"] if isinstance(tables, Tables) else []
    if tables.prefix != Settings.model_fields["table_prefix"].default:
        settings.append(f"EVENTBUS_TABLE_PREFIX={tables.prefix}")
    if tables.schema is not None:
        settings.append(f"EVENTBUS_DB_SCHEMA={tables.schema}")
    return f" with {', '.join(settings)}" if settings else ""
