"""The tables of an outbox in a database that is not the bus's: what a forwarder carries to the bus.

    forward_outbox   events of committed or still open transactions that the bus has not answered yet.
    forward_refused  events that the bus has refused for good, with its reason.
    forward_lease    one row: which forwarder works, and until when nobody else may.

An event says here all that it was published with, also when and as what (`publish_at`, `unique_rule`): the bus decides
about that. The names differ from the bus's own, so that one database may hold both.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text

from eventbus_fastapi.store.schema import TABLE_OPTIONS, TableSet, big_key, event_columns, uuid_type


class ForwardTables(TableSet):
    """The tables of an outbox; `prefix` is that of a bus (`bus_`), and they add `forward_` to it."""

    history = "forward"
    title = "tables of an outbox"
    version = "forward_alembic_version"
    command = "eventbus migrate upgrade --outbox URL"

    def __init__(self, prefix: str = "bus_", schema: str | None = None) -> None:
        super().__init__(prefix, schema)
        self.outbox = Table(
            f"{prefix}forward_outbox",
            self.metadata,
            Column("id", big_key(), primary_key=True, autoincrement=True),
            *event_columns(),
            Column("ttl", BigInteger),
            Column("publish_at", BigInteger),  # unix microseconds by this database's clock; NULL: at once
            Column("unique_rule", Text),  # a JSON object; NULL: none
            Column("created_at", BigInteger, nullable=False),
            **TABLE_OPTIONS,
        )
        self.refused = Table(
            f"{prefix}forward_refused",
            self.metadata,
            Column("id", big_key(), primary_key=True, autoincrement=True),
            *event_columns(),
            Column("ttl", BigInteger),
            Column("publish_at", BigInteger),
            Column("unique_rule", Text),
            Column("created_at", BigInteger, nullable=False),
            Column("refused_at", BigInteger, nullable=False),
            Column("code", String(64), nullable=False),
            Column("reason", Text, nullable=False),
            **TABLE_OPTIONS,
        )
        self.lease = Table(
            f"{prefix}forward_lease",
            self.metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("token", uuid_type()),
            Column("until", BigInteger, nullable=False),
            **TABLE_OPTIONS,
        )
