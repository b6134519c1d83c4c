"""The address that limits count by."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import HTTPConnection

from eventbus_fastapi.server.address import address_of


def connection(client: Any, *headers: tuple[bytes, bytes]) -> HTTPConnection:
    return HTTPConnection({"type": "websocket", "client": client, "headers": list(headers)})


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("testclient", "testclient"),
        ("x" * 60_000, "x" * 255),
    ],
)
def test_an_address_is_what_the_connections_of_one_user_have_in_common(host: str, address: str) -> None:
    assert address_of(connection((host, 50_000))) == address


@pytest.mark.parametrize("client", [None, ("", 0)])
def test_connections_without_an_address_share_one(client: Any) -> None:
    assert address_of(connection(client)) == "unknown"


def test_headers_are_not_believed() -> None:
    spoofed = connection(("192.0.2.1", 1), (b"x-forwarded-for", b"198.51.100.7"), (b"forwarded", b"for=198.51.100.7"))
    assert address_of(spoofed) == "192.0.2.1"
