"""A chat: server, publisher and subscriber in one process.

    python examples/chat.py                         # on 127.0.0.1:3000
    EVENTBUS_PORT=3100 python examples/chat.py

The server is a FastAPI app that includes the bus; its log lives in memory. Publisher and subscriber are clients like
those of any other program.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from eventbus_fastapi import EventBus, EventBusClient

QUIET = 3.0
"""Seconds without a message after which the subscriber goes home."""

eventbus = EventBus("sqlite+aiosqlite:///:memory:")
app = FastAPI()
app.include_router(eventbus.router())


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    """Serve the app while the block runs; give the URL for clients."""
    host, port = eventbus.settings.host, eventbus.settings.port
    try:
        listening = socket.create_server((host, port))  # clients may come from here on
    except OSError as error:
        sys.exit(f"cannot listen on {host} port {port}: {error.strerror}")
    with listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        serving = asyncio.create_task(server.serve([listening]))
        try:
            yield f"ws://{host}:{port}/ws"
        finally:
            server.should_exit = True
            await serving


async def talk(publisher: EventBusClient) -> None:
    await publisher.publish("chat.user1", "Hello from User1!")
    await publisher.publish("chat.user1", "How's it going?")
    # A batch is stored whole or not at all. After an hour nobody is shown these two any more.
    await publisher.publish_many(
        [{"topic": "chat.user1", "payload": f"Batch message {number}", "ttl": 3600} for number in (1, 2)]
    )


async def listen(subscriber: EventBusClient, is_listening: asyncio.Event) -> None:
    async with subscriber.subscribe("chat.*") as messages:
        is_listening.set()
        while True:
            try:
                async with asyncio.timeout(QUIET):
                    message = await anext(messages)
            except TimeoutError:
                return
            print(f"Subscriber received: [{message.topic}] {message.payload}")
            await message.ack()


async def main() -> None:
    async with server() as url, EventBusClient(url) as publisher, EventBusClient(url) as subscriber:
        is_listening = asyncio.Event()
        listener = asyncio.create_task(listen(subscriber, is_listening))
        await is_listening.wait()
        await talk(publisher)
        await listener
    print("Test completed!")


if __name__ == "__main__":
    asyncio.run(main())
