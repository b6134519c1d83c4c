"""/recurring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.settings import Settings
from tests.server.asking import app_of, asking, assert_problem, bus_on
from tests.tables import log_at

WANTED = {"cron": "0 3 * * *", "topic": "report.requested", "payload": {"kind": "sales"}}


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with bus_on(tmp_path) as eventbus:
        yield eventbus


@pytest.fixture
async def http(eventbus: EventBus) -> AsyncIterator[httpx.AsyncClient]:
    async with asking(app_of(eventbus)) as client:
        yield client


async def test_what_is_put_is_shown_and_listed(http: httpx.AsyncClient) -> None:
    assert (await http.get("/recurring")).json() == {"recurring": []}
    put = await http.put(
        "/recurring/nightly",
        json={**WANTED, "timezone": "Europe/Berlin", "missed": "all", "key": "k", "metadata": {"a": 1}, "ttl": 60},
    )
    shown = (await http.get("/recurring/nightly")).json()
    assert (put.status_code, put.json()) == (201, shown)
    assert (await http.get("/recurring")).json() == {"recurring": [shown]}
    assert datetime.fromisoformat(shown.pop("next_at")).astimezone().minute == 0
    assert shown == {
        "name": "nightly",
        **WANTED,
        "timezone": "Europe/Berlin",
        "missed": "all",
        "content_type": "application/json",
        "key": "k",
        "metadata": {"a": 1},
        "ttl": 60.0,
        "last_at": None,
        "paused": False,
        "declared": False,
    }


async def test_what_is_put_again_is_changed(http: httpx.AsyncClient) -> None:
    await http.put("/recurring/nightly", json={**WANTED, "key": "k"})
    again = await http.put("/recurring/nightly", json={**WANTED, "payload_base64": "AP8=", "payload": None})
    assert again.status_code == 200
    assert (again.json()["payload_base64"], again.json()["key"]) == ("AP8=", None)
    assert again.json()["content_type"] == "application/octet-stream"


async def test_one_is_paused_resumed_run_and_deleted(eventbus: EventBus, http: httpx.AsyncClient) -> None:
    made = (await http.put("/recurring/nightly", json={**WANTED, "metadata": {"a": 1}})).json()
    paused = (await http.post("/recurring/nightly/pause", json={})).json()
    assert (paused["paused"], paused["next_at"]) == (True, None)
    ran = await http.post("/recurring/nightly/run", json={})
    assert (ran.status_code, ran.json()["seq"], ran.json()["duplicate"]) == (201, 1, False)
    message = (await eventbus.get(1)).message
    assert (message.topic, message.payload) == (WANTED["topic"], WANTED["payload"])
    assert message.metadata.keys() == {"a", "recurring", "scheduled_at"}
    resumed = await http.post("/recurring/nightly/resume", headers={"content-type": "application/json"})
    assert resumed.json() == made
    assert (await http.delete("/recurring/nightly")).json() == made
    assert_problem(await http.delete("/recurring/nightly"), 404, "recurring.not_found", "no recurring event 'nightly'")


@pytest.mark.parametrize("name", ["größe", "a%3Fb", "nightly.report:1", "pause"])
async def test_a_name_may_have_any_visible_character(http: httpx.AsyncClient, name: str) -> None:
    made = (await http.put(f"/recurring/{name}", json=WANTED)).json()
    assert (await http.get(f"/recurring/{name}")).json() == made
    assert (await http.post(f"/recurring/{name}/pause", json={})).json()["paused"]


@pytest.mark.parametrize(
    ("name", "change", "code", "words"),
    [
        ("a%20b", {}, "recurring.invalid", ["the name of a recurring event", "'a b'"]),
        ("x" * 256, {}, "recurring.invalid", ["1 to 255 bytes"]),
        ("a", {"cron": None}, "request.invalid", ["'cron' is missing"]),
        ("a", {"cron": 5}, "request.invalid", ["'cron'", "a string"]),
        ("a", {"cron": "0 0 31 2 *"}, "recurring.invalid", ["'0 0 31 2 *'"]),
        ("a", {"timezone": "Mars/Olympus"}, "recurring.invalid", ["'Mars/Olympus'"]),
        ("a", {"missed": "some"}, "request.invalid", ["'missed'", "'skip', 'last', 'all'", "'some'"]),
        ("a", {"topic": "a..b"}, "topic.invalid", ["a..b"]),
        ("a", {"metadata": {"recurring": 1}}, "recurring.invalid", ["'recurring' is reserved"]),
        ("a", {"metadata": {"a": "x" * 16_350}}, "event.invalid", ["limit is 16,384"]),
        ("a", {"message_id": "x"}, "request.invalid", ["unknown field 'message_id'"]),
        ("a", {"delay": 1}, "request.invalid", ["unknown field 'delay'"]),
    ],
)
async def test_what_cannot_be_used_is_refused(
    http: httpx.AsyncClient, name: str, change: dict[str, Any], code: str, words: list[str]
) -> None:
    assert_problem(await http.put(f"/recurring/{name}", json=WANTED | change), 422, code, *words)
    assert (await http.get("/recurring")).json() == {"recurring": []}


async def test_running_one_now_is_a_publish_for_the_rate_of_who_does_it(tmp_path: Path) -> None:
    settings = Settings(database_url=log_at(tmp_path / "slow.db"), publish_rate=0.01, publish_burst=2)
    async with EventBus(settings=settings) as eventbus, asking(app_of(eventbus)) as http:
        await http.put("/recurring/nightly", json=WANTED)
        answers = [await http.post("/recurring/nightly/run", json={}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 429]
    assert_problem(answers[2], 429, "publish.too_fast")
    assert int(answers[2].headers["retry-after"]) > 0
