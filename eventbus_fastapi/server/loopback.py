"""Loopback: where a bus that asks nobody who they are may answer.

An address is looked at twice. At the start, as far as it is known: of `eventbus serve` it is a setting, and of the
command `uvicorn` an argument. And at each request, by the address that it came to, as the ASGI server tells it: a
server that was started in another way listens where it likes, but gets no further. Then `Host` must be a name of this
machine, or a page whose name was made to lead here could read and publish everything. Behind a proxy that is not
enough: it is on the same machine, and lets in the whole world.
"""

from __future__ import annotations

import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from eventbus_fastapi.auth.loopback import REMEDY, is_loopback, names_loopback
from eventbus_fastapi.errors import Forbidden, quote
from eventbus_fastapi.server.handshake import refuse
from eventbus_fastapi.server.problems import problem


class LoopbackOnly:
    """A middleware that refuses what came to another address, or was sent to another name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = _refusal(scope) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self._app(scope, receive, send)
            return
        answer = problem(Forbidden(f"{reason}: {REMEDY}"))
        if scope["type"] == "websocket":
            await refuse(WebSocket(scope, receive, send), answer)
        else:
            await answer(scope, receive, send)


def _refusal(scope: Scope) -> str | None:
    """Say why a request is refused; None: it is not."""
    address = _address(scope)
    if address is None:
        return None
    if not is_loopback(address):
        return "this bus answers on loopback only"
    foreign = next((host for host in Headers(scope=scope).getlist("host") if not names_loopback(host)), None)
    if foreign is not None:
        return f"this bus answers to 127.0.0.1 and localhost only, not to {quote(foreign)}"
    return None


def _address(scope: Scope) -> str | None:
    """Return the address that a request came to; None: a Unix socket, or a test without a server."""
    host: str | None = (scope.get("server") or (None,))[0]
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return None
    return host
