"""A bus that asks who comes, served for the attacks of this package, and what its clients may do."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import HTTPConnection

from eventbus_fastapi import EventBus
from eventbus_fastapi.auth import Principal, bearer_token
from eventbus_fastapi.errors import Unauthenticated
from tests.server.sockets import ServedBus
from tests.serving import serving
from tests.tables import log_at

ALICE, BOB, ADMIN, EXPIRED = "alice-token", "bob-token", "admin-token", "expired-token"
PRINCIPALS = {
    ALICE: Principal("alice", publish=["a.#"], subscribe=["a.#", "shared.*"], groups=["a.*"]),
    BOB: Principal("bob", publish=["b.#"], subscribe=["b.#"], groups=["b.*"]),
    ADMIN: Principal("admin", is_admin=True),
    EXPIRED: Principal("alice", is_admin=True, expires_at=datetime.now(UTC) - timedelta(seconds=1)),
}


async def by_token(connection: HTTPConnection) -> Principal | None:
    """Find who comes by the token, as simple as an app may do it."""
    token = bearer_token(connection)
    if token is None:
        return None
    if token not in PRINCIPALS:
        raise Unauthenticated("no such token")
    return PRINCIPALS[token]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@contextlib.asynccontextmanager
async def serving_guarded(
    directory: Path, authenticate: Any = by_token, *, server: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[ServedBus]:
    """Serve a new bus on SQLite that asks who comes."""
    bus = EventBus(log_at(directory / "bus.db"), authenticate=authenticate, **settings)
    app = FastAPI()
    app.include_router(bus.router())
    async with serving(app, **(server or {})) as served:
        yield ServedBus(bus, served)


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_guarded(tmp_path) as served:
        yield served
