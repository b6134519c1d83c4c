"""Every error of the bus, as one tree.

Each class names its facts as attributes and carries what a remote program needs: a stable dotted
`code`, an HTTP-like `status`, and `retry`, the verdict whether the same call may succeed later.
The wire and HTTP both send `error.describe()`; nothing else about an error leaves the process.

    EventBusError
    ├── InvalidInput            what the caller gave cannot be used (400/422)
    │   ├── InvalidTopic, InvalidPattern, InvalidPayload, InvalidEvent
    │   ├── PayloadTooLarge, BatchTooLarge (413)
    │   ├── InvalidGroup        the name of a group, or what is said about one
    │   │   └── GroupConflict   it does not fit what there is now (409)
    │   ├── InvalidRecurring    the name of a recurring event, or what is said about one
    │   ├── InvalidQueue        the name of a queue, or what is said about one while it runs
    │   ├── InvalidCloudEvent   something that is no CloudEvent (400)
    │   ├── InvalidIdempotencyKey (400), IdempotencyKeyReused
    │   │                       the header `Idempotency-Key`
    │   └── InvalidRequest, UnsupportedMediaType (415), BodyTooLarge (413), BodyTooSlow (408)
    │                           an HTTP request that does not fit its documentation
    ├── ProtocolError           a WebSocket frame that does not fit the protocol
    │   └── BadFrame, FrameTooLarge, BinaryFrame, UnknownFrameType, SubscriptionExists,
    │       UnknownSubscription, TooManySubscriptions, AckMismatch, NotSupported,
    │       UnknownSubprotocol, LostHeartbeat
    ├── TooMany                 more than one address or principal may have (429, retry)
    │   └── TooManyConnections, PublishTooFast
    ├── AccessDenied            who asks may not do this, or nobody knows who asks
    │   ├── Unauthenticated     no credentials, or none that are valid (401)
    │   │   └── CredentialsExpired, HelloTimeout
    │   └── Forbidden           what is granted does not cover it (403)
    │       └── OriginForbidden
    ├── NotFound                no such event
    ├── GroupNotFound           no such group
    ├── RecurringNotFound       no such recurring event
    ├── LeaseLost               what is to be settled is no longer the caller's
    ├── StoreError              the database did not do it
    │   └── StoreUnavailable (retry), SchemaOutdated
    ├── BrokerError             an existing broker (NATS, RabbitMQ, Redis, Kafka) did not do it
    │   └── BrokerUnavailable (retry), SourceNotFound, InvalidRelay
    ├── SubscriptionClosed      a subscription has ended
    │   ├── SlowConsumer        it did not keep up
    │   └── StreamRotated       it has lasted long enough
    ├── LogGap                  part of the log that was asked for is gone
    ├── NotRunning              the bus or client is not started, or already stopped
    ├── NotReady                the bus runs and cannot do its work now
    ├── NotForwarded            events of another database's outbox have not reached the bus (retry)
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


class GroupConflict(InvalidGroup):
    """What is said about a group does not fit what there is now: a place beyond the log, a rate limit nobody made."""

    code = "group.conflict"
    status = 409


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


class InvalidCloudEvent(InvalidInput):
    """An attribute of a CloudEvent that is missing or cannot be used; `attribute` names it."""

    code = "cloudevent.invalid"
    status = 400

    def __init__(self, attribute: str, reason: str) -> None:
        self.attribute, self.reason = attribute, reason
        super().__init__(f"CloudEvents attribute '{attribute}': {reason}")


class InvalidIdempotencyKey(InvalidInput):
    """The header `Idempotency-Key` cannot be used, or not with what is published."""

    code = "idempotency.invalid"
    status = 400


class IdempotencyKeyReused(InvalidInput):
    """The `Idempotency-Key` was used for something else, which is in the log still; nothing was stored."""

    code = "idempotency.reused"


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


class BodyTooSlow(InvalidInput):
    """An HTTP body that did not arrive within `Settings.body_timeout`."""

    code = "request.timeout"
    status = 408
    retry = True

    def __init__(self, limit: float) -> None:
        self.limit = limit
        super().__init__(f"the request body did not arrive within {limit:,g} seconds (EVENTBUS_BODY_TIMEOUT)")


# --- too many ------------------------------------------------------------------------------------


class TooMany(EventBusError):
    """More than one address or one principal may have of a node. Try again later."""

    code = "limit.exceeded"
    status = 429
    retry = True


class TooManyConnections(TooMany):
    """The address or principal has as many open connections as it may have."""

    code = "connection.too_many"
    retry_after = 5.0


class PublishTooFast(TooMany):
    """The principal publishes more than `Settings.publish_rate` events a second. `retry_after` says how long to wait;
    nothing was published.
    """

    code = "publish.too_fast"

    def __init__(self, rate: float, retry_after: float) -> None:
        self.rate, self.retry_after = rate, max(round(retry_after, 3), 0.001)
        super().__init__(
            f"more than {rate:,g} events a second (EVENTBUS_PUBLISH_RATE); go on in {retry_after:.3g} seconds"
        )


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


# --- access ---------------------------------------------------------------------------------------


class AccessDenied(EventBusError):
    """Who asks may not do this, or nobody knows who asks. No message of these names a secret."""

    code = "auth.denied"
    status = 403


class Unauthenticated(AccessDenied):
    """There are no credentials, or none that are valid. `challenge` is what HTTP says in `WWW-Authenticate`."""

    code = "auth.unauthenticated"
    status = 401
    challenge = 'Bearer realm="eventbus"'

    def __init__(self, message: str = "no valid credentials were given", *, challenge: str | None = None) -> None:
        super().__init__(message)
        if challenge is not None:
            self.challenge = challenge


class CredentialsExpired(Unauthenticated):
    """The credentials were valid, and their time is over. Come back with new ones."""

    code = "auth.expired"
    challenge = 'Bearer realm="eventbus", error="invalid_token", error_description="expired"'


class HelloTimeout(Unauthenticated):
    """A WebSocket that was to send its token in its first frame did not do so within `Settings.hello_timeout`."""

    code = "auth.timeout"


class Forbidden(AccessDenied):
    """What is granted to who asks does not cover this."""

    code = "auth.forbidden"


class OriginForbidden(Forbidden):
    """A web page of another origin asks, or one that does not say its origin. Remedy: `Settings.allowed_origins`."""

    code = "origin.forbidden"


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


# --- existing brokers ----------------------------------------------------------------------------


class BrokerError(EventBusError):
    """A broker that events are relayed to or from did not do what it should."""

    code = "broker.error"
    status = 502


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached now. Whoever relays tries again by itself."""

    code = "broker.unavailable"
    status = 503
    retry = True


class SourceNotFound(BrokerError):
    """The broker has no such queue, stream or topic to take messages from."""

    code = "broker.source_not_found"
    status = 404


class InvalidRelay(BrokerError):
    """A relay cannot work as it was described: its broker, its stream or its template cannot be used so."""

    code = "broker.invalid_relay"
    status = 422


class SubscriptionClosed(EventBusError):
    """The subscription has ended and will deliver nothing more."""

    code = "subscription.closed"
    status = 410


class SlowConsumer(SubscriptionClosed):
    """The subscription did not keep up and its overflow policy ended it. Resume after its last seq."""

    code = "subscriber.slow"
    status = 408
    retry = True


class StreamRotated(SubscriptionClosed):
    """The stream has lasted for `Settings.stream_lifetime`. Come back, after the last id that you have."""

    code = "stream.rotated"
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


class NotForwarded(EventBusError):
    """The bus does not take the events of an outbox now, or is away. They stay in the outbox until it does."""

    code = "outbox.not_forwarded"
    status = 503
    retry = True

    def __init__(self, waiting: int, reason: str) -> None:
        self.waiting, self.reason = waiting, reason
        super().__init__(f"the bus has not answered for {waiting:,} events, which stay in the outbox: {reason}")


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
        self.seqs = described.get("seqs")
        """The events that it is about; None: all that the request named."""
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
