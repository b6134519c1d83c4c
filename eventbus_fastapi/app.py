"""The standalone bus: `uvicorn eventbus_fastapi.app:app`.

Settings come from `EVENTBUS_*`; without any, the log is the SQLite file eventbus.db in the working directory. Importing
this module reads the settings, and who may do what, and builds the app; no database is touched before the app starts.

Without `EVENTBUS_AUTH_FILE` nobody is asked who they are: then it answers on loopback only, and no web page but its own
may use it.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from eventbus_fastapi.auth.access_file import access_of
from eventbus_fastapi.auth.loopback import require_loopback, uvicorn_host
from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.dashboard import has_dashboard
from eventbus_fastapi.server import openapi, uvicorn_log
from eventbus_fastapi.server.loopback import LoopbackOnly
from eventbus_fastapi.server.problems import unroutable
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.version import VERSION

_DESCRIPTION = """\
A durable, ordered event bus. Publish with `POST /publish`, read the log with `GET /events`, and follow it live with
`GET /events/stream`, or on the WebSocket `/ws` (subprotocol `eventbus.v1`, or none for the plain frames).
"""


def create_app(settings: Settings | None = None, *, owns_process: bool = False) -> FastAPI:
    """Return an app that is a bus and nothing else. `settings` default to the environment.

    The bus itself is `app.state.eventbus`. `owns_process`: nothing else runs in this process, so the app may set what
    is set for all of it.

    Raises:
        SettingsError: a setting is unknown or has a value that cannot be used; or the bus asks nobody who they are, and
            is to listen on an address that others reach.
    """
    uvicorn_log.quiet()
    settings = Settings() if settings is None else settings
    authenticate = access_of(settings)
    host = uvicorn_host()
    is_near = authenticate is None and not settings.insecure
    if is_near and host is not None:
        require_loopback(host)
    eventbus = EventBus(settings=settings, authenticate=authenticate)
    app = FastAPI(
        title="eventbus-fastapi",
        version=VERSION,
        description=_DESCRIPTION,
        openapi_tags=[{"name": openapi.TAG, "description": "Publishing, reading and health."}],
        lifespan=_own_the_process if owns_process else None,
    )
    app.state.eventbus = eventbus
    app.include_router(eventbus.router())
    app.add_api_route("/", _landing, include_in_schema=False)
    app.add_exception_handler(HTTPException, _refuse)
    if is_near:
        app.add_middleware(LoopbackOnly)
    return app


@asynccontextmanager
async def _own_the_process(app: FastAPI) -> AsyncIterator[None]:
    """Keep what is there before the first request out of the garbage collector's sight.

    It is most of what the process ever has, and to look through it took the loop a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()
    yield


async def _landing(request: Request) -> dict[str, str]:
    base = str(request.base_url).rstrip("/")
    dashboard = {"dashboard": f"{base}/dashboard"} if has_dashboard(request.app.state.eventbus.settings) else {}
    return {
        "name": "eventbus-fastapi",
        "version": VERSION,
        "docs": f"{base}/docs",
        **dashboard,
        "websocket": f"{base.replace('http', 'ws', 1)}/ws",
        "publish": f"{base}/publish",
        "events": f"{base}/events",
        "stream": f"{base}/events/stream",
        "ready": f"{base}/readyz",
    }


async def _refuse(request: Request, exc: Exception) -> Response:
    """Answer a path or method that does not exist like every other error of the bus."""
    assert isinstance(exc, HTTPException)
    answer = unroutable(request, exc.status_code, exc.detail)
    answer.headers.update(exc.headers or {})
    return answer


app = create_app(owns_process=True)
