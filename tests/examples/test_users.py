"""users_api.py and user_sync.py: users and events are stored together, and the second service misses none."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import runpy
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventbus_fastapi import EventBusClient, Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.schema import Tables
from tests.examples.running import free_port, serving
from tests.processes import CHECKOUT
from tests.waiting import eventually

ALICE = {"id": 1, "username": "alice"}
BOB = {"id": 2, "username": "bob"}


class Service:
    """One of the two services, as its users see it."""

    def __init__(self, http: httpx.AsyncClient, port: int) -> None:
        self.http = http
        self.ws = f"ws://127.0.0.1:{port}/ws"

    async def create(self, user: dict[str, Any]) -> int:
        return (await self.http.post("/api/users", json=user)).status_code

    async def publish(self, topic: str, payload: Any) -> None:
        (await self.http.post("/publish", json={"topic": topic, "payload": payload})).raise_for_status()

    async def users(self) -> list[dict[str, Any]]:
        users: list[dict[str, Any]] = (await self.http.get("/api/users")).raise_for_status().json()
        return users

    async def events(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = (await self.http.get("/events?limit=1000")).raise_for_status().json()["events"]
        return events


@contextlib.asynccontextmanager
async def users_api(directory: Path, **variables: str) -> AsyncIterator[Service]:
    port = free_port()
    async with (
        serving("users_api.py", directory, port, EVENTBUS_PORT=str(port), **variables),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
    ):
        yield Service(http, port)


@contextlib.asynccontextmanager
async def user_sync(directory: Path, api: Service) -> AsyncIterator[Service]:
    """Run it until the block ends, and then kill it with SIGKILL."""
    port = free_port()
    async with (
        serving("user_sync.py", directory, port, PORT=str(port), BUS_URL=api.ws),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
    ):
        yield Service(http, port)


async def test_users_api_stores_a_user_and_its_event_or_neither(database_url: str, tmp_path: Path) -> None:
    """Given a user, when another one of the same id or name is refused, then no event tells of it."""
    if not database_url.startswith("sqlite"):
        settings = Settings(database_url=database_url)
        await migrations.run(settings, Tables(settings.table_prefix, settings.db_schema), migrations.upgrade)
    async with users_api(tmp_path, EVENTBUS_DATABASE_URL=database_url) as api:
        assert await api.create(ALICE) == 201
        assert await api.create(ALICE) == 409
        assert await api.create({"id": 3, "username": "alice"}) == 409
        assert await api.create({"id": 1, "username": "carol"}) == 409
        assert await api.create(BOB) == 201
        assert await api.users() == [ALICE, BOB]
        await eventually(lambda: _has_events(api, 2))
        events = await api.events()
        assert [(event["seq"], event["topic"], event["payload"]) for event in events] == [
            (1, "user.created", ALICE),
            (2, "user.created", BOB),
        ]


@pytest.mark.parametrize(
    "body",
    [
        r'{"id": 99999999999999999999, "username": "alice"}',
        r'{"id": 2147483648, "username": "alice"}',
        r'{"id": NaN, "username": "alice"}',
        r'{"id": "\ud800", "username": "alice"}',
        r'{"id": 1, "username": "\ud800"}',
        r'{"id": 1, "username": "a\u0000"}',
        r'{"id": 1, "username": ""}',
        '{"id": 1, "username": "' + "a" * 101 + '"}',
    ],
)
async def test_users_api_refuses_what_it_cannot_store(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a user that no database could hold, when it is sent, then the answer is 422 and nothing was asked."""
    monkeypatch.setenv("EVENTBUS_DATABASE_URL", "sqlite+aiosqlite://")
    app = runpy.run_path(str(CHECKOUT / "examples" / "users_api.py"))["app"]
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://users") as http:
        answer = await http.post("/api/users", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "body"


async def _has_events(api: Service, number: int) -> bool:
    return len(await api.events()) >= number


async def test_user_sync_lists_the_users_of_the_api(tmp_path: Path) -> None:
    async with users_api(tmp_path) as api, user_sync(tmp_path, api) as sync:
        await api.create(ALICE)
        await api.create(BOB)
        await eventually(lambda: _has_users(sync, [ALICE, BOB]))


async def test_user_sync_reads_what_others_have_acknowledged_and_skips_what_is_no_user(tmp_path: Path) -> None:
    """Given events that are acknowledged, foreign or broken, when it starts, then it has exactly the users."""
    async with users_api(tmp_path) as api:
        await api.create(ALICE)
        await api.publish("user.created", {"id": "not a number"})
        await api.publish("user.renamed", {"id": 1, "username": "alicia"})
        await api.create(BOB)
        await acknowledge(api, 4)
        async with user_sync(tmp_path, api) as sync:
            await eventually(lambda: _has_users(sync, [ALICE, BOB]))


async def acknowledge(api: Service, number: int) -> None:
    async with EventBusClient(api.ws) as client, client.subscribe("#", start="earliest") as messages:
        for _ in range(number):
            await (await anext(messages)).ack()


@pytest.mark.timeout(300)
async def test_user_sync_has_exactly_the_users_wherever_it_was_killed(tmp_path: Path) -> None:
    """Given users are created all the while, when it is killed with SIGKILL again and again, then none is missing."""
    async with users_api(tmp_path) as api:
        enough = asyncio.Event()
        creating = asyncio.create_task(create_users(api, enough))
        known = 0
        for _ in range(3):
            async with user_sync(tmp_path, api) as sync:
                await eventually(partial(_has_more_users, sync, known + 10), 60)
                known = len(await sync.users())
        enough.set()
        await creating
        expected = await api.users()
        assert len(expected) >= known
        async with user_sync(tmp_path, api) as sync:
            await eventually(lambda: _has_users(sync, expected), 60)


async def create_users(api: Service, enough: asyncio.Event) -> None:
    """Create users until there are enough, every tenth twice."""
    for number in itertools.count(1):
        user = {"id": number, "username": f"user{number}"}
        assert await api.create(user) == 201
        if number % 10 == 0:
            assert await api.create(user) == 409
        if enough.is_set():
            return


async def _has_more_users(service: Service, number: int) -> bool:
    return len(await service.users()) > number


async def _has_users(service: Service, users: list[dict[str, Any]]) -> bool:
    return await service.users() == users
