"""The client: publishes to and reads from a bus elsewhere, over one WebSocket that heals itself.

    async with EventBusClient("ws://127.0.0.1:3000/ws") as client:
        await client.publish("user.created", {"id": 1})
        async for message in client.subscribe("user.*", after=position):
            ...
            await message.ack()

What the frames mean is decided in `protocol.client`; here are the socket, the tasks and the waiting.
"""

from eventbus_fastapi.client.client import EventBusClient
from eventbus_fastapi.client.config import ClientConfig
from eventbus_fastapi.client.consumer import ClientConsumer
from eventbus_fastapi.client.forwarding import OutboxForwarder
from eventbus_fastapi.client.group import GroupMessage, GroupSubscription
from eventbus_fastapi.client.subscription import ClientSubscription

__all__ = [
    "ClientConfig",
    "ClientConsumer",
    "ClientSubscription",
    "EventBusClient",
    "GroupMessage",
    "GroupSubscription",
    "OutboxForwarder",
]
