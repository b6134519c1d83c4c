"""What a driver's error means: run the transaction again, reconnect, give up for now, or a refusal.

The codes are those of PostgreSQL (SQLSTATE), MySQL/MariaDB (error numbers) and SQLite (result codes); drivers keep them
in different places, and this is the one place that knows where.
"""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from eventbus_fastapi.errors import StoreError, StoreUnavailable

FAILURES = (SQLAlchemyError, OSError, TimeoutError)
"""What a database operation may raise, besides bugs of ours."""

CONTENTION_STATES = ("40001", "40P01")
CONTENTION_NUMBERS = (1213, 1205, 1020)
"""Deadlock, lock wait timeout, and MariaDB's "record has changed since last read"."""
BUSY, LOCKED = 5, 6

PASSING_STATES = ("08", "57P", "53", "40", "55P03", "57014", "25006")
"""SQLSTATE classes that pass by themselves: connection, shutdown and start-up, resources, rollback, lock and statement
timeout, a server that is read-only after a failover."""
PASSING_NUMBERS = (1021, 1040, 1053, 1129, 1203, 1290, 1836)
"""The same of MySQL: disk full, too many connections, shutdown, host blocked, user's connections, read-only (two)."""
CLIENT_NUMBERS = range(2000, 3000)
"""What MySQL's client says when it has not reached the server, or has lost it."""
MISSING_STATE, MISSING_NUMBER = "42P01", 1146
"""A table that is not there: on PostgreSQL, on MySQL."""
FULL = 13
"""SQLite's word for a full disk."""


def is_contention(exc: BaseException) -> bool:
    """True if the database asks to run the whole transaction again."""
    if not isinstance(exc, DBAPIError) or exc.orig is None:
        return False
    arguments = exc.orig.args
    return (
        getattr(exc.orig, "sqlstate", None) in CONTENTION_STATES
        or _sqlite_code(exc) in (BUSY, LOCKED)
        or (bool(arguments) and arguments[0] in CONTENTION_NUMBERS)
    )


def is_disconnect(exc: BaseException) -> bool:
    """True if the connection, not the statement, failed."""
    if isinstance(exc, DBAPIError):
        return exc.connection_invalidated
    return isinstance(exc, OSError) and not isinstance(exc, TimeoutError)


def is_missing_table(exc: BaseException) -> bool:
    """True if a table that the statement names is not there."""
    if not isinstance(exc, DBAPIError) or exc.orig is None:
        return False
    if isinstance(exc.orig, sqlite3.Error):
        return str(exc.orig).startswith("no such table")
    arguments = exc.orig.args
    return getattr(exc.orig, "sqlstate", None) == MISSING_STATE or bool(arguments and arguments[0] == MISSING_NUMBER)


def translate(exc: BaseException) -> StoreError:
    """Turn a driver's error into ours: StoreUnavailable if trying again makes sense, else StoreError."""
    hide_parameters(exc)
    if _passes(exc):
        return StoreUnavailable(f"the database is not available: {first_line(exc)}")
    return StoreError(f"the database refused: {first_line(exc)}")


def hide_parameters(exc: BaseException) -> None:
    """Have an error of SQLAlchemy's not show what its statement was given: it is the cause of ours, and may be logged
    with it.
    """
    if isinstance(exc, StatementError):
        exc.hide_parameters = True


def _passes(exc: BaseException) -> bool:
    if isinstance(exc, SQLAlchemyError) and not isinstance(exc, DBAPIError):
        return isinstance(exc, PoolTimeout)  # the others say that SQLAlchemy was used wrongly
    if not isinstance(exc, DBAPIError) or is_disconnect(exc) or is_contention(exc):
        return True
    if isinstance(exc.orig, sqlite3.Error):
        return _sqlite_code(exc) == FULL
    number = exc.orig.args[0] if exc.orig is not None and exc.orig.args else None
    if isinstance(number, int):
        return number in PASSING_NUMBERS or number in CLIENT_NUMBERS
    state = getattr(exc.orig, "sqlstate", None)
    if state is None:  # psycopg has none for a server that it cannot reach
        return isinstance(exc, OperationalError)
    return isinstance(state, str) and state.startswith(PASSING_STATES)


def _sqlite_code(exc: DBAPIError) -> int | None:
    code = getattr(exc.orig, "sqlite_errorcode", None)  # errors of the Python module itself have none
    return code & 0xFF if isinstance(code, int) else None


def first_line(exc: BaseException) -> str:
    """Return what the driver said, one line, without the statement and its parameters."""
    said = str(getattr(exc, "orig", None) or exc).strip()
    return said.splitlines()[0][:300] if said else type(exc).__name__
