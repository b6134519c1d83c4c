"""The standalone bus: `uvicorn eventbus_fastapi.app:app`.

Settings come from `EVENTBUS_*`; without any, the log is the SQLite file eventbus.db in the working directory. Importing
this module reads the settings and builds the app; no file and no database is touched before the app starts.
"""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.server import openapi, uvicorn_log
from eventbus_fastapi.server.problems import unroutable
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.version import VERSION

_DESCRIPTION = """\
A durable, ordered event bus. Publish with `POST /publish`, read the log with `GET /events`, and follow it live on the
WebSocket `/ws` (subprotocol `eventbus.v1`, or none for the plain frames).
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return an app that is a bus and nothing else. `settings` default to the environment.

    The bus itself is `app.state.eventbus`.

    Raises:
        SettingsError: a setting is unknown or has a value that cannot be used.
    """
    uvicorn_log.quiet()
    eventbus = EventBus(settings=Settings() if settings is None else settings)
    app = FastAPI(
        title="eventbus-fastapi",
        version=VERSION,
        description=_DESCRIPTION,
        openapi_tags=[{"name": openapi.TAG, "description": "Publishing, reading and health."}],
    )
    app.state.eventbus = eventbus
    app.include_router(eventbus.router())
    app.add_api_route("/", _landing, include_in_schema=False)
    app.add_exception_handler(HTTPException, _refuse)
    return app


async def _landing(request: Request) -> dict[str, str]:
    base = str(request.base_url).rstrip("/")
    return {
        "name": "eventbus-fastapi",
        "version": VERSION,
        "docs": f"{base}/docs",
        "websocket": f"{base.replace('http', 'ws', 1)}/ws",
        "publish": f"{base}/publish",
        "events": f"{base}/events",
        "ready": f"{base}/readyz",
    }


async def _refuse(request: Request, exc: Exception) -> Response:
    """Answer a path or method that does not exist like every other error of the bus."""
    assert isinstance(exc, HTTPException)
    answer = unroutable(request, exc.status_code, exc.detail)
    answer.headers.update(exc.headers or {})
    return answer


app = create_app()
