"""A FastAPI app whose users and events are stored together: either both or neither.

    python examples/users_api.py                    # on 127.0.0.1:3000, in the file eventbus.db

    curl 127.0.0.1:3000/api/users -H 'content-type: application/json' -d '{"id": 1, "username": "alice"}'

The table of users is the app's own and lives in the database of the bus. On SQLite that is the way to do it: one file,
and sessions on the engine that the bus has set up for it. PostgreSQL needs another URL and the tables of the bus:

    export EVENTBUS_DATABASE_URL=postgresql+asyncpg://postgres@127.0.0.1:5432/postgres
    eventbus migrate upgrade
    python examples/users_api.py
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy import String, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventbus_fastapi import Event, EventBus


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    username: Mapped[str] = mapped_column(String(100), unique=True)


class UserIn(BaseModel):
    id: int = Field(ge=0, lt=2**31)  # what an INTEGER holds
    username: str = Field(min_length=1, max_length=100, pattern=r"^\PC*$")  # no control characters


class UserCreated(Event, topic="user.created"):
    id: int
    username: str


eventbus = EventBus()  # settings come from the environment: EVENTBUS_DATABASE_URL, EVENTBUS_PORT, …
new_session = async_sessionmaker(eventbus.engine)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with eventbus.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield


app = FastAPI(title="Users", lifespan=lifespan)
app.include_router(eventbus.router())


@app.exception_handler(RequestValidationError)
async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
    # FastAPI's own answer quotes the input, and fails where JSON cannot: at NaN or half a surrogate pair.
    return JSONResponse({"detail": [{"loc": one["loc"], "msg": one["msg"]} for one in error.errors()]}, 422)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]


@app.post("/api/users", status_code=201)
async def create_user(user: UserIn, session: Session) -> UserIn:
    session.add(User(id=user.id, username=user.username))
    await eventbus.publish_txn(session, UserCreated(id=user.id, username=user.username))
    try:
        await session.commit()  # stores the user and the event, or, where that user exists, neither
    except IntegrityError:
        raise HTTPException(409, f"there is a user with id {user.id} or name {user.username} already") from None
    return user


@app.get("/api/users")
async def list_users(session: Session) -> list[UserIn]:
    users = await session.scalars(select(User).order_by(User.id))
    return [UserIn(id=user.id, username=user.username) for user in users]


if __name__ == "__main__":
    uvicorn.run(app, host=eventbus.settings.host, port=eventbus.settings.port)
