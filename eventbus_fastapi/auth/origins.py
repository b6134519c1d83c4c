"""Origins: which web pages may use a browser's credentials here.

A browser sends cookies to us whichever page asks for it, and it opens a WebSocket to anywhere. What it also sends, and
no page can change, is the page's origin. So a connection that comes from a page must come from one of ours: the origin
that the request itself was sent to, or one of `allowed`. Origins are compared as text: browsers write them in one way.

Programs that are no browsers send no origin, and may leave it out as they like: they have nobody's cookies.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from starlette.requests import HTTPConnection

from eventbus_fastapi.auth.credentials import are_ambient, are_explicit
from eventbus_fastapi.errors import OriginForbidden, SettingsError, quote

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def check_origins(origins: Iterable[str]) -> frozenset[str]:
    """Return origins as they are compared.

    Raises:
        SettingsError: one is not written as browsers write it.
    """
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme)
        if not _ORIGIN.fullmatch(origin) or (port and rest.endswith(port)):
            expected = "expected scheme://host or scheme://host:port as browsers send it, in lower case"
            raise SettingsError(f"allowed_origins: {expected}, without path and default port, got {quote(origin)}")
    return frozenset(origins)


def check_origin(connection: HTTPConnection, allowed: Collection[str]) -> None:
    """Let a connection pass that comes from a page of ours, or from no page.

    Raises:
        OriginForbidden: it comes from another page; or it may, as it has a browser's credentials and says no origin.
    """
    origins = connection.headers.getlist("origin")
    is_websocket = connection.scope["type"] == "websocket"
    if not is_websocket and (connection.scope["method"] in _SAFE_METHODS or are_explicit(connection)):
        return
    if not origins:
        if are_ambient(connection):
            raise OriginForbidden("a request with a cookie must say its Origin; programs use a token instead")
        return
    if len(origins) > 1 or origins[0] not in (_own_origin(connection), *allowed):
        shown = " and ".join(map(quote, origins[:2]))
        raise OriginForbidden(f"origin {shown} is not allowed (EVENTBUS_ALLOWED_ORIGINS)")


def _own_origin(connection: HTTPConnection) -> str | None:
    """Return the origin that the request was sent to; None: it cannot be told."""
    hosts = connection.headers.getlist("host")
    if len(hosts) != 1:
        return None
    scheme: str = {"ws": "http", "wss": "https"}.get(connection.url.scheme, connection.url.scheme)
    return f"{scheme}://{hosts[0].lower().removesuffix(_DEFAULT_PORTS.get(scheme, ':'))}"
