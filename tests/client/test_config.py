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
        ({"url": "ws://a..b/ws"}, "url: expected ws://host:port/path or wss://…, got 'ws://a..b/ws'"),
        ({"url": f"ws://{'a' * 64}/ws"}, "url: expected ws://host:port/path"),
        ({"ssl": ssl.create_default_context()}, "ssl: it goes with a wss:// url only"),
        ({"ssl": True}, "ssl: expected None or an ssl.SSLContext, got True"),
        ({"headers": 5}, "headers: expected None or names of HTTP headers, .* got int"),
        ({"headers": {"a b": "c"}}, "headers: .* got 'a b' with another text"),
        ({"headers": {"a": 5}}, "headers: .* got 'a' with int"),
        ({"headers": {"a": "b\r\nc: d"}}, "headers: .* got 'a' with another text"),
        ({"headers": {"a": "\u20ac"}}, "headers: .* got 'a' with another text"),
        ({"proxy": 5}, "proxy: expected True, None or http://host:port, .* got int"),
        ({"proxy": False}, "proxy: .* got bool"),
        ({"proxy": "host:3128"}, "proxy: "),
        ({"proxy": "http://a..b:3128"}, "proxy: .* got 'http://a..b:3128'"),
        ({"proxy": "http://host:99999"}, "proxy: "),
        ({"reconnect_interval": 0}, "reconnect_interval: expected a duration above 0, .* got 0"),
        ({"max_reconnect_interval": timedelta(0)}, "max_reconnect_interval: expected a duration above 0"),
        ({"open_timeout": float("nan")}, "open_timeout"),
        ({"close_timeout": -1}, "close_timeout: expected a duration of 0 or more"),
        ({"open_timeout": True}, "open_timeout: .* got True"),
        ({"reconnect_interval": "1"}, "reconnect_interval: expected a duration above 0, .* got '1'"),
        ({"reconnect_interval": float("inf")}, "reconnect_interval: .* got inf"),
        ({"max_reconnect_interval": 10**400}, "max_reconnect_interval"),
        ({"max_pending": 0}, r"max_pending: expected an integer from 1 to 2\*\*53 - 1, got 0"),
        ({"max_pending_bytes": True}, "max_pending_bytes: .* got True"),
        ({"window": 1.5}, "window: .* got 1.5"),
        ({"window": 2**70}, "window"),
        ({"max_frame": 1.5}, "max_frame"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": 1.5}, "max_retries: expected None or an integer of 0 or more, got 1.5"),
        ({"max_retries": True}, "max_retries"),
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


@pytest.mark.parametrize("config", [5, 0, {"url": "ws://user:secret@host/ws"}, ClientConfig])
def test_what_is_no_configuration_is_refused_with_what_was_expected(config: Any) -> None:
    expected = f"expected a URL, a ClientConfig or None, got {type(config).__name__}"

    with pytest.raises(SettingsError, match=f"^{expected}$"):
        EventBusClient(config)


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


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "ws://user:x/secret@host/ws"},
        {"url": b"ws://user:secret@host/ws"},
        {"proxy": "ftp://user:secret@proxy"},
        {"proxy": "http://user:x/secret@proxy"},
        {"headers": "Authorization: secret"},
        {"headers": {"Authorization": "secret\n"}},
    ],
)
def test_no_secret_is_shown_of_a_setting_that_cannot_be_used(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as refused:
        ClientConfig(**settings)
    assert "secret" not in f"{refused.value!r} {refused.value.__cause__!r}"
