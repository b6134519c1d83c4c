"""Which stream carries the fan-out: what `EVENTBUS_FANOUT` says. NATS is imported only where it is wanted."""

from __future__ import annotations

from urllib.parse import urlsplit

from eventbus_fastapi.errors import SettingsError, quote
from eventbus_fastapi.pipeline.fanout import Stream
from eventbus_fastapi.settings import Settings

SCHEMES = ("nats", "tls", "ws", "wss")


def open_fanout(settings: Settings) -> Stream | None:
    """Return the stream, not opened yet; None: there is to be none.

    Raises:
        SettingsError: the URL cannot be used, or the extra `fanout` is not installed.
    """
    if settings.fanout is None:
        return None
    servers = [server.strip() for server in settings.fanout.get_secret_value().split(",")]
    for server in servers:
        scheme, separator, _ = server.partition("://")
        if not separator or scheme not in SCHEMES:  # the rest may have a password
            given = f"one that begins with {quote(scheme + separator)}" if separator else "one without a scheme"
            raise SettingsError(
                f"setting fanout (EVENTBUS_FANOUT): expected a URL of NATS such as nats://127.0.0.1:4222, got {given}"
            )
        if not _has_address(server):
            raise SettingsError(
                "setting fanout (EVENTBUS_FANOUT): expected a URL of NATS such as nats://127.0.0.1:4222, got one "
                "whose host and port cannot be read; a user or password in it cannot have any of / ? # [ ]"
            )
    try:
        from eventbus_fastapi.relay.fanout_stream import JetStream
    except ModuleNotFoundError as exc:
        raise SettingsError(
            "nats-py is not installed; EVENTBUS_FANOUT needs: pip install 'eventbus-fastapi[fanout]'"
        ) from exc
    return JetStream(servers)


def _has_address(server: str) -> bool:
    """Say whether host and port can be read. What `urlsplit` says of them may be a part of a password."""
    try:
        url = urlsplit(server)
        return bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        return False
