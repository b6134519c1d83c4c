"""Every error of the bus, as one tree.

Each class names its facts as attributes and carries what a remote program needs: a stable dotted
`code`, an HTTP-like `status`, and `retry`, the verdict whether the same call may succeed later.
The wire and HTTP both send `error.describe()`; nothing else about an error leaves the process.

    EventBusError
    ├── InvalidInput            what the caller gave cannot be used (400/422)
    │   ├── InvalidTopic, InvalidPattern, InvalidPayload, InvalidEvent
    │   ├── PayloadTooLarge, BatchTooLarge (413)
    │   ├── InvalidGroup        the name of a group, or what is said about one
    │   ├── InvalidRecurring    the name of a recurring event, or what is said about one
    │   ├── InvalidQueue        the name of a queue, or what is said about one while it runs
    │   └── InvalidRequest, UnsupportedMediaType (415), BodyTooLarge (413)
    │                           an HTTP request that does not fit its documentation
    ├── ProtocolError           a WebSocket frame that does not fit the protocol
    │   └── BadFrame, FrameTooLarge, BinaryFrame, UnknownFrameType, SubscriptionExists,
    │       UnknownSubscription, TooManySubscriptions, AckMismatch, NotSupported,
    │       UnknownSubprotocol, LostHeartbeat
    ├── NotFound                no such event
    ├── GroupNotFound           no such group
    ├── RecurringNotFound       no such recurring event
    ├── LeaseLost               what is to be settled is no longer the caller's
    ├── StoreError              the database did not do it
    │   └── StoreUnavailable (retry), SchemaOutdated
    ├── SubscriptionClosed      a subscription has ended
    │   └── SlowConsumer        it did not keep up
    ├── LogGap                  part of the log that was asked for is gone
    ├── NotRunning              the bus or client is not started, or already stopped
    ├── NotReady                the bus runs and cannot do its work now
    ├── ClientError             what `EventBusClient` reports of its connection
    │   └── ConnectionLost, ConnectionRefused, PublishBufferFull, RemoteError
    ├── HandlerError            of one handler, in this process
    │   ├── InvalidHandler      it cannot be registered
    │   └── UndecodablePayload, HandlerTimeout, HandlerCancelled, InvalidOutcome
    │                           how one of its attempts failed, beside what it raises itself
    └── SettingsError           a setting is unknown or has a value that cannot be used
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class EventBusError(Exception):
    """Base of all errors of the bus."""

    code: str = "server.internal"
    status: int = 500
    retry: bool = False
    retry_after: float | None = None
    """Seconds after which a retry makes sense; None when there is no advice."""

    def describe(self) -> dict[str, Any]:
        """Return the error object of the wire: `code`, `status`, `message`, `retry` and, where known, `retry_after`."""
        described: dict[str, Any] = {
            "code": self.code,
            "status": self.status,
            "message": str(self),
            "retry": self.retry,
        }
        if self.retry_after is not None:
            described["retry_after"] = self.retry_after
        return described


# --- input ---------------------------------------------------------------------------------------


class InvalidInput(EventBusError):
    """What the caller gave cannot be used; nothing was changed."""

    code = "input.invalid"
    status = 422


class InvalidTopic(InvalidInput):
    """A topic that does not follow the grammar. See `eventbus_fastapi.topics`."""

    code = "topic.invalid"

    def __init__(self, topic: object, reason: str) -> None:
        self.topic, self.reason = topic, reason
        super().__init__(f"invalid topic {quote(topic)}: {reason}")


class InvalidPattern(InvalidInput):
    """A pattern that does not follow the grammar. See `eventbus_fastapi.topics`."""

    code = "pattern.invalid"

    def __init__(self, pattern: object, reason: str) -> None:
        self.pattern, self.reason = pattern, reason
        super().__init__(f"invalid pattern {quote(pattern)}: {reason}")


class InvalidPayload(InvalidInput):
    """A payload that cannot be stored and read back the same, or cannot be decoded as asked."""

    code = "payload.invalid"


class InvalidEvent(InvalidInput):
    """Something of an event other than its topic and payload: key, metadata, message_id, ttl, delay."""

    code = "event.invalid"


class InvalidGroup(InvalidInput):
    """The name of a group, or something that is said about a group, that cannot be used."""

    code = "group.invalid"


class InvalidRecurring(InvalidInput):
    """The name, the expression, the time zone or another part of a recurring event cannot be used."""

    code = "recurring.invalid"


class InvalidQueue(InvalidInput):
    """The name of a queue, or something that is said about a queue while it runs, that cannot be used."""

    code = "queue.invalid"


class PayloadTooLarge(InvalidInput):
    """The encoded payload exceeds `Settings.max_payload`."""

    code = "payload.too_large"
    status = 413

    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit = size, limit
        super().__init__(f"payload is {size:,} bytes, limit is {limit:,} (EVENTBUS_MAX_PAYLOAD)")


class BatchTooLarge(InvalidInput):
    """More events in one call than `Settings.max_batch`."""

    code = "batch.too_large"
    status = 413

    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit = size, limit
        super().__init__(f"batch has {size:,} events, limit is {limit:,} (EVENTBUS_MAX_BATCH)")


class InvalidRequest(InvalidInput):
    """An HTTP request that does not fit its documentation."""

    code = "request.invalid"


class UnsupportedMediaType(InvalidInput):
    """An HTTP body in another format or encoding than the documented one."""

    code = "request.media_type"
    status = 415


class BodyTooLarge(InvalidInput):
    """An HTTP body beyond `Settings.max_body`."""

    code = "request.too_large"
    status = 413

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the request body exceeds {limit:,} bytes (EVENTBUS_MAX_BODY)")


# --- protocol ------------------------------------------------------------------------------------


class ProtocolError(EventBusError):
    """A WebSocket frame that does not fit the protocol; the frame changed nothing."""

    code = "frame.bad"
    status = 400


class BadFrame(ProtocolError):
    """Not JSON, not an object, or a field of the wrong type."""


class UnknownFrameType(ProtocolError):
    """The frame's `type` is not one of the protocol's."""

    code = "frame.unknown_type"


class FrameTooLarge(ProtocolError):
    """The frame exceeds `Settings.max_frame` bytes."""

    code = "frame.too_large"
    status = 413

    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit = size, limit
        super().__init__(f"frame is {size:,} bytes, limit is {limit:,} (EVENTBUS_MAX_FRAME)")


class BinaryFrame(ProtocolError):
    """A binary frame where the protocol has only text frames."""

    code = "frame.binary"
    status = 415

    def __init__(self) -> None:
        super().__init__("got a binary frame, expected a text frame with JSON")


class SubscriptionExists(ProtocolError):
    """The connection already has a subscription of this id."""

    code = "subscription.exists"
    status = 409


class UnknownSubscription(ProtocolError):
    """The connection has no subscription of this id."""

    code = "subscription.unknown"
    status = 404


class TooManySubscriptions(ProtocolError):
    """The connection holds `Settings.max_subscriptions` subscriptions already."""

    code = "subscription.too_many"
    status = 429


class AckMismatch(ProtocolError):
    """The `message_id` of an ack is not that of the event at its seq; nothing was acknowledged."""

    code = "ack.mismatch"
    status = 409


class NotSupported(ProtocolError):
    """A feature of the protocol that this server does not offer."""

    code = "feature.unsupported"
    status = 501


class UnknownSubprotocol(ProtocolError):
    """The client offered subprotocols, and none that this server speaks."""

    code = "subprotocol.unknown"


class LostHeartbeat(ProtocolError):
    """A client that sends `ping` has been silent for too long."""

    code = "heartbeat.lost"
    status = 408
    retry = True


# --- log and store -------------------------------------------------------------------------------


class NotFound(EventBusError):
    """No event has this seq: it was never given, or retention or a TTL removed the event."""

    code = "event.not_found"
    status = 404


class GroupNotFound(EventBusError):
    """No group has this name."""

    code = "group.not_found"
    status = 404


class RecurringNotFound(EventBusError):
    """No recurring event has this name."""

    code = "recurring.not_found"
    status = 404


class LeaseLost(EventBusError):
    """The events are no longer the caller's: their lease ended, and they are another's, or the group was reset. What
    was to be settled has not changed.
    """

    code = "lease.lost"
    status = 409

    def __init__(self, seqs: Sequence[int]) -> None:
        self.seqs = sorted(seqs)
        shown = ", ".join(map(str, self.seqs[:10])) + (", …" if len(self.seqs) > 10 else "")
        super().__init__(f"no longer held: {shown}")

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "seqs": self.seqs}


class StoreError(EventBusError):
    """The database did not do what was asked."""

    code = "store.failed"


class StoreUnavailable(StoreError):
    """The database cannot be reached or refuses work now. Try again with the same `message_id`."""

    code = "store.unavailable"
    status = 503
    retry = True
    retry_after = 1.0


class SchemaOutdated(StoreError):
    """The tables are missing or of another version. Remedy: `eventbus migrate upgrade`."""

    code = "store.schema"
    status = 503


class SubscriptionClosed(EventBusError):
    """The subscription has ended and will deliver nothing more."""

    code = "subscription.closed"
    status = 410


class SlowConsumer(SubscriptionClosed):
    """The subscription did not keep up and its overflow policy ended it. Resume after its last seq."""

    code = "subscriber.slow"
    status = 408
    retry = True


class LogGap(EventBusError):
    """Events `first_seq` to `last_seq` were asked for and will not be delivered.

    `reason` is "retention" (they were removed), "overflow" (the reader did not keep up and its policy is `drop_oldest`)
    or "epoch" (the log was made anew: the seq to resume after was another log's, and both seqs here are 0). Reading on
    continues after the gap, or at the beginning of the new log.
    """

    code = "log.gap"
    status = 410

    def __init__(self, first_seq: int, last_seq: int, reason: str) -> None:
        self.first_seq, self.last_seq, self.reason = first_seq, last_seq, reason
        if reason == "epoch":
            message = "the log was made anew; what is read now is its beginning (epoch)"
        else:
            message = f"events {first_seq} to {last_seq} are not available ({reason})"
        super().__init__(message)


class NotRunning(EventBusError):
    """The bus is not started, or already stopped. Remedy: `async with eventbus:` or mount its router."""

    code = "server.not_running"
    status = 503
    retry = True


class NotReady(EventBusError):
    """The bus cannot do its work now; `problems` says, one by one, why."""

    code = "server.not_ready"
    status = 503
    retry = True
    retry_after = 1.0

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__(f"not ready: {'; '.join(self.problems)}")

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "problems": self.problems}


# --- client --------------------------------------------------------------------------------------


class ClientError(EventBusError):
    """What `EventBusClient` reports of its connection."""

    code = "client.failed"


class ConnectionLost(ClientError):
    """The server could not be reached within `ClientConfig.max_retries` attempts."""

    code = "client.connection_lost"
    retry = True


class ConnectionRefused(ClientError):
    """The server ended the connection with a code that says: do not come back."""

    code = "client.refused"


class PublishBufferFull(ClientError):
    """`ClientConfig.max_pending` publishes wait for an answer already; nothing was taken."""

    code = "client.buffer_full"
    retry = True


class RemoteError(ClientError):
    """The server answered a request with an error.

    `code`, `status` and `retry` are the server's.
    """

    def __init__(self, described: dict[str, Any]) -> None:
        self.code = str(described.get("code", "server.internal"))
        self.status = int(described.get("status", 500))
        self.retry = bool(described.get("retry", False))
        self.retry_after = described.get("retry_after")
        super().__init__(str(described.get("message", self.code)))


# --- handlers ------------------------------------------------------------------------------------


class HandlerError(EventBusError):
    """Something about one handler, in this process; `handler` is its group."""

    code = "handler.failed"
    handler: str


class InvalidHandler(HandlerError):
    """A handler or listener cannot be registered as it is. `chain` leads from it to the parameter that is meant."""

    code = "handler.invalid"

    def __init__(self, handler: str, reason: str, *, chain: Sequence[str] = (), kind: str = "handler") -> None:
        self.handler, self.reason, self.chain = handler, reason, tuple(chain)
        super().__init__(": ".join((f"{kind} {quote(handler)}", *[" → ".join(chain)] * bool(chain), reason)))


class UndecodablePayload(HandlerError):
    """The payload of an event is not what a handler takes: no attempt is of use before one of them is changed."""

    code = "handler.undecodable"

    def __init__(self, handler: str, reason: str) -> None:
        self.handler, self.reason = handler, reason
        super().__init__(reason)


class HandlerTimeout(HandlerError):
    """A handler did not end within its `timeout`, and was cancelled."""

    code = "handler.timeout"

    def __init__(self, handler: str, timeout: float) -> None:
        self.handler, self.timeout = handler, timeout
        super().__init__(f"handler {quote(handler)} did not end within {timeout:,g} seconds")


class HandlerCancelled(HandlerError):
    """A handler was cancelled from within: something that it waited for was cancelled, by nobody of the bus."""

    code = "handler.cancelled"

    def __init__(self, handler: str) -> None:
        self.handler = handler
        super().__init__(f"handler {quote(handler)} ended as cancelled: something that it waited for was")


class InvalidOutcome(HandlerError):
    """A handler returned something that is no outcome. It did its work, so it is not called again."""

    code = "handler.outcome"

    def __init__(self, handler: str, returned: object) -> None:
        self.handler = handler
        came = f"the class {returned.__name__}" if isinstance(returned, type) else type(returned).__name__
        super().__init__(
            f"handler {quote(handler)} returned {came}; expected None (ack), Retry(…), Snooze(…) or Discard(…)"
        )


# --- settings ------------------------------------------------------------------------------------


class SettingsError(EventBusError):
    """A setting is unknown or has a value that cannot be used."""

    code = "settings.invalid"


def quote(value: object, limit: int = 80) -> str:
    """Show a foreign value in a message: escaped, one line, at most `limit` characters; it never raises."""
    if isinstance(value, str | bytes):
        value = value[: limit + 1]  # the rest would be escaped only to be cut off
    try:
        text = ascii(value)
    except Exception:  # noqa: BLE001 - a __repr__ of the program's own, or an int of more digits than Python writes
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 1] + "…"
