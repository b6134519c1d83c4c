"""Brokers: which kind one is, how a URL becomes one, and its client once it is connected.

A broker is FastStream's: it knows the connection's options, and its `connect()` gives the client of that kind (nats-py,
aio-pika, redis, aiokafka). What is relayed goes through that client, as batches and pipelined acks need; FastStream's
own publishers and subscribers know one message at a time.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import urlsplit

from eventbus_fastapi.errors import BrokerUnavailable, EventBusError, SettingsError, quote

BrokerKind = Literal["nats", "rabbitmq", "redis", "kafka"]

CONNECT_TIMEOUT = 5.0
"""Seconds that connecting may take; whoever needs the broker tries again."""
SCHEMES: dict[str, BrokerKind] = {
    "nats": "nats",
    "tls": "nats",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "redis": "redis",
    "rediss": "redis",
    "kafka": "kafka",
}
"""What a URL starts with, for each kind."""
_PACKAGES: dict[BrokerKind, str] = {
    "nats": "faststream.nats",
    "rabbitmq": "faststream.rabbit",
    "redis": "faststream.redis",
    "kafka": "faststream.kafka",
}


def open_broker(url: str) -> Any:
    """Return the broker of a URL: nats://, amqp(s)://, redis(s):// or kafka://host:port. Nothing is connected yet.

    Raises:
        SettingsError: it is no such URL, or the extra `relay` is not installed.
    """
    kind = kind_of_url(url)
    package = _import(kind)
    if kind == "nats":
        return package.NatsBroker(url, logger=None, max_reconnect_attempts=-1, reconnect_time_wait=1)
    if kind == "rabbitmq":
        return package.RabbitBroker(url, logger=None, reconnect_interval=1.0)
    if kind == "redis":
        return package.RedisBroker(url, logger=None)
    return package.KafkaBroker(urlsplit(url).netloc.split(","), logger=None)


def kind_of_url(url: str) -> BrokerKind:
    """Return which kind of broker a URL is of.

    Raises:
        SettingsError: it is none.
    """
    expected = "expected the URL of a broker, nats://, amqp://, redis:// or kafka://host:port"
    try:
        parts = urlsplit(url)
        has_host = bool(parts.netloc) and (parts.scheme == "kafka" or (bool(parts.hostname) and parts.port != 0))
    except ValueError:
        raise SettingsError(f"{expected}, got {quote(shown(url))}{_hint(url)}") from None
    if parts.scheme == "kafka" and "@" in parts.netloc:
        raise SettingsError("a URL of Kafka has no user: hand in a KafkaBroker(…, security=…) in its place")
    if parts.scheme not in SCHEMES or not has_host:
        raise SettingsError(f"{expected}, got {quote(shown(url))}{_hint(url)}")
    return SCHEMES[parts.scheme]


def _hint(url: str) -> str:
    """Say what a password may have made of a URL, which is not shown."""
    kind = SCHEMES.get(url.partition("://")[0])
    if kind is None or "@" not in url:
        return ""
    remedy = (
        "NATS takes them as they stand, so there cannot be any"
        if kind == "nats"
        else "write them percent-encoded, such as %2F"
    )
    return f"; are there any of / ? # [ ] in its user or password? {remedy}"


def kind_of(broker: object) -> BrokerKind:
    """Return which kind a broker is.

    Raises:
        SettingsError: it is none of FastStream's that are known here.
    """
    modules = [each.__module__ for each in type(broker).__mro__]
    for kind, package in _PACKAGES.items():
        if any(module.startswith(f"{package}.") for module in modules) and hasattr(broker, "connect"):
            return kind
    expected = "expected FastStream's NatsBroker, RabbitBroker, RedisBroker or KafkaBroker"
    raise SettingsError(f"{expected}, got {type(broker).__name__}")


async def connect(broker: Any) -> Any:
    """Connect a broker, unless it is, and return its client.

    Raises:
        BrokerUnavailable: it cannot be reached, or does not let us in.
    """
    with translated(kind_of(broker), "cannot connect"):
        async with asyncio.timeout(CONNECT_TIMEOUT):
            return await broker.connect()


async def disconnect(broker: Any) -> None:
    """End a broker's connection, as far as there is one."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await broker.stop()
    except Exception as exc:  # noqa: BLE001 - whatever a client says at its end, it has ended
        logging.getLogger(__name__).debug("disconnected from %s: %s", kind_of(broker), type(exc).__name__)


@contextmanager
def translated(kind: BrokerKind, what: str) -> Iterator[None]:
    """Translate what a client raises to errors of the bus: here, and nowhere else.

    Raises:
        BrokerUnavailable: for whatever the client has raised, unless it is an error of the bus already.
    """
    try:
        yield
    except EventBusError:
        raise
    except Exception as exc:
        raise BrokerUnavailable(f"{kind}: {what}: {_said(exc)}") from exc


def _said(exc: Exception) -> str:
    reason = str(exc).strip().splitlines()
    if type(exc).__name__ == "InvalidFrameError" and "Connection.Close" in str(exc):  # aiormq does not read why
        return (
            "RabbitMQ ended the connection as it began: it has no such virtual host, which is the path of the URL,"
            " or the user may not use it"
        )
    return f"{type(exc).__name__}: {reason[0][:200]}" if reason else type(exc).__name__


def shown(url: str) -> str:
    """Return a URL without its password, also one that cannot be read: a password may have any character in it."""
    scheme, slashes, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    _, at, host = rest.rpartition("@")
    place, mark, _ = host.partition("?")
    return f"{scheme}{slashes}{'…@' if at else ''}{place}{'?…' if mark else ''}"


def _import(kind: BrokerKind) -> Any:
    try:
        return importlib.import_module(_PACKAGES[kind])
    except ImportError as exc:
        raise SettingsError(
            f"FastStream's broker for {kind} is not installed; it needs: pip install 'eventbus-fastapi[relay]'"
        ) from exc
