"""The orders service: it takes orders, and has the bus of the company.

    uvicorn orders:app --port 3000                  # in the file eventbus.db, or EVENTBUS_DATABASE_URL

An order and the event that tells of it are one transaction. Who reads the events, this service does not know.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy import String, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventbus_fastapi import Event, EventBus


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    item: Mapped[str] = mapped_column(String(100))


class OrderIn(BaseModel):
    id: int = Field(ge=1, lt=2**31)  # chosen by the shop: sent again, it is the same order
    item: str = Field(min_length=1, max_length=100, pattern=r"^\PC*$")  # no control characters


class OrderPlaced(Event, topic="order.placed"):
    order: int
    item: str


eventbus = EventBus()
new_session = async_sessionmaker(eventbus.engine)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with eventbus.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield


app = FastAPI(title="Orders", lifespan=lifespan)
app.include_router(eventbus.router())  # /ws is where other services read


async def get_session() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]


@app.post("/orders", status_code=201)
async def place_order(order: OrderIn, session: Session) -> OrderIn:
    session.add(Order(id=order.id, item=order.item))
    await eventbus.publish_txn(session, OrderPlaced(order=order.id, item=order.item), key=str(order.id))
    try:
        await session.commit()  # stores the order and the event, or, where that order exists, neither
    except IntegrityError:
        raise HTTPException(409, f"there is an order {order.id} already") from None
    return order


@app.get("/orders")
async def list_orders(session: Session) -> list[OrderIn]:
    orders = await session.scalars(select(Order).order_by(Order.id))
    return [OrderIn(id=order.id, item=order.item) for order in orders]
