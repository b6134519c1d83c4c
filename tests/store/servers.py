"""What the administrator of a database server does to it, for tests of what the bus makes of it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from tests.databases import as_sync, kind_of


@contextlib.contextmanager
def administrator(url: str) -> Iterator[Connection]:
    """Connect to a database beside the bus, with a sync driver; statements take effect at once."""
    engine = create_engine(as_sync(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection


def end_sessions(url: str, where: str = "TRUE") -> int:
    """End the sessions of everybody else on a database of a server; return how many. `where` chooses on PostgreSQL."""
    with administrator(url) as connection:
        if kind_of(url) == "postgresql":
            ended = connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    f" WHERE datname = current_database() AND pid <> pg_backend_pid() AND {where}"
                )
            )
            return len(ended.all())
        sessions = connection.execute(
            text("SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()")
        )
        numbers = list(sessions.scalars())
        for number in numbers:
            connection.execute(text(f"KILL {number}"))
        return len(numbers)


def unreachable(url: str) -> str:
    """Return the URL of a server that does not exist, in place of a server's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return make_url(url).set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
