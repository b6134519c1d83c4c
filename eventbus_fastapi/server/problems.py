"""Errors as HTTP answers: `application/problem+json` (RFC 9457) with the members of the wire's error object.

`ProblemRoute` gives the bus's own routes these answers and leaves the rest of the app alone: no exception handler is
installed anywhere, and what an app's own dependencies raise on these routes goes to the app's own handlers.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from eventbus_fastapi.errors import EventBusError, InvalidRequest, Unauthenticated, quote

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


def problem(error: EventBusError) -> Response:
    """Return the answer that reports `error`."""
    headers = {"Cache-Control": "no-store"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status == HTTPStatus.REQUEST_TIMEOUT:
        headers["Connection"] = "close"  # else the server would go on reading what does not come
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = error.challenge
    return Response(to_json(members(error)), error.status, headers, MEDIA_TYPE)


def unroutable(request: Request, status: int, detail: str) -> Response:
    """Return the answer to a path or method that does not exist."""
    docs = getattr(request.scope.get("app"), "docs_url", None)
    hint = f"; see {str(request.base_url).rstrip('/')}{docs}" if docs else ""
    error = InvalidRequest(f"{quote(request.method)[1:-1]} {request.url.path}: {detail}{hint}")
    error.status = status
    return problem(error)


def members(error: EventBusError) -> dict[str, Any]:
    """Return the members of a problem: the error object of the wire, and what RFC 9457 asks for.

    The type is `about:blank`, which stands for no more than the status: `code` is what programs look at.
    """
    described = error.describe()
    title = HTTPStatus(error.status).phrase
    return {"type": "about:blank", "title": title, "detail": described["message"], **described}


class ProblemRoute(APIRoute):
    """A route that answers every error of its own with a problem."""

    allowed: frozenset[str] = frozenset()
    """The methods of all routes with this path; empty: this is the only one."""
    is_final: bool = False
    """Whether another method is refused here, although a route that comes later would take its path."""

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **options: Any) -> None:
        super().__init__(path, _answering(endpoint), **options)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if "\n" in scope.get("path", ""):
            # The patterns of paths stop there. No name may have either of them, and that is what is to be answered.
            scope = {**scope, "path": scope["path"].replace("\n", "\r")}
        match, child = super().matches(scope)
        return (Match.FULL, child) if match is Match.PARTIAL and self.is_final else (match, child)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Called with another method only if the app has no route of its own for that.
        if self.methods and scope["method"] not in self.methods:
            allowed = ", ".join(sorted(self.allowed or self.methods))
            answer = unroutable(Request(scope), HTTPStatus.METHOD_NOT_ALLOWED, f"expected {allowed}")
            answer.headers["Allow"] = allowed
            await answer(scope, receive, send)
            return
        await super().handle(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_refuse(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as exc:
                return problem(InvalidRequest(_explain(exc)))
            except EventBusError as exc:  # of the route's guard
                return problem(exc)

        return handle_or_refuse


def _answering(endpoint: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """Wrap an endpoint so that its errors, and only its own, become answers."""

    @functools.wraps(endpoint)
    async def answer(*args: Any, **kwargs: Any) -> Response:
        try:
            return await endpoint(*args, **kwargs)
        except EventBusError as exc:
            return problem(exc)
        except HTTPException:  # a limit of the app around us, such as FastAPI(max_body_size=…)
            raise
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody is there to read it
        except Exception:
            logger.exception("failed to answer %s", endpoint.__name__)
            return problem(EventBusError("the server failed; its log has the details"))

    return answer


def _explain(exc: RequestValidationError) -> str:
    """One clause per parameter: where it is, its name, what was expected, what came."""
    clauses = []
    for error in exc.errors():
        place, *name = error["loc"]
        got = "" if error["type"] == "missing" else f", got {quote(error['input'])}"
        clauses.append(f"{place} parameter '{'.'.join(map(str, name))}': {error['msg']}{got}")
    return "; ".join(clauses)
