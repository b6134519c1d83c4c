"""Requests and handshakes without a server, for tests of what looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import HTTPConnection

Header = tuple[str, str]


def request(*headers: Header, method: str = "GET", path: str = "/", query: str = "", **scope: Any) -> HTTPConnection:
    return _connection("http", headers, method=method, path=path, query_string=query.encode(), **scope)


def handshake(*headers: Header, subprotocols: Sequence[str] = (), query: str = "", **scope: Any) -> HTTPConnection:
    return _connection(
        "websocket", headers, subprotocols=list(subprotocols), path="/ws", query_string=query.encode(), **scope
    )


def _connection(kind: str, headers: Sequence[Header], **scope: Any) -> HTTPConnection:
    given = [("host", "bus.example"), *headers] if "host" not in dict(headers) else headers
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in given]
    default = {"scheme": "wss" if kind == "websocket" else "https", "server": ("bus.example", 443), "client": None}
    return HTTPConnection({"type": kind, "headers": encoded, **default, **scope})
