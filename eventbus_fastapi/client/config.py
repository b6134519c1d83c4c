"""The settings of a client. They name no secret when shown."""

from __future__ import annotations

import re
import ssl as _ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

from websockets.exceptions import InvalidURI
from websockets.uri import parse_uri

from eventbus_fastapi.auth.loopback import is_loopback
from eventbus_fastapi.client.token import EXPECTED, Token, is_token
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
    token: Token | None = None
    """Says who the client is, as `Authorization: Bearer …`: a text, or a callable that returns one, async or not. That
    is called for each connection, and again before the server takes the last one no more. Defaults to None."""
    allow_insecure: bool = False
    """Show the token also where others may read it: over `ws://` to another machine. Defaults to False."""
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
        for name, (expected, is_usable) in _RULES.items():
            value = getattr(self, name)
            if not is_usable(value):
                raise SettingsError(f"{name}: expected {expected}, got {_shown(name, value)}")
        if self.ssl is not None and not self.url.lower().startswith("wss:"):
            raise SettingsError("ssl: it goes with a wss:// url only, got ws://")

        if self.token is not None:
            self._check_token()

    def _check_token(self) -> None:
        if "authorization" in {name.lower() for name in self.headers or ()}:
            raise SettingsError("token: expected it or a header Authorization, got both")
        uri = parse_uri(self.url)
        if not uri.secure and not is_loopback(uri.host) and not self.allow_insecure:
            raise SettingsError(
                f"token: anybody on the way to {uri.host} can read it over ws://; use wss://, or allow_insecure=True"
            )

    @property
    def address(self) -> str:
        """The URL without user, password and query, fit for logs."""
        return address(self.url)

    def __repr__(self) -> str:
        return f"<ClientConfig {self.address}>"


def config_of(given: object, token: Token | None = None) -> ClientConfig:
    """Return the configuration of a client that was given one, only a URL, or None; and a token beside it, perhaps."""
    match given:
        case ClientConfig():
            return given if token is None else replace(given, token=token)
        case str():
            return ClientConfig(url=given, token=token)
        case None:
            return ClientConfig(token=token)
        case _:
            raise SettingsError(f"expected a URL, a ClientConfig or None, got {type(given).__name__}")


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


# --- what can be used ----------------------------------------------------------------------------

_MAX_COUNT = 2**53 - 1
"""Largest integer that every JSON implementation holds exactly: the server is told the window."""
_PROXIES = frozenset({"http", "https", "socks4", "socks4a", "socks5", "socks5h"})
_HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_CREDENTIALS = re.compile(r"//.*@", re.DOTALL)


def _is_server(url: object) -> bool:
    try:
        return isinstance(url, str) and _is_host(parse_uri(url).host)
    except (InvalidURI, ValueError):
        return False


def _is_proxy(proxy: object) -> bool:
    if not isinstance(proxy, str):
        return proxy is None or proxy is True
    try:
        parts = urlsplit(proxy)
        return parts.scheme in _PROXIES and _is_host(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_host(name: str | None) -> bool:
    """Say whether a host can be looked up.

    Raises:
        UnicodeError: it cannot: a label of it is empty or too long.
    """
    return bool(name and name.encode("idna"))


def _are_headers(headers: object) -> bool:
    return headers is None or (isinstance(headers, Mapping) and all(map(_is_header, headers.items())))


def _is_header(header: tuple[object, object]) -> bool:
    name, value = header
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and _HEADER_NAME.fullmatch(name) is not None
        and _HEADER_VALUE.fullmatch(value) is not None
    )


def _is_duration(duration: object) -> bool:
    amount = duration.total_seconds() if isinstance(duration, timedelta) else duration
    # bool is an int to Python, and `open_timeout=True` is a slip to us. The comparison is false for NaN, too.
    return isinstance(amount, int | float) and not isinstance(amount, bool) and 0 <= amount <= sys.float_info.max


def _is_integer(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= _MAX_COUNT


_ABOVE_0 = (
    "a duration above 0, in seconds or as a timedelta",
    lambda value: _is_duration(value) and seconds(value) > 0,
)
_COUNT = ("an integer from 1 to 2**53 - 1", lambda value: _is_integer(value, 1))

_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "url": ("ws://host:port/path or wss://…", _is_server),
    "token": (f"None, a callable or {EXPECTED}", lambda value: value is None or callable(value) or is_token(value)),
    "allow_insecure": ("True or False", lambda value: isinstance(value, bool)),
    "headers": ("None or names of HTTP headers, each with a line of ISO-8859-1 text", _are_headers),
    "ssl": ("None or an ssl.SSLContext", lambda value: isinstance(value, _ssl.SSLContext | None)),
    "proxy": ("True, None or http://host:port, https://…, socks5://…", _is_proxy),
    "reconnect_interval": _ABOVE_0,
    "max_reconnect_interval": _ABOVE_0,
    "max_retries": ("None or an integer of 0 or more", lambda value: value is None or _is_integer(value, 0)),
    "open_timeout": _ABOVE_0,
    "close_timeout": ("a duration of 0 or more, in seconds or as a timedelta", _is_duration),
    "max_pending": _COUNT,
    "max_pending_bytes": _COUNT,
    "window": _COUNT,
    "max_frame": _COUNT,
}
"""What each setting may be, in words and as a test."""


def _shown(name: str, value: object) -> str:
    """Show a value that cannot be used, without the secrets that it may hold."""
    if name == "token":
        return "another text" if isinstance(value, str) else type(value).__name__
    if name not in ("url", "proxy", "headers"):
        return quote(value)
    if isinstance(value, str) and name != "headers":
        return quote(address(_CREDENTIALS.sub("//", value)))
    if isinstance(value, Mapping):
        header, text = next(header for header in value.items() if not _is_header(header))
        return f"{quote(header)} with {'another text' if isinstance(text, str) else type(text).__name__}"
    return type(value).__name__
