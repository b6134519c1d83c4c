"""The address that a connection comes from: what limits count by where nobody says who they are.

It is what the ASGI server gives. A server behind a proxy takes it from `X-Forwarded-For` if it trusts the proxy (of
uvicorn: `--forwarded-allow-ips`); headers are never read here, so nobody else can make addresses up.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from starlette.requests import HTTPConnection

UNKNOWN = "unknown"
"""All connections over a Unix socket without a proxy that names its clients."""
IPV6_BITS = 64
"""One user of IPv6 commonly has all addresses that begin with the same so many bits."""

LONGEST = 255
"""Characters that count of what is no address: where a proxy hands on what a client says, that is of any length."""


def address_of(connection: HTTPConnection) -> str:
    """Return what the connections of one user at least have in common."""
    return address_at(connection.scope.get("client"))


def address_at(client: tuple[str, int] | None) -> str:
    """Return the same of a client as the ASGI server gives it; None: it has no address."""
    return _shared_by_user(client[0][:LONGEST]) if client and client[0] else UNKNOWN


@lru_cache(maxsize=4_096)
def _shared_by_user(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host  # a server may name its clients in another way
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), IPV6_BITS), strict=False))
