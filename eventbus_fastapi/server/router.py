"""The routes of a bus, as a FastAPI router that brings its own start and stop.

    app.include_router(eventbus.router())                    # /ws, /publish, /client.js, …
    app.include_router(eventbus.router(), prefix="/bus")     # /bus/ws, /bus/publish, …

FastAPI runs a router's lifespan as part of that of the app that includes it: the bus starts after the app's own
lifespan has begun and stops before it ends. A router must hold all its routes when it is included, so include this one
in a router of yours before yours goes into the app. An app that is *mounted* has no lifespan at all: there the outer
app starts the bus, with `async with eventbus:` in its own lifespan.

Each route asks the `gate` who comes, and those that look after groups, queues and the rest let in admins only.
Dependencies given to `include_router` guard every route as well, the WebSocket too. Nothing else of the app is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from eventbus_fastapi.auth import Gate
from eventbus_fastapi.errors import EventBusError
from eventbus_fastapi.pipeline.catalog import Catalog
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.server import (
    openapi,
    openapi_archive,
    openapi_cloudevents,
    openapi_groups,
    openapi_queues,
    openapi_recurring,
)
from eventbus_fastapi.server.archive_http import ArchiveEndpoints
from eventbus_fastapi.server.asyncapi import AsyncAPI
from eventbus_fastapi.server.asyncapi_http import DOCUMENT_PATH, PAGE_PATH, AsyncAPIEndpoints
from eventbus_fastapi.server.client_js import ClientScript
from eventbus_fastapi.server.group_http import GroupEndpoints
from eventbus_fastapi.server.guard import Access, guard_of
from eventbus_fastapi.server.handover import Router
from eventbus_fastapi.server.http import Endpoints
from eventbus_fastapi.server.limits import Limits
from eventbus_fastapi.server.problems import ProblemRoute
from eventbus_fastapi.server.queue_http import QueueEndpoints
from eventbus_fastapi.server.recurring_http import RecurringEndpoints
from eventbus_fastapi.server.stream_http import StreamEndpoints
from eventbus_fastapi.server.ticket_http import Ticket, TicketEndpoints
from eventbus_fastapi.server.websocket import serve_websocket

if TYPE_CHECKING:
    from eventbus_fastapi.server.metrics import Metrics

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]
"""Starts what a router needs, given the app, and stops it."""


def build_router(
    node: Node,
    gate: Gate,
    limits: Limits,
    catalog: Catalog,
    *,
    lifespan: Lifespan | None = None,
    metrics: Metrics | None = None,
) -> APIRouter:
    """Return a router with the routes of `node`. `lifespan` starts and stops it; None: somebody else does. With
    `metrics`, they have a route, too.
    """
    endpoints = Endpoints(node, limits.publish_rate)
    router = Router(route_class=ProblemRoute, lifespan=lifespan, tags=[openapi.TAG])

    async def websocket(websocket: WebSocket) -> None:
        await serve_websocket(websocket, node, gate, limits)

    def add(
        path: str,
        endpoint: Callable[..., Any],
        *,
        access: Access = "any",
        responses: Mapping[int | str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        refusals = openapi.documented(*openapi.REFUSALS) if gate.is_guarded and access != "open" else {}
        guard = guard_of(gate, access)
        router.add_api_route(
            path,
            endpoint,
            name=f"eventbus_{endpoint.__name__}",
            generate_unique_id_function=partial(openapi.operation_id, path),
            dependencies=[] if guard is None else [Depends(guard)],
            responses={**(responses or {}), **refusals},
            **options,
        )

    add_for_admins = partial(add, access="admin")

    router.add_api_websocket_route("/ws", websocket, name="eventbus_ws")
    add(
        "/publish",
        endpoints.publish,
        methods=["POST"],
        status_code=201,
        summary="Publish events",
        response_model=openapi.Published | list[openapi.Published],
        responses={201: openapi.PUBLISH_ANSWER, **openapi.documented(*openapi.PUBLISH_PROBLEMS)},
        openapi_extra={
            "requestBody": {
                **openapi.PUBLISH_BODY,
                "content": {**openapi.PUBLISH_BODY["content"], **openapi_cloudevents.REQUESTS},
            },
            "parameters": [openapi_cloudevents.IDEMPOTENCY_KEY],
        },
    )
    add(
        "/events",
        endpoints.list_events,
        summary="Read the log",
        response_model=openapi.EventPage,
        responses={200: openapi_cloudevents.PAGE, **openapi.documented(*openapi.LIST_PROBLEMS)},
    )
    add(
        "/events/stream",
        StreamEndpoints(node, gate, limits.admission).stream_events,
        summary="Follow the log",
        response_class=StreamingResponse,  # with its own one FastAPI would write the stream; see `sse`
        responses={200: openapi.STREAM_ANSWER, **openapi.documented(*openapi.STREAM_PROBLEMS)},
    )
    add(
        "/events/{seq}",
        endpoints.get_event,
        summary="Read one event",
        response_model=openapi.LoggedEventWithStatus,
        responses={200: openapi_cloudevents.ONE, **openapi.documented(*openapi.GET_PROBLEMS)},
    )
    add(
        "/healthz",
        endpoints.healthz,
        access="open",
        summary="Does the process run?",
        response_model=openapi.Health,
    )
    add(
        "/readyz",
        endpoints.readyz,
        access="open",
        summary="Can the bus work?",
        response_model=openapi.Readiness,
        responses=openapi.documented(*openapi.READY_PROBLEMS),
    )
    described = AsyncAPIEndpoints(AsyncAPI(catalog, node.settings, ways=gate.ways))
    add(DOCUMENT_PATH, described.asyncapi_json, include_in_schema=False)
    add(PAGE_PATH, described.asyncapi_page, include_in_schema=False)
    add("/client.js", ClientScript().client_js, access="open", include_in_schema=False)
    if gate.gives_tickets:
        add(
            "/tickets",
            TicketEndpoints(gate).give_ticket,
            methods=["POST"],
            status_code=201,
            summary="Get a ticket",
            response_model=Ticket,
        )
    _add_groups(add_for_admins, GroupEndpoints(node))
    _add_queues(add_for_admins, QueueEndpoints(node))
    _add_archive(add_for_admins, ArchiveEndpoints(node))
    _add_recurring(add_for_admins, RecurringEndpoints(node, limits.publish_rate))
    if metrics is not None:
        access: Access = "open" if node.settings.metrics_public else "admin"
        add("/metrics", metrics.answer, access=access, include_in_schema=False)
    _tell_methods(router)
    return router


def _add_groups(add: Callable[..., None], endpoints: GroupEndpoints) -> None:
    """Add the routes that look after groups. The longer paths come first: the name of a group may have slashes."""
    docs = openapi_groups
    group = "/groups/{name:path}"
    add(
        "/groups",
        endpoints.list_groups,
        summary="How are the groups?",
        response_model=docs.GroupList,
        responses=openapi.documented(*docs.LIST_GROUPS_PROBLEMS),
    )
    add(
        f"{group}/retries",
        endpoints.list_retries,
        summary="What waits for another attempt?",
        response_model=docs.RetryPage,
        responses=openapi.documented(*docs.PAGE_PROBLEMS),
    )
    add(
        f"{group}/blocked-keys",
        endpoints.list_blocked_keys,
        summary="Which keys wait?",
        response_model=docs.BlockedKeys,
        responses=openapi.documented(*docs.PAGE_PROBLEMS),
    )
    changes: tuple[tuple[str, Callable[..., Any], dict[str, Any], tuple[EventBusError, ...]], ...] = (
        ("pause", endpoints.pause_group, openapi.NO_BODY, docs.CHANGE_PROBLEMS),
        ("resume", endpoints.resume_group, openapi.NO_BODY, docs.CHANGE_PROBLEMS),
        ("reset", endpoints.reset_group, docs.RESET_BODY, docs.RESET_PROBLEMS),
    )
    for verb, change, body, problems in changes:
        add(
            f"{group}/{verb}",
            change,
            methods=["POST"],
            summary=f"{verb.capitalize()} a group",
            response_model=docs.GroupObject,
            responses=openapi.documented(*problems),
            openapi_extra={"requestBody": body},
        )
    add(
        group,
        endpoints.get_group,
        summary="How is a group?",
        response_model=docs.GroupObject,
        responses=openapi.documented(*docs.GROUP_PROBLEMS),
    )
    add(
        group,
        endpoints.put_group,
        methods=["PUT"],
        summary="Declare a group",
        response_model=docs.GroupObject,
        responses={
            201: {"description": "It is new.", "model": docs.GroupObject},
            **openapi.documented(*docs.PUT_PROBLEMS),
        },
        openapi_extra={"requestBody": docs.PUT_BODY},
    )
    add(
        group,
        endpoints.delete_group,
        methods=["DELETE"],
        summary="Delete a group",
        response_model=docs.GroupObject,
        responses=openapi.documented(*docs.GROUP_PROBLEMS),
    )
    add(
        "/rate-limits",
        endpoints.list_rate_limits,
        summary="Which rate limits are there?",
        response_model=docs.RateLimitList,
        responses=openapi.documented(*docs.LIST_GROUPS_PROBLEMS),
    )
    add(
        "/rate-limits/{name:path}",
        endpoints.put_rate_limit,
        methods=["PUT"],
        summary="Make or change a rate limit",
        response_model=docs.RateLimitObject,
        responses=openapi.documented(*docs.RATE_LIMIT_PROBLEMS),
        openapi_extra={"requestBody": docs.RATE_LIMIT_BODY},
    )
    add(
        "/dead-letters",
        endpoints.list_dead_letters,
        summary="List dead letters",
        response_model=docs.DeadLetterPage,
        responses=openapi.documented(*docs.LIST_DEAD_PROBLEMS),
    )
    for verb, endpoint, model in (
        ("retry", endpoints.retry_dead_letters, docs.Retried),
        ("discard", endpoints.discard_dead_letters, docs.Discarded),
    ):
        add(
            f"/dead-letters/{verb}",
            endpoint,
            methods=["POST"],
            summary=f"{verb.capitalize()} dead letters",
            response_model=model,
            responses=openapi.documented(*docs.CHOICE_PROBLEMS),
            openapi_extra={"requestBody": docs.CHOICE_BODY},
        )
    add(
        "/dead-letters/{group:path}/{seq}",
        endpoints.get_dead_letter,
        summary="Show a dead letter",
        response_model=docs.ShownDeadLetter,
        responses=openapi.documented(*docs.GET_DEAD_PROBLEMS),
    )


def _add_queues(add: Callable[..., None], endpoints: QueueEndpoints) -> None:
    """Add the routes that look after queues. The name of a queue may have slashes."""
    docs = openapi_queues
    lists: tuple[tuple[str, Callable[..., Any], type[BaseModel], str], ...] = (
        ("queues", endpoints.list_queues, docs.QueueList, "How are the queues?"),
        ("workers", endpoints.list_workers, docs.WorkerList, "Who serves the queues?"),
    )
    for what, endpoint, model, summary in lists:
        add(
            f"/{what}",
            endpoint,
            summary=summary,
            response_model=model,
            responses=openapi.documented(*docs.LIST_PROBLEMS),
        )
    changes: tuple[tuple[str, Callable[..., Any], dict[str, Any]], ...] = (
        ("pause", endpoints.pause_queue, openapi.NO_BODY),
        ("resume", endpoints.resume_queue, openapi.NO_BODY),
        ("scale", endpoints.scale_queue, docs.SCALE_BODY),
    )
    for verb, change, body in changes:
        add(
            f"/queues/{{name:path}}/{verb}",
            change,
            methods=["POST"],
            summary=f"{verb.capitalize()} a queue",
            response_model=docs.QueueObject,
            responses=openapi.documented(*docs.CHANGE_PROBLEMS),
            openapi_extra={"requestBody": body},
        )


def _add_archive(add: Callable[..., None], endpoints: ArchiveEndpoints) -> None:
    """Add the routes that show the archive."""
    docs = openapi_archive
    add(
        "/archive",
        endpoints.list_archive,
        summary="How did events end?",
        response_model=docs.ArchivePageObject,
        responses=openapi.documented(*docs.LIST_PROBLEMS),
    )
    add(
        "/archive/{id}",
        endpoints.get_archived,
        summary="How did an event end?",
        response_model=docs.ShownEnding,
        responses=openapi.documented(*docs.GET_PROBLEMS),
    )


def _add_recurring(add: Callable[..., None], endpoints: RecurringEndpoints) -> None:
    """Add the routes that look after recurring events. A name with slashes is none, and told so."""
    docs = openapi_recurring
    path = "/recurring/{name:path}"
    add(
        "/recurring",
        endpoints.list_recurring,
        summary="Which events recur?",
        response_model=docs.RecurringList,
        responses=openapi.documented(*docs.LIST_PROBLEMS),
    )
    changes: tuple[tuple[str, Callable[..., Any], type[BaseModel], int, tuple[EventBusError, ...]], ...] = (
        ("pause", endpoints.pause_recurring, docs.RecurringObject, 200, docs.CHANGE_PROBLEMS),
        ("resume", endpoints.resume_recurring, docs.RecurringObject, 200, docs.CHANGE_PROBLEMS),
        ("run", endpoints.run_recurring, openapi.Published, 201, docs.RUN_PROBLEMS),
    )
    for verb, change, model, status, problems in changes:
        add(
            f"{path}/{verb}",
            change,
            methods=["POST"],
            status_code=status,
            summary=f"{verb.capitalize()} a recurring event",
            response_model=model,
            responses=openapi.documented(*problems),
            openapi_extra={"requestBody": openapi.NO_BODY},
        )
    add(
        path,
        endpoints.put_recurring,
        methods=["PUT"],
        summary="Declare a recurring event",
        response_model=docs.RecurringObject,
        responses={
            201: {"description": "It is new.", "model": docs.RecurringObject},
            **openapi.documented(*docs.PUT_PROBLEMS),
        },
        openapi_extra={"requestBody": docs.PUT_BODY},
    )
    for verb, method, endpoint in (
        ("get", "GET", endpoints.get_recurring),
        ("delete", "DELETE", endpoints.delete_recurring),
    ):
        add(
            path,
            endpoint,
            methods=[method],
            summary=f"{verb.capitalize()} a recurring event",
            response_model=docs.RecurringObject,
            responses=openapi.documented(*docs.GET_PROBLEMS),
        )


def _tell_methods(router: APIRouter) -> None:
    """Have each route know the methods of those that share its path: it answers for all where none fits.

    A path that could be the name of something as well, as `/groups/mail/pause`, is no name for another method.
    """
    routes = [route for route in router.routes if isinstance(route, ProblemRoute)]
    for route in routes:
        route.allowed = frozenset[str]().union(*(other.methods or () for other in routes if other.path == route.path))
        route.is_final = any(other.path_regex.match(route.path) for other in routes if other.path != route.path)
