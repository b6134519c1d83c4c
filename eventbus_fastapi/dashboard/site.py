"""The dashboard: lets people in, finds the page that was asked for, and guards what it answers.

Pages show what the bus tells of itself in Python, as the routes of HTTP do, and change it in the same way. A GET never
changes anything. Whatever goes wrong is a page, too.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from eventbus_fastapi.auth import Gate
from eventbus_fastapi.dashboard import forms, static
from eventbus_fastapi.dashboard.entrance import COOKIE, Entrance, Visitor, cookie_of
from eventbus_fastapi.dashboard.forms import Fields
from eventbus_fastapi.dashboard.live import live
from eventbus_fastapi.dashboard.pages import (
    archive,
    dead_letters,
    groups,
    log,
    nodes,
    overview,
    publishing,
    queues,
    rate_limits,
    recurring,
    topics,
)
from eventbus_fastapi.dashboard.sampler import Sampler
from eventbus_fastapi.dashboard.visit import Visit
from eventbus_fastapi.errors import AccessDenied, EventBusError, NotFound, Unauthenticated
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.server.limits import Limits

logger = logging.getLogger(__name__)

PATH = "/dashboard"

Answer = Callable[[Visit], Awaitable[Response]]

PAGES: dict[str, Answer] = {
    "": overview.show,
    "topics": topics.show,
    "log": log.show,
    "event": log.show_event,
    "payload": log.download,
    "groups": groups.show,
    "group": groups.show_group,
    "queues": queues.show,
    "dead-letters": dead_letters.show,
    "dead-letter": dead_letters.show_one,
    "archive": archive.show,
    "ending": archive.show_one,
    "recurring": recurring.show,
    "rate-limits": rate_limits.show,
    "nodes": nodes.show,
    "publish": publishing.show,
    "live": live,
}


class Change(NamedTuple):
    """What a form does, and the fields that it has beside its token."""

    do: Answer
    fields: frozenset[str]


CHANGES: dict[str, Change] = {
    "publish": Change(publishing.publish, frozenset(publishing.FIELDS)),
    "group/pause": Change(groups.pause, frozenset({"name"})),
    "group/resume": Change(groups.resume, frozenset({"name"})),
    "group/reset": Change(groups.reset, frozenset({"name", "start", "seq", "time", "sure"})),
    "queue/pause": Change(queues.pause, frozenset({"name"})),
    "queue/resume": Change(queues.resume, frozenset({"name"})),
    "queue/scale": Change(queues.scale, frozenset({"name", "workers"})),
    "dead-letters/retry": Change(dead_letters.retry, frozenset({"of"})),
    "dead-letters/discard": Change(dead_letters.discard, frozenset({"of", "sure"})),
    "dead-letters/retry-all": Change(dead_letters.retry_all, frozenset(dead_letters.FILTERS)),
    "dead-letters/discard-all": Change(dead_letters.discard_all, frozenset({*dead_letters.FILTERS, "sure"})),
    "recurring/pause": Change(recurring.pause, frozenset({"name"})),
    "recurring/resume": Change(recurring.resume, frozenset({"name"})),
    "recurring/run": Change(recurring.run, frozenset({"name"})),
    "rate-limit/set": Change(rate_limits.change, frozenset({"name", "permits", "per"})),
}

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Nothing of an address goes to other sites; with no-referrer, forms would not say where they come from either.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Dashboard:
    """See the module's docstring."""

    def __init__(self, node: Node, gate: Gate, limits: Limits) -> None:
        self._node = node
        self._limits = limits
        self._entrance = Entrance(gate)
        self._allowed_origins = node.settings.allowed_origins
        self.sampler = Sampler(node)

    def start(self) -> None:
        """Collect figures for the plots, as long as the bus runs."""
        self.sampler.ensure()

    def add_to(self, router: APIRouter) -> None:
        """Add the routes, which no documentation shows."""

        async def show(request: Request) -> Response:
            return await self.answer(request)

        for path, name in ((PATH, "eventbus_dashboard"), (PATH + "/{page:path}", "eventbus_dashboard_page")):
            router.add_api_route(path, show, methods=["GET", "POST"], name=name, include_in_schema=False)

    async def answer(self, request: Request) -> Response:
        """Answer a request to `PATH`, or to a path below it, whatever it is."""
        page = request.path_params.get("page", "").rstrip("/")
        visit = Visit(
            request,
            self._node,
            self.sampler,
            self._limits,
            base=_base_of(request),
            page=page,
            query=Fields(request.query_params.multi_items()),
            form=Fields([]),
            secret=forms.secret_in(request) or forms.new_secret(),
            visitor=None,
        )
        try:
            answer = await self._answer(visit)
        except EventBusError as exc:
            answer = _refusal(visit, exc)
        except (HTTPException, ClientDisconnect):
            raise
        except Exception:
            logger.exception("failed to show a page of the dashboard")
            answer = _refusal(visit, EventBusError("the server failed; its log has the details"))
        if forms.secret_in(request) is None and answer.media_type == "text/html":
            _keep(answer, forms.SECRET_COOKIE, visit.secret, visit)
        for name, value in HEADERS.items():
            answer.headers[name] = value
        answer.headers.setdefault("Cache-Control", "no-store")
        return answer

    async def _answer(self, visit: Visit) -> Response:
        request = visit.request
        self._entrance.check_way(request)
        if visit.page.startswith("static/") and request.method == "GET":
            return static.answer(request, visit.page.removeprefix("static/"))
        if request.method == "POST":
            return await self._change(visit)
        visit.visitor = await self._entrance.admit(request)
        page = PAGES.get(visit.page)
        if page is None:
            raise NotFound(f"there is no page '{visit.page}'" if visit.page.isprintable() else "there is no such page")
        self.sampler.ensure()
        return await page(visit)

    # --- changes ---

    async def _change(self, visit: Visit) -> Response:
        forms.check_source(visit.request, self._allowed_origins)
        form = visit.form = await forms.read_form(visit.request, self._node.settings)
        if visit.page == "login":
            return await self._log_in(visit)
        visit.visitor = await self._entrance.admit(visit.request)
        forms.check_token(form, forms.secret_in(visit.request), visit.visitor.name)
        if visit.page == "logout":
            return self._log_out(visit)
        change = CHANGES.get(visit.page)
        if change is None:
            raise NotFound("there is no such form")
        form.refuse_unknown({*change.fields, forms.TOKEN})
        answer = await change.do(visit)
        if answer.status_code == HTTPStatus.SEE_OTHER:
            logger.info("%s did %s on the dashboard", _printable(visit.visitor), visit.page)
        return answer

    async def _log_in(self, visit: Visit) -> Response:
        form = visit.form
        form.refuse_unknown({"key", "then", forms.TOKEN})
        forms.check_token(form, forms.secret_in(visit.request), "")
        key = form.required("key")
        await self._entrance.admit_token(visit.request, key)
        answer = RedirectResponse(_place_in(visit, form.text("then")), 303)
        _keep(answer, COOKIE, cookie_of(key), visit)
        return answer

    def _log_out(self, visit: Visit) -> Response:
        answer = RedirectResponse(visit.base, 303)
        for name in (COOKIE, forms.SECRET_COOKIE):
            answer.delete_cookie(name, path=visit.base)
        return answer


def _refusal(visit: Visit, error: EventBusError) -> Response:
    """Return the page that says what is wrong: the login, where that is what is missing."""
    if isinstance(error, Unauthenticated):
        asked = visit.request.url.query
        then = visit.page + (f"?{asked}" if asked else "") if visit.request.method == "GET" else ""
        return visit.show("login.html", 401, error=error if visit.page == "login" else None, then=then)
    if isinstance(error, AccessDenied):
        visit.visitor = None
    return visit.show("refused.html", error=error)


def _base_of(request: Request) -> str:
    """Return the path of the dashboard as the browser sees it: the app may be below a path, and the router, too."""
    root, path = request.scope.get("root_path", "").rstrip("/"), request.scope["path"]
    full = path if path.startswith(root) else root + path
    page = request.path_params.get("page")
    return quote(full.removesuffix("/" + page) if page is not None else full)


def _place_in(visit: Visit, then: str | None) -> str:
    """Return where to go after the login: a page of ours, whatever the form says."""
    page, _, query = (then or "").partition("?")
    return visit.link(page) + (f"?{query}" if query else "") if page in PAGES and query.isprintable() else visit.base


def _keep(answer: Response, name: str, value: str, visit: Visit) -> None:
    """Set a cookie that ends with the browser's session, and that only our pages get."""
    is_secure = visit.request.url.scheme == "https"
    answer.set_cookie(name, value, path=visit.base, secure=is_secure, httponly=True, samesite="strict")


def _printable(visitor: Visitor) -> str:
    return visitor.name if visitor.name.isprintable() else repr(visitor.name)
