"""Publishing on PostgreSQL: against INSERT … SELECT unnest of 1,000 rows a transaction, the same columns and keys."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg
from pydantic_core import to_json

from benchmarks.measuring import PAYLOAD, Figure, compare, database, dsn, migrate, rate
from eventbus_fastapi import EventBus

EVENTS = 20_000
TASKS = 100

LIMIT_TABLE = """
CREATE TABLE plain (
    seq bigint PRIMARY KEY, message_id uuid NOT NULL, topic varchar(255) NOT NULL, key varchar(255),
    payload bytea NOT NULL, content_type varchar(127) NOT NULL, metadata text, created_at bigint NOT NULL,
    expires_at bigint
)"""
LIMIT_INSERT = """
INSERT INTO plain SELECT unnest($1::bigint[]), unnest($2::uuid[]), 'bench.event', NULL, unnest($3::bytea[]),
    'application/json', NULL, 1, NULL"""


async def run(repeat: int) -> list[Figure]:
    with database("postgresql") as url:
        eventbus = EventBus(url, max_batch=1_000)
        await migrate(eventbus)
        connection = await asyncpg.connect(dsn(url))
        await connection.execute(LIMIT_TABLE)
        await connection.execute("CREATE UNIQUE INDEX ON plain (message_id)")
        body = to_json(PAYLOAD)
        seq = 0

        async def insert_rows() -> None:
            nonlocal seq
            for _ in range(EVENTS // 1_000):
                seqs = list(range(seq + 1, seq + 1_001))
                await connection.execute(LIMIT_INSERT, seqs, [uuid4() for _ in seqs], [body] * 1_000)
                seq += 1_000

        async def limit() -> float:
            return await rate(EVENTS, insert_rows())

        async def publish_alone() -> None:
            for _ in range(EVENTS // TASKS):
                await eventbus.publish("bench.event", PAYLOAD)

        async def publish() -> float:
            return await rate(EVENTS, asyncio.gather(*(publish_alone() for _ in range(TASKS))))

        async def publish_thousands() -> None:
            for _ in range(EVENTS // 1_000):
                await eventbus.publish_many([("bench.event", PAYLOAD)] * 1_000)

        async def publish_many() -> float:
            return await rate(EVENTS, publish_thousands())

        async with eventbus:
            figures = [
                await compare("publish, 100 tasks, PostgreSQL", limit, publish, target=0.25, repeat=repeat),
                await compare("publish_many of 1,000, PostgreSQL", limit, publish_many, target=0.4, repeat=repeat),
            ]
        await connection.close()
        return figures
