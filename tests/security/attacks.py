"""The ways to attack a bus that asks who comes, each as a value: what is sent, and what has to come back.

An expectation is an HTTP status, the code of a close (1000 and above), or the code of an error that answers a frame.
`LET_IN` is a handshake that is accepted and a socket that works.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from tests.server.sockets import PATIENCE, ServedBus, peer

Expected = int | str
LET_IN = 101


class Attack(NamedTuple):
    name: str
    expected: Expected
    send: Callable[[ServedBus], Awaitable[Expected]]

    def __str__(self) -> str:
        return self.name


def encoded(token: str) -> str:
    """A token as a subprotocol carries it."""
    return "bearer." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def http(
    name: str,
    expected: Expected,
    method: str,
    path: str,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    body: Any = None,
) -> Attack:
    """A request. `body` is sent as JSON, or as it is if it is bytes."""

    async def send(bus: ServedBus) -> Expected:
        given = httpx.Headers(headers)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if content is not None:
            given.setdefault("content-type", "application/json")
        async with httpx.AsyncClient(base_url=bus.served.http, trust_env=False, timeout=PATIENCE) as client:
            answer = await client.request(method, path, headers=given, content=content)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"]
        return answer.status_code

    return Attack(name, expected, send)


def shake(
    name: str,
    expected: Expected,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    *,
    subprotocols: Sequence[str] = ("eventbus.v1",),
    query: str = "",
) -> Attack:
    """A handshake of `/ws`; where it is accepted, the socket is asked for a `pong`."""
    return frames(name, expected, headers, [{"type": "ping", "id": 1}], subprotocols=subprotocols, query=query)


def frames(
    name: str,
    expected: Expected,
    headers: Mapping[str, str] | Sequence[tuple[str, str]],
    sent: Sequence[Mapping[str, Any] | str | bytes],
    *,
    subprotocols: Sequence[str] = ("eventbus.v1",),
    query: str = "",
) -> Attack:
    """Frames on a socket. What counts is the first error or close that answers them, or else that the last is done."""

    async def send(bus: ServedBus) -> Expected:
        offered = [Subprotocol(name) for name in subprotocols] or None
        try:
            async with peer(bus.served.ws + query, subprotocols=offered, additional_headers=list_of(headers)) as socket:
                answer = socket.socket.response
                assert answer is not None
                assert answer.headers.get("Sec-WebSocket-Protocol") in (None, "eventbus.v1"), "no token is said again"
                for frame in sent:
                    await socket.socket.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))
                return await _first_answer(socket, done=1)
        except InvalidStatus as exc:
            return _status_of(exc)
        except InvalidHandshake:
            return 400

    return Attack(name, expected, send)


def _status_of(refused: InvalidStatus) -> int:
    answer = refused.response
    assert answer.status_code != 401 or answer.headers["WWW-Authenticate"]
    return answer.status_code


async def _first_answer(socket: Any, *, done: int) -> Expected:
    try:
        while True:
            frame = await socket.next()
            if frame.get("type") == "error":
                return str(frame["error"]["code"])
            if frame.get("type") in ("ok", "pong") and frame.get("id") == done:
                return LET_IN
    except ConnectionClosed as exc:
        return 1006 if exc.rcvd is None else exc.rcvd.code


def list_of(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, Mapping) else list(headers)
