"""/queues and /workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.store.roster import Serving
from tests.server.asking import app_of, asking, assert_problem, bus_on


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with bus_on(tmp_path) as eventbus:
        yield eventbus


@pytest.fixture
async def http(eventbus: EventBus) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(app_of(eventbus)) as client:
        yield client


async def see(eventbus: EventBus, worker_id: str, **served: Serving) -> None:
    await eventbus.node.store.roster.see(worker_id, served, host="web-1", pid=4711, age=60)


async def test_queues_tell_how_they_are_served_and_what_operators_have_said(
    eventbus: EventBus, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/queues")).json() == {"queues": []}
    await see(eventbus, "one", email=Serving(5, 3, False, ("b", "a")), audit=Serving(1, 0, False, ()))
    await see(eventbus, "two", email=Serving(4, 4, False, ("c",)))
    assert (await http.post("/queues/later/pause", json={})).status_code == 200

    queues = (await http.get("/queues")).json()["queues"]

    assert queues == [
        {"name": "audit", "workers": 1, "scaled": False, "paused": False, "processes": 1, "busy": 0, "groups": []},
        {
            "name": "email",
            "workers": 5,
            "scaled": False,
            "paused": False,
            "processes": 2,
            "busy": 7,
            "groups": ["a", "b", "c"],
        },
        {"name": "later", "workers": None, "scaled": False, "paused": True, "processes": 0, "busy": 0, "groups": []},
    ]


async def test_a_queue_is_paused_resumed_and_scaled(http: httpx.AsyncClient) -> None:
    async def change(verb: str, body: Any) -> tuple[Any, ...]:
        answer = await http.post(f"/queues/shop/email/{verb}", json=body)
        assert answer.status_code == 200, answer.text
        queue = answer.json()
        assert queue["name"] == "shop/email"
        return queue["paused"], queue["scaled"], queue["workers"]

    assert await change("pause", {}) == (True, False, None)
    assert await change("scale", {"workers": 10}) == (True, True, 10)
    assert await change("resume", {}) == (False, True, 10)
    assert await change("scale", {"workers": None}) == (False, False, None)
    assert (await http.get("/queues")).json() == {"queues": []}


async def test_workers_tell_when_they_were_seen(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    await see(eventbus, "one", email=Serving(5, 3, True, ("a",)))
    (worker,) = (await http.get("/workers")).json()["workers"]
    assert 0 <= worker.pop("age") < 15
    assert worker.pop("started_at") < worker.pop("seen_at")
    assert worker == {
        "id": "one",
        "host": "web-1",
        "pid": 4711,
        "alive": True,
        "queues": {"email": {"workers": 5, "busy": 3, "paused": True, "groups": ["a"]}},
    }


@pytest.mark.parametrize(
    ("path", "body", "code", "word"),
    [
        ("a%20b/pause", {}, "queue.invalid", "1 to 255 bytes"),
        (f"{'x' * 256}/resume", {}, "queue.invalid", "1 to 255 bytes"),
        ("email/pause", {"until": 1}, "request.invalid", "unknown field 'until'; expected no field"),
        ("email/scale", {}, "request.invalid", "field 'workers' is missing"),
        ("email/scale", {"worker": 1}, "request.invalid", "unknown field 'worker'; expected workers"),
        ("email/scale", {"workers": 0}, "request.invalid", "field 'workers': expected an integer ≥ 1, got 0"),
        ("email/scale", {"workers": 1001}, "request.invalid", "an integer from 1 to 1000, got 1001"),
        ("email/scale", {"workers": "5"}, "request.invalid", "field 'workers'"),
    ],
)
async def test_what_cannot_be_said_of_a_queue_changes_nothing(
    http: httpx.AsyncClient, path: str, body: Any, code: str, word: str
) -> None:
    assert_problem(await http.post(f"/queues/{path}", json=body), 422, code, word)
    assert (await http.get("/queues")).json() == {"queues": []}
