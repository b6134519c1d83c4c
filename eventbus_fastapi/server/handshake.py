"""The handshake of a WebSocket: who comes, in which dialect, and whether it is accepted.

Whoever may not come in is answered with HTTP before the socket is accepted. A client that cannot send its token in the
handshake says so with `?auth=frame`: then the socket is accepted, and closed unless its first frame is an `auth` with a
token, in time. Until then nothing else is done for it, and the database is not asked.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from eventbus_fastapi.auth import Gate, Principal
from eventbus_fastapi.auth.credentials import BEARER_SUBPROTOCOL
from eventbus_fastapi.errors import (
    CredentialsExpired,
    EventBusError,
    Forbidden,
    HelloTimeout,
    TooMany,
    Unauthenticated,
    UnknownSubprotocol,
    quote,
)
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.protocol import cloudevents, frames
from eventbus_fastapi.protocol.commands import Authenticate, Subscribe
from eventbus_fastapi.protocol.parser import parse_client_frame
from eventbus_fastapi.server.admission import Seat
from eventbus_fastapi.server.guard import known_as
from eventbus_fastapi.server.outlet import Ending, Outlet, SocketLine
from eventbus_fastapi.server.problems import problem
from eventbus_fastapi.server.query import subscription_of
from eventbus_fastapi.server.transport import raw_channels
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Head

logger = logging.getLogger(__name__)

MAX_HELLO = 16_384
"""Longest first frame that is read, characters: nobody knows yet who sent it."""


class Admitted(NamedTuple):
    """An accepted WebSocket, and what is known of it."""

    principal: Principal
    head: Head
    subprotocol: str | None
    """None: the plain dialect."""
    hello: Authenticate | None = None
    """The frame that brought the token; None: the handshake did."""
    wanted: Subscribe | None = None
    """What a client of CloudEvents subscribes to, in its URL."""


async def shake_hands(websocket: WebSocket, node: Node, gate: Gate, seat: Seat) -> Admitted | None:
    """Accept a WebSocket, whose seat is from then on that of its principal; None: it was refused, or it left."""
    if gate.is_guarded and websocket.query_params.get("auth") == "frame":
        return await _admit_by_frame(websocket, node, gate, seat)
    try:
        principal = await gate.admit(websocket)
        _identify(seat, principal)
        subprotocol = _subprotocol(websocket)
        wanted = _wanted(websocket, subprotocol)
        if wanted is not None:
            principal.require_subscribe(*wanted.patterns)
        head = await node.head()
    except EventBusError as exc:
        await refuse(websocket, problem(exc))
        return None
    except HTTPException as exc:
        await refuse(websocket, JSONResponse({"detail": exc.detail}, exc.status_code, exc.headers))
        return None
    await websocket.accept(subprotocol)
    return Admitted(principal, head, subprotocol, wanted=wanted)


async def refuse(websocket: WebSocket, answer: Response) -> None:
    """Answer the handshake with HTTP, or with a bare refusal where the ASGI server cannot do that."""
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(answer)
    else:
        await websocket.close()


def ending_of(error: EventBusError) -> Ending:
    """Return how a connection ends whose client is not, or no longer, let in."""
    if isinstance(error, Unauthenticated):
        return Ending(4401, error, reconnect=isinstance(error, CredentialsExpired), after=0)
    if isinstance(error, Forbidden):
        return Ending(4403, error, reconnect=False, after=0)
    if isinstance(error, TooMany):
        return Ending(4429, error, after=error.retry_after or 0)
    return Ending(4500, error)


def translated(refusal: HTTPException) -> EventBusError:
    """Return the error that stands for an answer of the app's own, where there is no HTTP any more."""
    if refusal.status_code == HTTPStatus.UNAUTHORIZED:
        return Unauthenticated()
    if refusal.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Forbidden("the app does not let it in")
    return EventBusError("the server failed; its log has the details")


async def _admit_by_frame(websocket: WebSocket, node: Node, gate: Gate, seat: Seat) -> Admitted | None:
    try:
        gate.check_origin(websocket)
        subprotocol = _subprotocol(websocket)
        wanted = _wanted(websocket, subprotocol)
    except EventBusError as exc:
        await refuse(websocket, problem(exc))
        return None
    await websocket.accept(subprotocol)
    try:
        hello = await _hello(websocket, node.settings)
        if hello is None:
            return None
        principal = await gate.identify(websocket, hello.token.get_secret_value())
        _identify(seat, principal)
        if wanted is not None:
            principal.require_subscribe(*wanted.patterns)
        return Admitted(principal, await node.head(), subprotocol, hello, wanted)
    except HTTPException as exc:
        await _turn_away(websocket, translated(exc), node.settings, subprotocol)
    except EventBusError as exc:
        await _turn_away(websocket, exc, node.settings, subprotocol)
    return None


async def _hello(websocket: WebSocket, settings: Settings) -> Authenticate | None:
    """Wait for the first frame, which must be an `auth`; None: the client has left."""
    try:
        async with asyncio.timeout(settings.hello_timeout):
            message = await websocket.receive()
    except TimeoutError:
        raise HelloTimeout(f"no token came within {settings.hello_timeout:g} seconds") from None
    if message["type"] == "websocket.disconnect":
        return None
    text = message.get("text")
    is_usable = isinstance(text, str) and len(text) <= MAX_HELLO
    commands = parse_client_frame(str(text), settings, arrays=False) if is_usable else []
    if len(commands) != 1 or not isinstance(commands[0], Authenticate):
        raise Unauthenticated("expected a frame of type 'auth' with a token first")
    return commands[0]


async def _turn_away(websocket: WebSocket, error: EventBusError, settings: Settings, subprotocol: str | None) -> None:
    """Close an accepted socket before anything was done for it."""
    line = SocketLine(*raw_channels(websocket), has_bye=subprotocol == frames.SUBPROTOCOL)
    outlet = Outlet(line, send_timeout=settings.send_timeout, on_end=lambda _: None)
    await outlet.close(ending_of(error), timeout=settings.close_timeout)


def _identify(seat: Seat, principal: Principal) -> None:
    """Count the connection as one of its principal.

    Raises:
        TooManyConnections: it has enough of them.
    """
    name = known_as(principal)
    if name is not None:
        seat.identify(name)


def _subprotocol(websocket: WebSocket) -> str | None:
    """Return the subprotocol to speak; None: the client has offered none. A token that it offers is not said again.

    Raises:
        UnknownSubprotocol: none of ours.
    """
    offered = websocket.scope.get("subprotocols", [])
    if not offered:
        return None
    for known in (frames.SUBPROTOCOL, cloudevents.SUBPROTOCOL):
        if known in offered:
            return known
    shown = (f"'{BEARER_SUBPROTOCOL}…'" if name.startswith(BEARER_SUBPROTOCOL) else quote(name) for name in offered)
    names = ", ".join([*shown][:5])
    expected = f"none, '{frames.SUBPROTOCOL}' or '{cloudevents.SUBPROTOCOL}'"
    raise UnknownSubprotocol(f"unknown subprotocol {names}; expected {expected}")


def _wanted(websocket: WebSocket, subprotocol: str | None) -> Subscribe | None:
    """Return what a client of CloudEvents subscribes to: it has no frames to say it.

    Raises:
        InvalidPattern, InvalidRequest: its URL is malformed.
    """
    return subscription_of(websocket.query_params) if subprotocol == cloudevents.SUBPROTOCOL else None
