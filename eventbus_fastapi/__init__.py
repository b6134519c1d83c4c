"""eventbus-fastapi: a durable, ordered, transactional event bus inside a FastAPI app and its database.

The way of an event:

    publish ─▶ outbox ─▶ sequence ─▶ log ─▶ dispatch ─▶ subscription ─▶ WebSocket, HTTP, or a loop in this process
    (caller's            (one short         (one read per node,
     transaction)         transaction)       shared in memory)

- `events`, `unique`, `topics`, `codec`, `settings`, `durations`, `errors`, `backoff` are values and rules: no I/O.
- `store` holds the only SQL: an ordered log, the outbox that feeds it, and the head row whose lock orders it.
- `pipeline` holds the stages, which meet only in the store; `pipeline.node` puts one process together.
- `auth` is who asks, and what they may do.
- `protocol` is the wire without sockets; `server` and `client` bring the sockets.
- `outbox` is what publishes in transactions of other databases, and carries that to a bus.
- `telemetry` is what a node tells of itself: numbers, the traces of events, lines of a log.
- `bus.EventBus` is what an app uses; `app` is the bus alone, `cli` its commands.

What a user may rely on: an event given to `publish_txn` exists if and only if the transaction commits. Every committed
event has one integer `seq`, dense and final; whoever has seen seq n is never shown a new event ≤ n later. A reader that
resumes after n sees every later match once, in order, or is told what is gone.
"""

from eventbus_fastapi.backoff import Exponential, Fixed, Sequence
from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.client import (
    ClientConfig,
    ClientConsumer,
    ClientSubscription,
    EventBusClient,
    GroupMessage,
    GroupSubscription,
    OutboxForwarder,
)
from eventbus_fastapi.errors import (
    ConnectionLost,
    EventBusError,
    InvalidInput,
    InvalidPayload,
    LeaseLost,
    LogGap,
    NotFound,
    SlowConsumer,
    StoreUnavailable,
)
from eventbus_fastapi.events import Draft, Event, Message, Receipt
from eventbus_fastapi.outbox import Outbox
from eventbus_fastapi.pipeline.dependencies import Attempt, BusSession
from eventbus_fastapi.pipeline.filters import archive_filter, dead_filter
from eventbus_fastapi.pipeline.handlers import HandlerGroup
from eventbus_fastapi.pipeline.outcome import Discard, Retry, Snooze
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.unique import Unique

__all__ = [
    "Attempt",
    "BusSession",
    "ClientConfig",
    "ClientConsumer",
    "ClientSubscription",
    "ConnectionLost",
    "Discard",
    "Draft",
    "Event",
    "EventBus",
    "EventBusClient",
    "EventBusError",
    "Exponential",
    "Fixed",
    "GroupMessage",
    "GroupSubscription",
    "HandlerGroup",
    "InvalidInput",
    "InvalidPayload",
    "LeaseLost",
    "LogGap",
    "Message",
    "NotFound",
    "Outbox",
    "OutboxForwarder",
    "Receipt",
    "Retry",
    "Sequence",
    "Settings",
    "SlowConsumer",
    "Snooze",
    "StoreUnavailable",
    "Subscription",
    "Unique",
    "archive_filter",
    "dead_filter",
]
