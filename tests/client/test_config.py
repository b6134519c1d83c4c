"""The settings of a client."""

from __future__ import annotations

import dataclasses
import ssl
from datetime import timedelta
from typing import Any

import pytest

from eventbus_fastapi.client import ClientConfig, EventBusClient
from eventbus_fastapi.client.config import seconds
from eventbus_fastapi.errors import SettingsError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "http://host/ws"}, "url: expected ws://host:port/path"),
        ({"url": "ws://"}, "url: expected ws://host:port/path"),
        ({"url": 7}, "url: expected ws://host:port/path"),
        ({"url": "ws://[/ws"}, "url: expected ws://host:port/path"),
        ({"url": "ws://host:port/ws"}, "url: expected ws://host:port/path"),
        ({"ssl": ssl.create_default_context()}, "ssl: it goes with a wss:// url only"),
        ({"reconnect_interval": 0}, "reconnect_interval: expected a duration above 0, got 0"),
        ({"max_reconnect_interval": timedelta(0)}, "max_reconnect_interval: expected a duration above 0"),
        ({"open_timeout": float("nan")}, "open_timeout"),
        ({"close_timeout": -1}, "close_timeout: expected a duration of 0 or more"),
        ({"max_pending": 0}, "max_pending: expected an integer above 0"),
        ({"window": 0}, "window"),
        ({"max_retries": -1}, "max_retries"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        ClientConfig(**settings)


def test_durations_are_seconds_or_a_timedelta() -> None:
    assert seconds(ClientConfig(open_timeout=timedelta(milliseconds=250)).open_timeout) == 0.25


def test_a_client_takes_a_url_a_configuration_or_nothing() -> None:
    config = ClientConfig(url="ws://host/ws", max_retries=3)
    assert EventBusClient(config).config is config
    assert EventBusClient("ws://host/ws").config == ClientConfig(url="ws://host/ws")
    assert EventBusClient().config.url == "ws://127.0.0.1:3000/ws"


def test_a_configuration_is_not_changed_after_the_fact() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClientConfig().url = "ws://elsewhere"  # type: ignore[misc]


@pytest.mark.parametrize("url", ["wss://user:secret@host:1/ws?token=secret", "ws://host/ws#secret"])
def test_no_secret_is_shown(url: str) -> None:
    try:
        config = ClientConfig(url=url, headers={"Authorization": "secret"})
    except SettingsError as refused:
        shown = repr(refused) + repr(refused.__cause__) + str(refused)
    else:
        shown = repr(config) + repr(EventBusClient(config))
        assert "wss://host:1/ws" in shown
    assert "secret" not in shown
