"""Loopback: the addresses that only programs of the same machine reach."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from eventbus_fastapi.errors import SettingsError

REMEDY = "say who may do what in EVENTBUS_AUTH_FILE, or give --insecure (EVENTBUS_INSECURE=true)"


def is_loopback(host: str) -> bool:
    """Say whether only programs of the same machine reach a host."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host.lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def names_loopback(host: str) -> bool:
    """Say whether the header `Host` is that of somebody who was sent to this machine by one of its own names.

    Any other name may be of a page of somebody else, made to lead here after the page was loaded (DNS rebinding): to a
    browser the bus is of the page's own origin then.
    """
    name, colon, port = host.lower().rpartition(":")
    if not colon or (host.startswith("[") and host.endswith("]")):
        name, port = host.lower(), "0"
    if not port.isdecimal():
        return False
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    elif ":" in name:
        return False
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name)


def require_loopback(host: str) -> None:
    """Let a bus that asks nobody who they are listen on loopback only.

    Raises:
        SettingsError: it is another address.
    """
    if not is_loopback(host):
        raise SettingsError(f"on {host} anybody may publish and read everything; {REMEDY}")


def uvicorn_host(arguments: Sequence[str] = sys.argv, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the address that uvicorn's own command was told to listen on; None: this is another command, or none."""
    program = Path(arguments[0]) if arguments else Path()
    if program.stem != "uvicorn" and program.parts[-2:] != ("uvicorn", "__main__.py"):
        return None
    host = environment.get("UVICORN_HOST", "127.0.0.1")
    for number, argument in enumerate(arguments):
        if argument == "--host" and number + 1 < len(arguments):
            host = arguments[number + 1]
        elif argument.startswith("--host="):
            host = argument.removeprefix("--host=")
    return host
