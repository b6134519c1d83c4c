"""The routes of a bus, as a FastAPI router that brings its own start and stop.

    app.include_router(eventbus.router())                    # /ws, /publish, …
    app.include_router(eventbus.router(), prefix="/bus")     # /bus/ws, /bus/publish, …

FastAPI runs a router's lifespan as part of that of the app that includes it: the bus starts after the app's own
lifespan has begun and stops before it ends. A router must hold all its routes when it is included, so include this one
in a router of yours before yours goes into the app. An app that is *mounted* has no lifespan at all: there the outer
app starts the bus, with `async with eventbus:` in its own lifespan.

Dependencies given to `include_router` guard every route, the WebSocket too. Nothing else of the app is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from fastapi import APIRouter, WebSocket

from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.server import openapi
from eventbus_fastapi.server.http import Endpoints
from eventbus_fastapi.server.problems import ProblemRoute
from eventbus_fastapi.server.websocket import serve_websocket

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]
"""Starts what a router needs, given the app, and stops it."""


def build_router(node: Node, *, lifespan: Lifespan | None = None) -> APIRouter:
    """Return a router with the routes of `node`. `lifespan` starts and stops it; None: somebody else does."""
    endpoints = Endpoints(node)
    router = APIRouter(route_class=ProblemRoute, lifespan=lifespan, tags=[openapi.TAG])

    async def websocket(websocket: WebSocket) -> None:
        await serve_websocket(websocket, node)

    def add(path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        router.add_api_route(path, endpoint, generate_unique_id_function=partial(openapi.operation_id, path), **options)

    router.add_api_websocket_route("/ws", websocket, name="eventbus_ws")
    add(
        "/publish",
        endpoints.publish,
        methods=["POST"],
        status_code=201,
        name="eventbus_publish",
        summary="Publish events",
        response_model=openapi.Published | list[openapi.Published],
        responses={201: openapi.PUBLISH_ANSWER, **openapi.documented(*openapi.PUBLISH_PROBLEMS)},
        openapi_extra={"requestBody": openapi.PUBLISH_BODY},
    )
    add(
        "/events",
        endpoints.list_events,
        name="eventbus_list_events",
        summary="Read the log",
        response_model=openapi.EventPage,
        responses=openapi.documented(*openapi.LIST_PROBLEMS),
    )
    add(
        "/events/{seq}",
        endpoints.get_event,
        name="eventbus_get_event",
        summary="Read one event",
        response_model=openapi.LoggedEventWithStatus,
        responses=openapi.documented(*openapi.GET_PROBLEMS),
    )
    add(
        "/healthz",
        endpoints.healthz,
        name="eventbus_healthz",
        summary="Does the process run?",
        response_model=openapi.Health,
    )
    add(
        "/readyz",
        endpoints.readyz,
        name="eventbus_readyz",
        summary="Can the bus work?",
        response_model=openapi.Readiness,
        responses=openapi.documented(*openapi.READY_PROBLEMS),
    )
    return router
