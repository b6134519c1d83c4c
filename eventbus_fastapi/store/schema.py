"""The tables of a bus: one schema for every database.

    head        one row: the last seq given, the oldest seq kept, the log's epoch. Its row lock orders the log.
    event       the log. Append-only; `seq` is dense. Rows are never updated, only removed by retention or TTL.
    outbox      events of committed or still open transactions that have no seq yet. Drained by the sequencer.
    scheduled   events that wait for their time, then move to the outbox.
    processed   the seqs that a reader without a group has acknowledged.
    group       the durable readers of the log: how far each has read, and what it reads.
    lease       ranges of the log that a node holds for a group, with the seqs that are not settled yet.
    retry       events of a group that were not settled at first: when their next attempt is due.
    dead_letter events that a group has given up.
    archive     how events ended for groups that keep it.
    queue       what operators have said about queues: paused, or served by another number of workers.
    worker      the processes that serve queues, each with when it was last seen.
    rate_limit  how often something may be done, and when it was done lately.
    unique      what was published as unique, and until when it stays the only one.
    recurring   events that are published by a schedule, and when the next is due.

Times are unix microseconds in BIGINT columns, always taken from the database's clock: the same value and the same
arithmetic on every database. Payloads are bytes, so what comes out is what went in. Topics, keys and ids compare by
their bytes everywhere (`utf8mb4_bin` on MySQL, whose default would equate `A` and `a`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator, TypeEngine

S = TypeVar("S")


class BinaryUuid(TypeDecorator[UUID]):
    """A UUID as its 16 bytes, where the database has no UUID type of its own."""

    impl = LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.BINARY(16))
        return dialect.type_descriptor(LargeBinary(16))

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> bytes | None:
        return None if value is None else value.bytes

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> UUID | None:
        return None if value is None else UUID(bytes=bytes(value))


def uuid_type() -> TypeEngine[UUID]:
    return Uuid().with_variant(BinaryUuid(), "sqlite", "mysql", "mariadb")


def big_key() -> TypeEngine[int]:
    """A 64-bit key; on SQLite it must be INTEGER to be the table's own rowid."""
    return BigInteger().with_variant(Integer(), "sqlite")


def _payload() -> TypeEngine[bytes]:
    """Bytes up to 16 MiB; MySQL's plain BLOB would end at 64 KiB."""
    return LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def long_text() -> TypeEngine[str]:
    """Text of up to 16 MiB; MySQL's plain TEXT would end at 64 KiB."""
    return Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")


def event_columns() -> list[Column[Any]]:
    return [Column("message_id", uuid_type(), nullable=False), *_content_columns()]


def _content_columns() -> list[Column[Any]]:
    return [
        Column("topic", String(255), nullable=False),
        Column("key", String(255)),
        Column("payload", _payload(), nullable=False),
        Column("content_type", String(127), nullable=False),
        Column("metadata", Text),
    ]


TABLE_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}.items()
}


class TableSet:
    """Tables that come and change together, under one prefix (and, on PostgreSQL, in one schema)."""

    history: ClassVar[str]
    """The folder of their revisions, below that of the migrations."""
    title: ClassVar[str]
    """What errors call them."""
    command: ClassVar[str]
    """Brings them up to date."""

    version: ClassVar[str]
    """The table that says at which revision they are, without the prefix."""

    def __init__(self, prefix: str = "bus_", schema: str | None = None) -> None:
        self.prefix = prefix
        self.schema = schema
        self.metadata = MetaData(schema=schema)
        self.version_table = f"{prefix}{self.version}"
        self._statements: dict[Any, Any] = {}

    @classmethod
    @functools.lru_cache(maxsize=100)
    def shared(cls, prefix: str, schema: str | None) -> Self:
        """Return the tables of these names, the same ones to all who ask.

        They and their statements take longer to make than a store takes to start, and a program may have many buses.
        """
        return cls(prefix, schema)

    def statements(self, kind: Callable[[Self], S]) -> S:
        """Return the statements of a kind over these tables, the same ones to all who ask."""
        if kind not in self._statements:
            self._statements[kind] = kind(self)
        made: S = self._statements[kind]
        return made


class Tables(TableSet):
    """The tables of a bus."""

    history = "."
    title = "tables of the bus"
    version = "alembic_version"
    command = "eventbus migrate upgrade"

    def __init__(self, prefix: str = "bus_", schema: str | None = None) -> None:
        super().__init__(prefix, schema)
        options = TABLE_OPTIONS
        self.head = Table(
            f"{prefix}head",
            self.metadata,
            Column("id", Integer, primary_key=True, autoincrement=False),
            Column("last_seq", BigInteger, nullable=False),
            Column("first_seq", BigInteger, nullable=False),  # the oldest seq that retention has kept
            Column("epoch", uuid_type(), nullable=False),
            **options,
        )
        self.event = Table(
            f"{prefix}event",
            self.metadata,
            Column("seq", big_key(), primary_key=True, autoincrement=False),
            *event_columns(),
            Column("created_at", BigInteger, nullable=False),
            Column("expires_at", BigInteger),
            **options,
        )
        Index(f"{prefix}event_message_id", self.event.c.message_id, unique=True)
        Index(
            f"{prefix}event_expires_at",
            self.event.c.expires_at,
            postgresql_where=self.event.c.expires_at.is_not(None),
            sqlite_where=self.event.c.expires_at.is_not(None),
        )
        self.outbox = Table(
            f"{prefix}outbox",
            self.metadata,
            Column("id", big_key(), primary_key=True, autoincrement=True),
            *event_columns(),
            Column("ttl", BigInteger),
            Column("created_at", BigInteger, nullable=False),
            **options,
        )
        self.scheduled = Table(
            f"{prefix}scheduled",
            self.metadata,
            Column("id", big_key(), primary_key=True, autoincrement=True),
            *event_columns(),
            Column("ttl", BigInteger),
            Column("publish_at", BigInteger, nullable=False),
            **options,
        )
        Index(f"{prefix}scheduled_publish_at", self.scheduled.c.publish_at, self.scheduled.c.id)
        # Not unique: one that a transaction schedules again must neither fail nor wait for another transaction.
        Index(f"{prefix}scheduled_message_id", self.scheduled.c.message_id)
        self.processed = Table(
            f"{prefix}processed",
            self.metadata,
            Column("seq", big_key(), primary_key=True, autoincrement=False),
            Column("processed_at", BigInteger, nullable=False),
            **options,
        )
        self.group = Table(
            f"{prefix}group",
            self.metadata,
            Column("id", big_key(), primary_key=True, autoincrement=True),
            Column("name", String(255), nullable=False),
            Column("patterns", Text, nullable=False),  # a JSON array
            Column("cursor", BigInteger, nullable=False),  # the last seq that was claimed or passed over
            Column("ordered_by", String(16)),
            Column("max_attempts", Integer, nullable=False),
            Column("paused_at", BigInteger),
            Column("lost", BigInteger, nullable=False),  # seqs that retention removed before the group had read them
            Column("created_at", BigInteger, nullable=False),
            Column("archive", String(16)),  # which endings go to the archive; None: none
            Column("max_in_flight", Integer),
            Column("rate_limit", String(255)),  # the name of one
            **options,
        )
        Index(f"{prefix}group_name", self.group.c.name, unique=True)
        self.lease = Table(
            f"{prefix}lease",
            self.metadata,
            Column("token", uuid_type(), primary_key=True),
            Column("group_id", BigInteger, nullable=False),
            Column("owner", String(64), nullable=False),
            Column("until", BigInteger, nullable=False),
            Column("first_seq", BigInteger, nullable=False),  # the smallest that is not settled: retention waits for it
            Column("pending", Text, nullable=False),  # see `seqs`
            Column("key_seqs", long_text()),  # of a group ordered by key: a JSON object of the seq of each key
            **options,
        )
        Index(f"{prefix}lease_group_id", self.lease.c.group_id, self.lease.c.until)
        self.retry = Table(
            f"{prefix}retry",
            self.metadata,
            Column("group_id", BigInteger, primary_key=True, autoincrement=False),
            Column("seq", BigInteger, primary_key=True, autoincrement=False),
            *event_columns(),  # its own: the log may lose the event before the group is done with it
            Column("created_at", BigInteger, nullable=False),
            Column("expires_at", BigInteger),
            Column("attempt", Integer, nullable=False),  # attempts begun so far
            Column("losses", Integer, nullable=False),  # how many of the last ones ended without a word
            Column("run_at", BigInteger, nullable=False),  # while it is held, the end of the lease
            Column("token", uuid_type()),  # None: nobody holds it
            Column("owner", String(64)),
            Column("errors", long_text(), nullable=False),  # a JSON array
            **options,
        )
        Index(f"{prefix}retry_run_at", self.retry.c.group_id, self.retry.c.run_at, self.retry.c.seq)
        Index(f"{prefix}retry_key", self.retry.c.group_id, self.retry.c.key, self.retry.c.seq)
        self.dead_letter = Table(
            f"{prefix}dead_letter",
            self.metadata,
            Column("id", big_key(), primary_key=True, autoincrement=True),
            Column("group_id", BigInteger, nullable=False),
            Column("seq", BigInteger, nullable=False),
            *event_columns(),
            Column("created_at", BigInteger, nullable=False),
            Column("expires_at", BigInteger),
            Column("attempt", Integer, nullable=False),
            Column("errors", long_text(), nullable=False),
            Column("died_at", BigInteger, nullable=False),
            **options,
        )
        Index(f"{prefix}dead_letter_seq", self.dead_letter.c.group_id, self.dead_letter.c.seq, unique=True)
        self.archive = Table(
            f"{prefix}archive",
            self.metadata,
            Column("id", big_key(), primary_key=True, autoincrement=True),
            Column("group_id", BigInteger, nullable=False),
            Column("seq", BigInteger, nullable=False),
            *event_columns(),
            Column("created_at", BigInteger, nullable=False),
            Column("expires_at", BigInteger),
            Column("outcome", String(16), nullable=False),
            Column("attempt", Integer, nullable=False),
            Column("duration", BigInteger),  # of the last attempt; None: nobody knows
            Column("owner", String(64), nullable=False),  # who made it
            Column("errors", long_text(), nullable=False),
            Column("finished_at", BigInteger, nullable=False),
            **options,
        )
        Index(f"{prefix}archive_group_id", self.archive.c.group_id, self.archive.c.id)
        Index(f"{prefix}archive_finished_at", self.archive.c.finished_at)
        self.queue = Table(
            f"{prefix}queue",
            self.metadata,
            Column("name", String(255), primary_key=True),
            Column("workers", Integer),  # per process; None: as its process says
            Column("paused_at", BigInteger),
            **options,
        )
        self.worker = Table(
            f"{prefix}worker",
            self.metadata,
            Column("id", String(64), primary_key=True),  # the owner of its leases
            Column("host", String(255), nullable=False),
            Column("pid", BigInteger, nullable=False),
            Column("started_at", BigInteger, nullable=False),
            Column("seen_at", BigInteger, nullable=False),
            Column("queues", Text, nullable=False),  # a JSON object
            **options,
        )
        self.rate_limit = Table(
            f"{prefix}rate_limit",
            self.metadata,
            Column("name", String(255), primary_key=True),
            Column("permits", Integer, nullable=False),
            Column("period", BigInteger, nullable=False),
            Column("grants", Text, nullable=False),  # a JSON array
            **options,
        )
        self.unique = Table(
            f"{prefix}unique",
            self.metadata,
            Column("fingerprint", String(64), primary_key=True),
            Column("message_id", uuid_type(), nullable=False),
            Column("until", BigInteger),  # None: as long as the event waits for its time
            **options,
        )
        Index(f"{prefix}unique_until", self.unique.c.until)
        self.recurring = Table(
            f"{prefix}recurring",
            self.metadata,
            Column("name", String(255), primary_key=True),
            Column("cron", String(255), nullable=False),
            Column("timezone", String(64), nullable=False),
            *_content_columns(),
            Column("ttl", BigInteger),
            Column("missed", String(16), nullable=False),
            Column("next_at", BigInteger, nullable=False),
            Column("last_at", BigInteger),
            Column("paused_at", BigInteger),
            Column("declared", String(64)),  # what a program said last, so that an operator's change outlives a restart
            Column("created_at", BigInteger, nullable=False),
            Column("updated_at", BigInteger, nullable=False),
            **options,
        )
        Index(f"{prefix}recurring_next_at", self.recurring.c.next_at)
