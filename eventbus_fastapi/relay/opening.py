"""How a destination is opened: from a URL, or on a broker of FastStream's that the program hands in.

The broker has the connection, its security and its life. One that is handed in is connected if it is not, and never
stopped here. One made from a URL is made anew after each loss: nothing of the old connection is sent again behind the
relay's back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypedDict
from urllib.parse import urlsplit

from eventbus_fastapi.errors import InvalidRelay
from eventbus_fastapi.pipeline.node import Node, Start
from eventbus_fastapi.relay import brokers
from eventbus_fastapi.relay.brokers import BrokerKind
from eventbus_fastapi.relay.destination import Destination
from eventbus_fastapi.relay.parcel import Form
from eventbus_fastapi.relay.relay import Relay
from eventbus_fastapi.store.group_name import check_group_name
from eventbus_fastapi.topics import check_pattern

Broker: TypeAlias = Any
"""A broker of FastStream's: NatsBroker, RabbitBroker, RedisBroker or KafkaBroker."""


class BrokerSource:
    """Where a destination has its broker from."""

    def __init__(self, make: Callable[[], Broker], *, is_ours: bool) -> None:
        self._make = make
        self._is_ours = is_ours
        self._broker: Broker | None = None

    @property
    def broker(self) -> Broker:
        """The broker; made if there is none."""
        if self._broker is None:
            self._broker = self._make()
        return self._broker

    async def connect(self) -> Any:
        """Return the client that the broker holds, connected.

        Raises:
            BrokerUnavailable: it cannot be reached.
        """
        return await brokers.connect(self.broker)

    async def discard(self) -> None:
        """Give a broker up whose connection is lost, if it is ours."""
        if self._is_ours and self._broker is not None:
            broker, self._broker = self._broker, None
            await brokers.disconnect(broker)

    async def close(self) -> None:
        await self.discard()


class RelayOptions(TypedDict, total=False):
    """What may be said about a relay beside its broker and patterns. None is the same as absent."""

    name: str | None
    """That of its group. Defaults to `relay.` and the kind of broker, as in `relay.jetstream`."""
    subject_template: str | None
    """Subject, routing key, stream or topic of an event, with `{topic}` and `{key}`. Defaults to `{topic}`."""
    start: Start | None
    """Where a new relay begins: now, earliest, a seq (exclusive) or a time. Defaults to now."""
    cloudevents: Form | None
    """Send CloudEvents: `binary` (attributes in headers) or `structured` (JSON as the body). Defaults to neither."""
    stream: str | None
    """JetStream: the name of the stream. Defaults to whichever takes the subjects."""
    create_stream: bool
    """JetStream: make the stream if there is none; it is then the relay's alone. Defaults to False."""
    exclusive: bool | None
    """JetStream and Redis: whether nobody else writes there, so that the broker itself refuses doubles. Defaults to
    whether the relay has made the stream (JetStream), and to True (Redis)."""
    exchange: str | None
    """RabbitMQ: the exchange. Defaults to the default one, whose routing keys are names of queues."""
    maxlen: int | None
    """Redis: entries that a stream keeps, about. Defaults to all."""


def open_relay(node: Node, to: str | Broker, patterns: Sequence[str], options: RelayOptions) -> Relay:
    """Return a relay of a node. Nothing is connected yet.

    Raises:
        SettingsError: `to` is neither URL nor broker, or the extra `relay` is not installed.
        InvalidRelay: the broker has no such option, or cannot have such subjects.
        InvalidGroup, InvalidPattern: name or patterns cannot be used.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    name = given.pop("name", None)
    template, start = given.pop("subject_template", "{topic}"), given.pop("start", "now")
    cloudevents = given.pop("cloudevents", None)
    destination = open_destination(to, **given)
    return Relay(
        node,
        destination,
        [check_pattern(pattern) for pattern in patterns],
        name=check_group_name(f"relay.{destination.kind}" if name is None else name),
        template=template,
        start=start,
        cloudevents=cloudevents,
    )


def open_destination(to: str | Broker, **options: Any) -> Destination:
    """Return the destination that a URL or a broker of FastStream's is, with those options that some brokers have.

    Raises:
        SettingsError: it is neither, or the extra `relay` is not installed.
        InvalidRelay: an option is not of this broker.
    """
    given = {name: value for name, value in options.items() if (name, value) != ("create_stream", False)}
    if not isinstance(to, str):
        return _open(brokers.kind_of(to), BrokerSource(lambda: to, is_ours=False), given)
    kind = brokers.kind_of_url(to)
    return _open(kind, BrokerSource(_make_for(kind, to), is_ours=True), given)


def _make_for(kind: BrokerKind, url: str) -> Callable[[], Broker]:
    """Return what makes the broker of a URL, as a relay needs it."""

    def make() -> Broker:
        if kind == "nats":
            from faststream.nats import NatsBroker

            # What waits to be written when a connection is lost would be sent on the next one.
            return NatsBroker(url, allow_reconnect=False, connect_timeout=5, logger=None)
        if kind == "kafka":
            from faststream.kafka import KafkaBroker

            return KafkaBroker(urlsplit(url).netloc.split(","), enable_idempotence=True, logger=None)
        return brokers.open_broker(url)

    brokers.open_broker(url)  # it says what is missing
    return make


def _open(kind: BrokerKind, source: BrokerSource, given: dict[str, Any]) -> Destination:
    if kind == "nats":
        from eventbus_fastapi.relay.jetstream import JetStream

        options = _only(given, "NATS", stream="stream", create_stream="create", exclusive="exclusive")
        return JetStream(source, **options)
    if kind == "rabbitmq":
        from eventbus_fastapi.relay.rabbitmq import RabbitMQ

        return RabbitMQ(source, **_only(given, "RabbitMQ", exchange="exchange"))
    if kind == "redis":
        from eventbus_fastapi.relay.redis_streams import RedisStreams

        return RedisStreams(source, **_only(given, "Redis", maxlen="maxlen", exclusive="exclusive"))
    from eventbus_fastapi.relay.kafka import Kafka

    return Kafka(source, **_only(given, "Kafka"))


def _only(given: dict[str, Any], broker: str, **names: str) -> dict[str, Any]:
    """Return options by the names of a destination; refuse those that it does not have."""
    for name in given:
        if name not in names:
            known = ", ".join(names) or "none"
            raise InvalidRelay(f"a relay into {broker} has no option {name}; it has: {known}")
    return {names[name]: value for name, value in given.items()}
