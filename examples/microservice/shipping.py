"""The shipping service: it ships what was ordered, once, however often it is killed.

    uvicorn shipping:app --port 3001                # in the file shipping.db

It reads the orders service's events as the group `shipping`. Any number of copies of it share them, each with the same
database; what one has not acknowledged when it dies goes to the next. BUS_URL and DATABASE_URL say where it reads and
stores. It shares no code with the orders service, only the topic and the fields of its events.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import String, Uuid, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventbus_fastapi import EventBusClient, EventBusError, GroupMessage, InvalidPayload

BUS_URL = os.environ.get("BUS_URL", "ws://127.0.0.1:3000/ws")
DATABASE_URL = os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///shipping.db")
PAUSE = float(os.environ.get("PAUSE", "0"))
"""Seconds between the effect and the ack. Killed meanwhile, the service is given the event again."""

logger = logging.getLogger("uvicorn.error")
engine = create_async_engine(DATABASE_URL)
new_session = async_sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class Shipment(Base):
    __tablename__ = "shipments"

    message_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)  # no event has two shipments
    order: Mapped[int]
    item: Mapped[str] = mapped_column(String(100))
    attempt: Mapped[int]
    """The last delivery of the event."""


class OrderPlaced(BaseModel):
    order: int
    item: str


async def ship(message: GroupMessage) -> None:
    """Called for each event; when it returns the event is acked, when it raises tried again."""
    if message.topic != "order.placed":
        return
    try:
        order = message.decode(OrderPlaced)
    except InvalidPayload as error:
        await message.reject(str(error))  # no further attempt makes it better: it waits with the dead letters
        return
    async with new_session.begin() as session:
        shipment = await session.get(Shipment, message.message_id)
        if shipment is None:
            session.add(
                Shipment(message_id=message.message_id, order=order.order, item=order.item, attempt=message.attempt)
            )
            logger.info("shipped order %d", order.order)
        else:
            shipment.attempt = message.attempt
            logger.info("order %d comes again, attempt %d: it is shipped already", order.order, message.attempt)
    await asyncio.sleep(PAUSE)


async def keep_shipping() -> None:
    while True:
        # Only what trying again does not heal ends here, such as a deleted group; the client has logged it.
        with suppress(EventBusError):
            async with EventBusClient(BUS_URL) as client:
                await client.consume(ship, "order.*", group="shipping", start="earliest")
        await asyncio.sleep(1)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    shipping = asyncio.create_task(keep_shipping())
    yield
    shipping.cancel()  # what is being shipped comes to its end first
    with suppress(asyncio.CancelledError):
        await shipping
    await engine.dispose()


app = FastAPI(title="Shipping", lifespan=lifespan)


class ShipmentOut(BaseModel):
    order: int
    item: str
    attempt: int


@app.get("/shipments")
async def list_shipments() -> list[ShipmentOut]:
    async with new_session() as session:
        shipments = await session.scalars(select(Shipment).order_by(Shipment.order))
        return [ShipmentOut.model_validate(shipment, from_attributes=True) for shipment in shipments]
