"""`publish_txn` in a transaction that stores one ORM row: against the same without it, the sequencer running."""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.measuring import PAYLOAD, Figure, compare, database, migrate, rate
from eventbus_fastapi import EventBus

TRANSACTIONS = 1_000


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "bench_user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


async def run(repeat: int) -> list[Figure]:
    with database("postgresql") as url:
        eventbus = EventBus(url)
        await migrate(eventbus)
        engine = create_async_engine(url, pool_size=20)
        sessions = async_sessionmaker(engine, expire_on_commit=False)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

        async def store(count: int, with_event: bool) -> None:
            for _ in range(count):
                async with sessions() as session:
                    session.add(User(name="someone"))
                    if with_event:
                        await eventbus.publish_txn(session, "bench.user", PAYLOAD)
                    await session.commit()

        async def sequential(with_event: bool) -> float:
            return await rate(TRANSACTIONS, store(TRANSACTIONS, with_event))

        async def concurrent(with_event: bool) -> float:
            tasks = (store(TRANSACTIONS // 20, with_event) for _ in range(20))
            return await rate(TRANSACTIONS, asyncio.gather(*tasks))

        figures = []
        async with eventbus:
            for name, work, target in (
                ("transaction + publish_txn, sequential, PostgreSQL", sequential, 0.7),
                ("transaction + publish_txn, 20 sessions, PostgreSQL", concurrent, 0.6),
            ):
                figures.append(
                    await compare(
                        name,
                        lambda work=work: work(False),  # type: ignore[misc]
                        lambda work=work: work(True),  # type: ignore[misc]
                        target=target,
                        repeat=repeat,
                    )
                )
        await engine.dispose()
        return figures
