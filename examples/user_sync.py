"""A second service: it follows the users of users_api.py into a database of its own.

    python examples/user_sync.py                    # on 127.0.0.1:5000, in the file user_sync.db
    curl 127.0.0.1:5000/api/users

Each user is stored in one transaction with the seq of the event that told of it. Wherever this process is killed, the
next one goes on after the last event that was stored: none is missed, none counts twice. PORT, DATABASE_URL and BUS_URL
say where it listens, stores and reads.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import String, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventbus_fastapi import EventBusClient, EventBusError, Message

BUS_URL = os.environ.get("BUS_URL", "ws://127.0.0.1:3000/ws")
DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///user_sync.db")
PORT = int(os.environ.get("PORT", "5000"))

logger = logging.getLogger("uvicorn.error")
engine = create_async_engine(DATABASE_URL)
new_session = async_sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    username: Mapped[str] = mapped_column(String(100))


class Position(Base):
    """How far the log was read: one row, with the id 1."""

    __tablename__ = "position"

    id: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int]
    epoch: Mapped[UUID | None]


class UserData(BaseModel):
    id: int
    username: str


async def follow() -> None:
    async with new_session() as session:
        position = await session.get(Position, 1) or Position(seq=0, epoch=None)
    async with EventBusClient(BUS_URL) as client:
        # include_processed: what other readers have acknowledged is still news to this one.
        messages = client.subscribe(
            "user.*", after=position.seq, epoch=position.epoch, include_processed=True, on_gap=logger.error
        )
        async for message in messages:
            async with new_session.begin() as session:
                await store(session, message)
                await session.merge(Position(id=1, seq=message.seq, epoch=messages.epoch))


async def store(session: AsyncSession, message: Message) -> None:
    if message.topic == "user.created":
        try:
            user = message.decode(UserData)
        except EventBusError as error:
            logger.error("seq %d tells of no user: %s", message.seq, error)  # and never will: leave it out
        else:
            await session.merge(User(id=user.id, username=user.username))


async def keep_following() -> None:
    while True:
        try:
            await follow()
        except (EventBusError, SQLAlchemyError):
            logger.exception("could not follow the users")
        await asyncio.sleep(1)  # whatever it was: the next try goes on after the position that was stored


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    following = asyncio.create_task(keep_following())
    yield
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following
    await engine.dispose()


app = FastAPI(title="User sync", lifespan=lifespan)


@app.get("/api/users")
async def list_users() -> list[UserData]:
    async with new_session() as session:
        users = await session.scalars(select(User).order_by(User.id))
        return [UserData(id=user.id, username=user.username) for user in users]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT)
