"""A bus on SQLite and an HTTP client that asks it, without a socket between them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from eventbus_fastapi import EventBus
from tests.tables import log_at


def bus_on(directory: Path, **settings: Any) -> EventBus:
    """Return a bus, not started, with its log in this directory."""
    return EventBus(log_at(directory / "eventbus.db"), **settings)


def app_of(eventbus: EventBus) -> FastAPI:
    app = FastAPI()
    app.include_router(eventbus.router())
    return app


@contextlib.asynccontextmanager
async def asking(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of the app. Its lifespan is not run: start the bus yourself."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://bus") as client:
        yield client


def assert_problem(answer: httpx.Response, status: int, code: str, *words: str) -> None:
    """It is a problem of this status and code, whose message has all these words; other than that it says nothing."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code), problem
    assert problem["type"] == "about:blank"
    assert problem["detail"] == problem["message"]
    assert not problem.keys() - {"type", "title", "status", "detail", "code", "message", "retry", "retry_after"}
    for word in words:
        assert word in problem["message"]
