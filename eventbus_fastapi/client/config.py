"""The settings of a client. They name no secret when shown."""

from __future__ import annotations

import ssl as _ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from urllib.parse import urlsplit

from websockets.exceptions import InvalidURI
from websockets.uri import parse_uri

from eventbus_fastapi.errors import SettingsError, quote

Duration = float | timedelta
"""Seconds, or a timedelta."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ClientConfig:
    """How a client reaches the bus, and how much it keeps in memory meanwhile.

    Raises:
        SettingsError: a value cannot be used.
    """

    url: str = "ws://127.0.0.1:3000/ws"
    """Where the bus is: `ws://` or `wss://`. Defaults to `ws://127.0.0.1:3000/ws`."""
    headers: Mapping[str, str] | None = None
    """HTTP headers to send when connecting, such as Authorization. Defaults to None: no other ones."""
    ssl: _ssl.SSLContext | None = None
    """TLS settings of a `wss://` URL; None: those of the system. Defaults to None."""
    proxy: str | Literal[True] | None = True
    """URL of a proxy; True: the one that the environment names, if any; None: no proxy. Defaults to True."""

    # --- reconnecting ---
    reconnect_interval: Duration = 0.5
    """Longest pause before the first attempt to reconnect; it doubles with each attempt. The pauses are random, from 0
    to this (full jitter). Defaults to 0.5 seconds."""
    max_reconnect_interval: Duration = 30.0
    """Longest pause between attempts to reconnect. Defaults to 30 seconds."""
    max_retries: int | None = None
    """How often in a row to try again before giving up with `ConnectionLost`; None: for ever. A connection that opened
    starts the count anew. The same number limits how often a request is sent again that the server refuses for the
    moment (`retry`). Defaults to None."""
    open_timeout: Duration = 10.0
    """Longest time for a connection to open, the server's first frame included. Defaults to 10 seconds."""
    close_timeout: Duration = 5.0
    """How long `close()` waits for what was published and acknowledged but not answered. Defaults to 5 seconds."""

    # --- memory ---
    max_pending: int = 10_000
    """Most events that are published and not answered yet. Defaults to 10,000."""
    max_pending_bytes: int = 67_108_864
    """Most bytes of them. Defaults to 64 MiB."""
    window: int = 1_000
    """Most events of one subscription that are on their way or wait to be taken. Defaults to 1,000."""
    max_frame: int = 16_777_216
    """Largest frame accepted from the server, bytes. It must hold the largest event. Defaults to 16 MiB."""

    def __post_init__(self) -> None:
        _check_url(self.url, self.ssl)
        for name in ("reconnect_interval", "max_reconnect_interval", "open_timeout"):
            _check(seconds(getattr(self, name)) > 0, name, "a duration above 0", getattr(self, name))
        _check(seconds(self.close_timeout) >= 0, "close_timeout", "a duration of 0 or more", self.close_timeout)
        for name in ("max_pending", "max_pending_bytes", "window", "max_frame"):
            _check(getattr(self, name) >= 1, name, "an integer above 0", getattr(self, name))
        if self.max_retries is not None:
            _check(self.max_retries >= 0, "max_retries", "None or an integer of 0 or more", self.max_retries)

    @property
    def address(self) -> str:
        """The URL without user, password and query, fit for logs."""
        return address(self.url)

    def __repr__(self) -> str:
        return f"<ClientConfig {self.address}>"


def seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else duration


def address(url: str) -> str:
    """Return a URL without user, password and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _check_url(url: str, ssl: _ssl.SSLContext | None) -> None:
    try:
        uri = parse_uri(url)
    except (InvalidURI, ValueError, AttributeError, TypeError):
        # `from None`: the error of the library quotes the whole URL, which may hold a password.
        raise SettingsError(f"url: expected ws://host:port/path or wss://…, got {quote(address(str(url)))}") from None
    if ssl is not None and not uri.secure:
        raise SettingsError("ssl: it goes with a wss:// url only, got ws://")


def _check(is_usable: bool, name: str, expected: str, got: object) -> None:
    if not is_usable:
        raise SettingsError(f"{name}: expected {expected}, got {quote(got)}")
