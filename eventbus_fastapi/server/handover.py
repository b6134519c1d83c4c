"""The handover of an accepted WebSocket: its route lets it in, and the router that called the route serves it on.

    router ─▶ route: dependencies, handshake ─▶ accepted
       └──────────────◀ returns ◀───────────────────┘
       └─▶ connection, until it ends

FastAPI keeps what it makes for a route for as long as that runs: what it has to close, dependencies, wrappers, and the
frames of them all. For a WebSocket that is open for hours and idle, that is more than what the bus itself needs, and of
no use once it is accepted. So the route returns then, and dependencies with `yield` end with it.
"""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

_HANDOVER = "eventbus.handover"
_STACKS = ("fastapi_inner_astack", "fastapi_function_astack")
"""What FastAPI leaves in the scope: two stacks of what to close, which are empty now and take 2 KiB."""


class Served(Protocol):
    """An accepted WebSocket that nobody serves yet."""

    async def run(self) -> None:
        """Serve it until it ends."""

    def give_up(self) -> None:
        """Let it go, if it was never run."""


class Handover:
    """Where a route leaves its WebSocket. `receive` and `send` are those that the router was called with."""

    __slots__ = ("receive", "send", "served")

    def __init__(self, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.send = send
        self.served: Served | None = None


class Router(APIRouter):
    """See the module's docstring."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await super().handle(scope, receive, send)
            return
        handover = scope[_HANDOVER] = Handover(receive, send)
        try:
            await super().handle(scope, receive, send)
        except BaseException:
            if handover.served is not None:
                handover.served.give_up()
            raise
        del scope[_HANDOVER]
        for stack in _STACKS:
            scope.pop(stack, None)
        if handover.served is not None:
            await handover.served.run()


def handover_of(websocket: WebSocket) -> Handover | None:
    """Return where the route of a WebSocket may leave it; None: it has to serve it itself, as below a `Mount`, or with
    FastAPI before 0.137, which copies the routes of a router.
    """
    handover: Handover | None = websocket.scope.get(_HANDOVER)
    return handover
