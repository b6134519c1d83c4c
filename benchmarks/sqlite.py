"""Publishing on SQLite with `synchronous=FULL`: against the sqlite3 module, 1,000 rows a transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from pydantic_core import to_json

from benchmarks.measuring import PAYLOAD, Figure, compare, rate
from eventbus_fastapi import EventBus

EVENTS = 20_000
TASKS = 100

TABLE = """
CREATE TABLE plain (
    seq INTEGER PRIMARY KEY, message_id BLOB NOT NULL, topic VARCHAR(255) NOT NULL, key VARCHAR(255),
    payload BLOB NOT NULL, content_type VARCHAR(127) NOT NULL, metadata TEXT, created_at BIGINT NOT NULL,
    expires_at BIGINT
)"""


async def run(repeat: int) -> list[Figure]:
    with TemporaryDirectory() as directory:
        plain = sqlite3.connect(Path(directory) / "plain.db", isolation_level=None)
        plain.execute("PRAGMA journal_mode=WAL")
        plain.execute("PRAGMA synchronous=FULL")
        plain.execute(TABLE)
        plain.execute("CREATE UNIQUE INDEX plain_message_id ON plain (message_id)")
        body = to_json(PAYLOAD)

        async def insert_rows() -> None:
            for _ in range(EVENTS // 1_000):
                rows = [(uuid4().bytes, "bench.event", body, "application/json", 1) for _ in range(1_000)]
                plain.execute("BEGIN IMMEDIATE")
                plain.executemany(
                    "INSERT INTO plain (message_id, topic, payload, content_type, created_at) VALUES (?, ?, ?, ?, ?)",
                    rows,
                )
                plain.execute("COMMIT")

        async def limit() -> float:
            return await rate(EVENTS, insert_rows())

        async with EventBus(f"sqlite+aiosqlite:///{directory}/bus.db") as eventbus:

            async def publish_alone() -> None:
                for _ in range(EVENTS // TASKS):
                    await eventbus.publish("bench.event", PAYLOAD)

            async def publish() -> float:
                return await rate(EVENTS, asyncio.gather(*(publish_alone() for _ in range(TASKS))))

            figure = await compare("publish, 100 tasks, SQLite FULL", limit, publish, target=0.2, repeat=repeat)
        plain.close()
        return [figure]
