"""Brokers by their URLs."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import pytest
from faststream.kafka import KafkaBroker
from faststream.nats import NatsBroker
from faststream.rabbit import RabbitBroker
from faststream.redis import RedisBroker

from eventbus_fastapi.errors import BrokerUnavailable, SettingsError
from eventbus_fastapi.relay import brokers

URLS = {
    "nats://127.0.0.1:4222": (NatsBroker, "nats"),
    "amqp://guest:guest@127.0.0.1:5672/": (RabbitBroker, "rabbitmq"),
    "redis://127.0.0.1:6379/0": (RedisBroker, "redis"),
    "kafka://127.0.0.1:9092,127.0.0.1:9093": (KafkaBroker, "kafka"),
}


@pytest.mark.parametrize(("url", "expected"), URLS.items())
async def test_a_url_names_the_broker_of_its_kind(url: str, expected: tuple[type, str]) -> None:
    broker = brokers.open_broker(url)
    assert (type(broker), brokers.kind_of(broker)) == expected


@pytest.mark.parametrize("url", ["", "orders", "http://127.0.0.1", "nats://", "amqp://127.0.0.1:none", "nats://[::1"])
def test_any_other_url_is_refused_with_those_that_can_be_used(url: str) -> None:
    with pytest.raises(SettingsError, match="expected the URL of a broker, nats://, amqp://, redis:// or kafka://"):
        brokers.open_broker(url)


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://user:secret@127.0.0.1",
        "amqp://user:secret@127.0.0.1:70000",
        "amqp://user:secret/1@127.0.0.1",
        "nats://user:s#secret@127.0.0.1",
        "nats://user:secret@[::1",
        "nats://user:secret@127.0.0.1:1,nats://user:secret@127.0.0.1:2",
        "user:secret@127.0.0.1",
        "mqtt://127.0.0.1?password=secret",
    ],
)
def test_a_refusal_does_not_show_the_password(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        brokers.open_broker(url)
    assert "secret" not in str(refused.value)


def test_a_url_is_shown_without_what_may_be_a_password() -> None:
    assert brokers.shown("amqp://user:secret@127.0.0.1:5672/shop") == "amqp://…@127.0.0.1:5672/shop"
    assert brokers.shown("redis://127.0.0.1:6379/0?password=secret") == "redis://127.0.0.1:6379/0?…"
    assert brokers.shown("nats://user:12/secret@127.0.0.1") == "nats://…@127.0.0.1"
    assert brokers.shown("kafka://127.0.0.1:9092,127.0.0.1:9093") == "kafka://127.0.0.1:9092,127.0.0.1:9093"


def test_a_user_in_a_url_of_kafka_is_refused_as_a_url_cannot_say_how_to_sign_in() -> None:
    with pytest.raises(SettingsError, match="KafkaBroker") as refused:
        brokers.open_broker("kafka://user:secret@127.0.0.1:9092")
    assert "secret" not in str(refused.value)


def test_what_is_no_broker_is_refused_by_its_type() -> None:
    with pytest.raises(SettingsError, match=r"expected FastStream's NatsBroker, .*, got str"):
        brokers.kind_of("nats://127.0.0.1")


@pytest.mark.parametrize("url", ["amqp://guest:guest@127.0.0.1:1/", "nats://127.0.0.1:1"])
async def test_a_broker_that_is_away_is_said_to_be_within_the_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "CONNECT_TIMEOUT", 0.5)
    broker = brokers.open_broker(url)
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="cannot connect"):
        await brokers.connect(broker)
    assert time.monotonic() - began < 5
    await brokers.disconnect(broker)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("amqp://user:secret/1@127.0.0.1", "write them percent-encoded, such as %2F"),
        ("nats://user:secret/1@127.0.0.1", "NATS takes them as they stand, so there cannot be any"),
    ],
)
def test_a_password_that_no_url_can_have_is_hinted_at(url: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=hint):
        brokers.open_broker(url)


async def test_a_virtual_host_that_is_not_there_is_named_as_the_reason(rabbitmq_url: str) -> None:
    parts = urlsplit(rabbitmq_url)
    broker = brokers.open_broker(parts._replace(path="/no-such").geturl())
    with pytest.raises(BrokerUnavailable, match="it has no such virtual host, which is the path of the URL"):
        await brokers.connect(broker)
    await brokers.disconnect(broker)
